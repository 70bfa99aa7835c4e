"""The callback: a refresh through training, once per optimizer step, and what a checkpoint and a test see of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from openbook.callbacks import IndexRefresh
from openbook.commands.evaluate import evaluate
from openbook.commands.train import train
from openbook.data.datamodule import QuestionAnswerData
from openbook.index.snapshot import Snapshot
from openbook.refresh.manager import RefreshManager
from openbook.refresh.rebuild import Rebuild
from openbook.refresh.rolling import RollingRefresh
from openbook.retrieval.dense import DenseRetriever
from openbook.setup import models as setup_models
from openbook.setup.inputs import data as setup_data
from openbook.setup.prepare import index_refresh
from openbook.tracking.checkpoint import read_checkpoint
from tests.small_system import SmallSystem, column

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = ("evaluate.before_training=false", "data.test=")
SLOWLY = ("optim.lr_question_encoder=0.0003", "optim.lr_passage_encoder=0.0003", "optim.lr_generator=0.0003")
"""So that retrieval does not collapse to the same three passages, for which most mistakes do not show."""


@pytest.fixture
def refreshed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many passages each refresh has encoded."""
    encoded: list[int] = []
    original = Rebuild.finish

    def finish(self: Rebuild) -> tuple[Snapshot, dict[str, float]]:
        encoded.append(self.encoded)
        return original(self)

    monkeypatch.setattr(Rebuild, "finish", finish)
    return encoded


@pytest.fixture
def system(small_system: SmallSystem, tmp_path: Path) -> tuple[DenseRetriever, RefreshManager, QuestionAnswerData]:
    config = small_system.config(tmp_path / "run")
    ready = setup_data.parts(config)
    questions = setup_data.data(config, ready)
    questions.setup()
    return (
        setup_models.dense_retriever(config, ready),
        index_refresh(config, ready, questions, None).manager,
        questions,
    )


def test_a_refresh_swaps_and_measures(system: tuple[DenseRetriever, RefreshManager, QuestionAnswerData]) -> None:
    retriever, manager, _ = system
    first = manager.refresh(retriever, 0)
    assert "refresh/overlap_at_k" not in first  # nothing to compare with
    old = retriever.snapshot
    again = manager.refresh(retriever, 1)
    assert retriever.snapshot is not old
    assert (again["refresh/generation"], again["refresh/overlap_at_k"]) == (1.0, 1.0)
    assert again["refresh/score_drift"] == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        for parameter in retriever.passage_encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    moved = manager.refresh(retriever, 2)
    assert moved["refresh/overlap_at_k"] < 1
    assert moved["refresh/score_drift"] > 0.01
    assert manager.seconds > 0


def test_overlap_is_the_share_of_the_old_top_k(
    system: tuple[DenseRetriever, RefreshManager, QuestionAnswerData],
) -> None:
    """Against sets, by hand."""
    retriever, manager, questions = system
    manager.refresh(retriever, 0)
    old = retriever.snapshot
    with torch.no_grad():
        for parameter in retriever.passage_encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    measured = manager.refresh(retriever, 1)["refresh/overlap_at_k"]
    probes = questions.probe_questions(128)
    assert probes is not None and old is not None and retriever.snapshot is not None
    retriever.eval()
    asked = retriever.question_encoder(*probes).detach()
    pairs = zip(old.search(asked, 10).rows.tolist(), retriever.snapshot.search(asked, 10).rows.tolist(), strict=True)
    shares = [len(set(before) & set(after)) / 10 for before, after in pairs]
    assert measured == pytest.approx(sum(shares) / len(shares), abs=1e-6)


@pytest.mark.parametrize("mode", ["amortized", "rolling"])
def test_its_state_is_plain_and_saved_with_the_run(mode: str, small_system: SmallSystem, tmp_path: Path) -> None:
    """In the middle of everything, and loaded without unpickling code."""
    config = small_system.config(
        tmp_path / "run", *QUICK, f"refresh.mode={mode}", "refresh.every=3", "refresh.spread=3", "trainer.max_steps=5"
    )
    checkpoint = read_checkpoint(train(config) / "checkpoints" / "last.ckpt")
    state = next(state for name, state in checkpoint["callbacks"].items() if name.startswith("IndexRefresh"))
    assert state["generation"] == (0 if mode == "amortized" else 1)
    assert ("next" in state, "rolling" in state) == (mode == "amortized", mode == "rolling")
    ready = setup_data.parts(config)
    other = index_refresh(config, ready, None, None)
    other.load_state_dict(state)
    assert (other.manager.generation, other.manager.rebuild.encoded) == (state["generation"], state["encoded"])


def test_with_accumulation_a_step_is_an_optimizer_step(small_system: SmallSystem, tmp_path: Path) -> None:
    config = small_system.config(tmp_path / "run", "trainer.accumulate=2", "trainer.batch_size=2", *QUICK)
    run = train(config)
    assert column(run, "refresh/generation") == {2: 1.0, 4: 2.0, 6: 3.0}
    assert sorted(column(run, "train/nll")) == [1, 2, 3, 4, 5, 6]


