"""What a refresh measures, and that a failed one leaves the old snapshot whole."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from openbook.callbacks import IndexRefresh, index_refresh

from openbook import build
from openbook.datamodule import QuestionAnswerData
from openbook.retriever import Retriever
from openbook.train import train
from tests.small_system import SmallSystem, column


@pytest.fixture(autouse=True)
def _own_run_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBOOK_RUN_DIR", "")


@pytest.fixture
def system(small_system: SmallSystem, tmp_path: Path) -> tuple[Retriever, IndexRefresh, QuestionAnswerData]:
    config = small_system.config(tmp_path / "run")
    ready = build.parts(config)
    questions = build.data(config, ready)
    questions.setup()
    return build.retriever(config, ready), build.index_refresh(config, ready, questions, None), questions


def test_a_refresh_swaps_and_measures(system: tuple[Retriever, IndexRefresh, QuestionAnswerData]) -> None:
    retriever, refresh, _ = system
    first = refresh.refresh(retriever)
    assert "refresh/overlap_at_k" not in first  # nothing to compare with
    old = retriever.snapshot
    again = refresh.refresh(retriever)
    assert retriever.snapshot is not old
    assert (again["refresh/generation"], again["refresh/overlap_at_k"]) == (1.0, 1.0)
    assert again["refresh/score_drift"] == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        for parameter in retriever.passage_encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    moved = refresh.refresh(retriever)
    assert moved["refresh/overlap_at_k"] < 1
    assert moved["refresh/score_drift"] > 0.01


def test_overlap_is_the_share_of_the_old_top_k(system: tuple[Retriever, IndexRefresh, QuestionAnswerData]) -> None:
    """Against sets, by hand."""
    retriever, refresh, questions = system
    refresh.refresh(retriever)
    old = retriever.snapshot
    with torch.no_grad():
        for parameter in retriever.passage_encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    measured = refresh.refresh(retriever)["refresh/overlap_at_k"]
    probes = questions.probe_questions(128)
    assert probes is not None and old is not None and retriever.snapshot is not None
    retriever.eval()
    asked = retriever.encode_questions(*probes).detach()
    pairs = zip(old.search(asked, 10).rows.tolist(), retriever.snapshot.search(asked, 10).rows.tolist(), strict=True)
    shares = [len(set(before) & set(after)) / 10 for before, after in pairs]
    assert measured == pytest.approx(sum(shares) / len(shares), abs=1e-6)


@pytest.mark.parametrize("point", ["encode_passages", "concatenate_shards", "build_index", "Snapshot"])
def test_a_refresh_that_fails_leaves_the_old_snapshot(
    point: str, system: tuple[Retriever, IndexRefresh, QuestionAnswerData], monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever, refresh, _ = system
    refresh.refresh(retriever)
    old = retriever.snapshot
    assert old is not None
    answers = old.search(torch.ones(1, 24), 5).rows.tolist()

    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError  # without a text: other ranks must hear of it all the same

    monkeypatch.setattr(index_refresh, point, fail)
    with pytest.raises(MemoryError):
        refresh.refresh(retriever)
    assert retriever.snapshot is old
    assert refresh.generation == old.generation
    assert old.search(torch.ones(1, 24), 5).rows.tolist() == answers


def test_its_state_is_plain(system: tuple[Retriever, IndexRefresh, QuestionAnswerData], tmp_path: Path) -> None:
    retriever, refresh, _ = system
    refresh.refresh(retriever)
    torch.save(refresh.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["generation"] == 0
    other = IndexRefresh(refresh.schedule, refresh.options, "corpus")
    other.load_state_dict(state)
    assert other.generation == 0


def test_with_accumulation_a_step_is_an_optimizer_step(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(
        small_system.config(
            tmp_path / "run", "trainer.accumulate=2", "trainer.batch_size=2", "evaluate.before_training=false"
        )
    )
    assert column(run, "refresh/generation") == {2: 1.0, 4: 2.0, 6: 3.0}
    assert sorted(column(run, "train/nll")) == [1, 2, 3, 4, 5, 6]


def test_a_frozen_passage_encoder_is_encoded_once(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    original = index_refresh.encode_passages
    monkeypatch.setattr(index_refresh, "encode_passages", lambda *args: encoded.append(1) or original(*args))
    run = train(small_system.config(tmp_path / "run", "retriever.train_passage_encoder=false"))
    assert encoded == [1]
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
    (tmp_path / "plain").mkdir(), (tmp_path / "reranked").mkdir()
    plain = train(small_system.config(tmp_path / "plain" / "run", *words))
    reranked = train(small_system.config(tmp_path / "reranked" / "run", *words, "retriever.rerank=37"))
    assert column(plain, "train/nll")[1] == pytest.approx(column(reranked, "train/nll")[1], rel=1e-5)  # not yet stale
    assert column(plain, "train/nll")[9] != pytest.approx(column(reranked, "train/nll")[9], rel=1e-3)
