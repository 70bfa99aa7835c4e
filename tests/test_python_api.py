"""The Python API: what README shows, and a user's own objective, retriever and callback handed to `train`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import openbook
from openbook import evaluate, objectives, resume, train
from openbook.batch import Batch, Retrieved
from openbook.commands.api import load_run
from openbook.data.corpus import Corpus
from openbook.data.corpus_build import build_corpus
from openbook.errors import OpenBookError
from openbook.retrieval.base import Retriever
from openbook.setup.prepare import OwnParts
from openbook.tracking.checkpoint import read_checkpoint
from tests.small_system import SmallSystem, column, train_until

README = Path(__file__).parent.parent / "README.md"
BIAS = "retriever.bias"


class Learnt(nn.Module, Retriever[Tensor]):
    """Reads the first passages of the corpus for every question; how much each weighs is learnt."""

    def __init__(self, n_passages: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_passages))

    def represent(self, batch: Batch) -> Tensor:
        return batch.weight

    def retrieve(self, queries: Tensor, top_k: int) -> Retrieved:
        rows = torch.arange(top_k).expand(len(queries), -1)
        return Retrieved(rows, self.bias.detach()[rows])

    def score(self, queries: Tensor, retrieved: Retrieved) -> Tensor:
        return self.bias[retrieved.rows]


def learnt(corpus: Corpus) -> Learnt:
    return Learnt(corpus.n_passages)


def doubled(token_logprobs: Tensor, doc_scores: Tensor, target_mask: Tensor) -> Tensor:
    return 2 * objectives.rag_token_nll(token_logprobs, doc_scores, target_mask)


class Counted(L.Callback):
    steps = 0

    def on_train_batch_end(self, *_: object) -> None:
        self.steps += 1


def bias_of(run: Path) -> Tensor:
    return read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"][BIAS]


def test_importing_openbook_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'lightning', 'transformers', 'faiss', 'numpy', 'omegaconf', 'wandb', 'rich', 'matplotlib'}"
    code = f"import openbook, sys; openbook.__doc__; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", openbook.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(openbook, name) is not None and name in dir(openbook)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = openbook.trian


def test_train_answer_and_show_where_answers_come_from(small_system: SmallSystem, tmp_path: Path) -> None:
    counted = Counted()
    run = train(small_system.config(tmp_path / "run"), callbacks=[counted])
    assert counted.steps == 6
    assert run.summary["status"] == "finished" and run.path == tmp_path / "run"
    asked = [prediction.question for prediction in run.predictions[:5]]
    answers = load_run(run).answer(asked)
    assert [answer.question for answer in answers] == asked
    for answer, tested in zip(answers, run.predictions, strict=False):  # the same index, generator and passages
        assert answer.prediction == tested.prediction
        assert [passage.id for passage in answer.passages] == [passage.id for passage in tested.passages]
        assert sum(passage.posterior for passage in answer.passages) == pytest.approx(1, abs=1e-5)
    assert len(load_run(run).answer(asked, n_docs=1)[0].passages) == 1
    with pytest.raises(OpenBookError, match=r"a question is longer than the limit \(question 1\): got \d+ tokens"):
        load_run(run).answer(["alpha " * 400])


def test_an_own_objective_is_what_is_minimised(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run"), objective=doubled)
    plain = train(small_system.config(tmp_path / "plain"))
    losses, nll = column(run.path, "train/loss"), column(run.path, "train/nll")
    assert len(losses) == 6
    assert list(losses.values()) == pytest.approx([2 * value for value in nll.values()], rel=1e-5)
    assert nll[1] == column(plain.path, "train/nll")[1]  # the likelihood is reported as without
    assert run.summary["own_parts"] == ["objective"] and "own_parts" not in plain.summary
    assert evaluate(run)["test"]["exact_match"] == run.summary["test"]["exact_match"]
    with pytest.raises(OpenBookError, match=r"other parts of the caller's own: got none, expected objective"):
        resume(run)


def test_an_own_retriever_is_trained_saved_and_resumed(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run", "optim.lr=0.01"), retriever=learnt)
    bias = bias_of(run.path)
    assert bias[:3].abs().min() > 0 and not bias[3:].any()  # those that were read have moved
    groups = read_checkpoint(run.path / "checkpoints/last.ckpt")["optimizer_states"][0]["param_groups"]
    assert "retriever_no_decay" in {group["name"] for group in groups}

    part = small_system.config(tmp_path / "part", "optim.lr=0.01")
    train_until(part, 4, retriever=learnt)
    assert not torch.equal(bias_of(tmp_path / "part"), bias)
    again = resume(tmp_path / "part", retriever=learnt)
    assert torch.equal(bias_of(again.path), bias)
    assert again.predictions == run.predictions

    assert evaluate(run, retriever=learnt)["test"] == run.summary["test"]
    one = load_run(run.path, retriever=learnt).answer([run.predictions[0].question])[0]
    assert one.prediction == run.predictions[0].prediction
    with pytest.raises(OpenBookError, match="expected retriever"):
        evaluate(run)
    with pytest.raises(OpenBookError, match="expected retriever"):
        load_run(run.path).answer(["who ?"])


def test_an_own_retriever_is_an_object_a_function_or_a_class(small_data: Path, tmp_path: Path) -> None:
    class OfCorpus(Learnt):
        def __init__(self, corpus: Corpus):
            super().__init__(corpus.n_passages)

    corpus = build_corpus(small_data / "passages.jsonl", {}, tmp_path)
    made = Learnt(corpus.n_passages)
    assert OwnParts(retriever=made).retriever_over(corpus) is made
    for factory in (learnt, OfCorpus):
        assert isinstance(OwnParts(retriever=factory).retriever_over(corpus), Learnt)
    assert OwnParts().retriever_over(corpus) is None
    with pytest.raises(OpenBookError, match=r"not a retriever \(retriever\): got int, expected a subclass of openbook"):
        OwnParts(retriever=lambda corpus: 3).retriever_over(corpus)  # type: ignore[arg-type, return-value]


def test_own_parts_where_nothing_is_marginalised_are_refused(small_system: SmallSystem, tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match=r"cannot be used here \(objective\): got closed_book"):
        train(small_system.config(tmp_path / "run", "objective=closed_book"), retriever=learnt)
    with pytest.raises(OpenBookError, match=r"there are none \(generator\.reads\): got all, expected one"):
        train(small_system.config(tmp_path / "run", "objective=emdr2", "generator.reads=all"), objective=doubled)
    assert not (tmp_path / "run").exists()


def test_the_lines_that_readme_shows(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    monkeypatch.setattr(openbook, "load_experiment", lambda *_: small_system.config(tmp_path / "run"), raising=False)
    exec(compile(code, str(README), "exec"), {})
    said = capsys.readouterr().out
    assert "What is the capital of Iceland? -> " in said
    assert len(re.findall(r"^  \d\.\d\d -> \d\.\d\d  ", said, re.MULTILINE)) == 2 * 3  # questions x passages
    assert re.search(r"^  \(end\)  ", said, re.MULTILINE)


def test_a_run_that_left_nothing_behind_starts_again_with_own_parts(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run"), retriever=learnt)
    (run.path / "summary.json").unlink()
    (run.path / "checkpoints/last.ckpt").unlink()
    again = resume(run, retriever=learnt)
    assert again.summary["own_parts"] == ["retriever"] and again.summary["status"] == "finished"