def test_both_halves_of_an_accumulated_step_are_written_back(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[set[int]] = [set()]
    written: list[set[int]] = []
    score, write_back = DenseRetriever.score, RollingRefresh.write_back

    def scored(self: DenseRetriever, question_emb: torch.Tensor, retrieved):  # type: ignore[no-untyped-def]
        if self.training:
            read[-1] |= set(retrieved.rows.flatten().tolist())
        return score(self, question_emb, retrieved)

    def back(self: RollingRefresh, rows: torch.Tensor, embeddings: torch.Tensor, step: int) -> None:
        written.append(set(rows.tolist()))
        read.append(set())
        write_back(self, rows, embeddings, step)

    prepare = RefreshManager.prepare

    def prepared(self: RefreshManager, retriever: DenseRetriever, step: int) -> dict[str, float]:
        read[-1].clear()  # what was read to time a step
        return prepare(self, retriever, step)

    monkeypatch.setattr(RefreshManager, "prepare", prepared)
    monkeypatch.setattr(DenseRetriever, "score", scored)
    monkeypatch.setattr(RollingRefresh, "write_back", back)
    train(
        small_system.config(
            tmp_path / "run", "trainer.accumulate=2", "trainer.batch_size=2", *QUICK, *SLOWLY, "refresh.mode=rolling"
        )
    )
    assert len(written) == 6 and len(set().union(*written)) > 12
    assert written == read[:6], "validation's passages are not the step's"


def test_a_frozen_passage_encoder_is_encoded_once(
    small_system: SmallSystem, tmp_path: Path, refreshed: list[int]
) -> None:
    run = train(small_system.config(tmp_path / "run", "retriever.train_passage_encoder=false"))
    assert refreshed == [37]
    assert max(column(run, "train/staleness").values()) < 1e-4


def test_an_index_that_is_never_refreshed_stays_stale_in_the_test(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run", "refresh.every=0", "refresh.fresh_test=false"))
    assert '"generation": 0' in (run / "summary.json").read_text()
    staleness = list(column(run, "train/staleness").values())
    assert staleness[0] < 1e-4 < staleness[-1]


def test_tied_encoders_are_one_model_that_trains(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run", "retriever.tied=true", "evaluate.before_training=false"))
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        names = csv.DictReader(file).fieldnames or []
    assert "lr-AdamW/question_encoder" in names
    assert "lr-AdamW/passage_encoder" not in names
    assert max(column(run, "train/staleness").values()) > 1e-4


def test_reranking_serves_training_on_a_stale_index(small_system: SmallSystem, tmp_path: Path) -> None:
    words = ["refresh.every=0", "refresh.fresh_test=false", "trainer.max_steps=9", "evaluate.before_training=false"]
    plain = train(small_system.config(tmp_path / "plain", *words))
    reranked = train(small_system.config(tmp_path / "reranked", *words, "retriever.rerank=37"))
    assert column(plain, "train/nll")[1] == pytest.approx(column(reranked, "train/nll")[1], rel=1e-5)  # not yet stale
    assert column(plain, "train/nll")[9] != pytest.approx(column(reranked, "train/nll")[9], rel=1e-3)


def test_the_vectors_of_the_last_run_are_not_encoded_again(
    small_system: SmallSystem, tmp_path: Path, refreshed: list[int]
) -> None:
    """A second run from the same weights reads them from the cache; its numbers are the first one's."""
    quick = (*QUICK, "trainer.max_steps=2")
    first = train(small_system.config(tmp_path / "run", *quick))
    second = train(small_system.config(tmp_path / "again", *quick))
    assert refreshed == [37, 37, 0, 37]  # the first index, and the one after step 2
    assert column(first, "train/nll") == column(second, "train/nll")
    refreshed.clear()
    train(small_system.config(tmp_path / "without", *quick, "index.keep_vectors=0"))
    assert refreshed == [37, 37]


def test_the_test_sees_a_fresh_index_and_evaluate_repeats_it(small_system: SmallSystem, tmp_path: Path) -> None:
    words = [
        "evaluate.before_training=false",
        "refresh.mode=rolling",
        "refresh.every=4",
        "refresh.share=0.5",
        "trainer.max_steps=5",
        "trainer.tokens_per_pass=200",
    ]
    seen: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        original = IndexRefresh.on_test_start

        def start(self, trainer, module):  # type: ignore[no-untyped-def]
            original(self, trainer, module)
            seen.append(module.retriever.index_is_exact())

        patch.setattr(IndexRefresh, "on_test_start", start)
        run = train(small_system.config(tmp_path / "run", *words))
        stale = train(small_system.config(tmp_path / "stale", *words, "refresh.fresh_test=false"))
    assert seen == [True, False]
    for folder in (run, stale):
        tested = json.loads((folder / "summary.json").read_text())["test"]
        assert json.loads(evaluate(str(folder), []).read_text())["test"] == tested
