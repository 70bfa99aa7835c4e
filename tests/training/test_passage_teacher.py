"""Positive passages beside the generator: the loss by hand, the gate, and that ranks and resuming change nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.batch import MISSING_ROW, Batch, Retrieved
from openbook.commands.train import resume, train
from openbook.metrics.matching import has_answer
from openbook.setup.prepare import prepare
from openbook.training.passage_teacher import DOUBT, FOLLOWED, KEPT, Lesson, PassageTeacher
from openbook.training.rag_module import RagModule
from tests.small_system import SmallSystem, column, train_until

BOTH = "retriever.teacher=both"


@pytest.fixture
def system(small_system: SmallSystem, tmp_path: Path) -> tuple[RagModule, Batch]:
    """The module with an index, and a batch of training questions."""
    prepared = prepare(small_system.config(tmp_path / "run", BOTH, "trainer.batch_size=6"))
    module: Any = prepared.module()
    prepared.refresh().manager.ensure(module.retriever, 0)
    return module, next(iter(prepared.questions.train_dataloader()))


def scored(system: tuple[RagModule, Batch]) -> tuple[Any, Any, Retrieved, torch.Tensor, Lesson]:
    module, batch = system
    retriever: Any = module.retriever
    queries = retriever.represent(batch)
    retrieved = retriever.retrieve(queries, 3)
    assert module.teacher is not None
    doc_scores, lesson = module.teacher.scores(retriever, queries, retrieved, batch, torch.arange(len(queries)))
    return retriever, queries, retrieved, doc_scores, lesson


def test_the_loss_is_dprs_over_all_passages_that_the_batch_reads(system: tuple[RagModule, Batch]) -> None:
    module, batch = system
    retriever, queries, retrieved, doc_scores, lesson = scored(system)
    torch.testing.assert_close(doc_scores, retriever.score(queries, retrieved))
    assert module.teacher is not None
    corpus, passages = module.teacher.passages.corpus, module.teacher.passages
    gold = [corpus.row_of(example.positive_ids[0]) for example in batch.examples]
    everything = sorted({*retrieved.rows.flatten().tolist(), *gold} - {MISSING_ROW})
    embedded = retriever.passages.encode(torch.tensor(everything)).double()
    for place, example in enumerate(batch.examples):
        terms = []
        for row, embedding in zip(everything, embedded, strict=True):
            score = float(queries[place].double() @ embedding) / retriever.temperature
            if row == gold[place]:
                right = score
            if row == gold[place] or not has_answer(corpus.passage(row).text, example.answers):
                terms.append(math.exp(score))
        assert float(lesson.nll[place]) == pytest.approx(math.log(sum(terms)) - right, rel=1e-4, abs=1e-5)
        for rank, row in enumerate(retrieved.rows[place].tolist()):
            assert bool(lesson.relevant[place, rank]) == (row == gold[place])
            holds = has_answer(corpus.passage(row).text, example.answers)
            assert bool(lesson.other[place, rank]) == (row != gold[place] and not holds)
    assert lesson.known.all() and passages.positives(batch) == gold


def test_the_marginals_gradient_goes_through_the_gate_and_no_other(system: tuple[RagModule, Batch]) -> None:
    module, _ = system
    teacher = module.teacher
    assert teacher is not None
    weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))

    def gradient(gate: float, of_lesson: bool) -> torch.Tensor:
        teacher.load([0.5 + gate * (FOLLOWED - 0.5), 1.0])
        assert teacher.gate == pytest.approx(gate)
        module.zero_grad()
        *_, doc_scores, lesson = scored(system)
        (lesson.nll.sum() if of_lesson else (doc_scores * weight).sum()).backward()
        return torch.cat([p.grad.flatten() for p in module.retriever.parameters() if p.grad is not None])

    whole = gradient(1.0, False)
    assert whole.abs().max() > 0
    torch.testing.assert_close(gradient(0.25, False), 0.25 * whole, rtol=1e-4, atol=1e-7)
    assert gradient(0.0, False).abs().max() == 0
    torch.testing.assert_close(gradient(0.0, True), gradient(1.0, True))


def test_an_answer_of_many_tokens_counts_no_more_than_a_positive_passage(system: tuple[RagModule, Batch]) -> None:
    module, _ = system
    assert module.teacher is not None
    module.teacher.load([1.0, 1.0])
    handed = torch.tensor(
        [[1.0, -1.0, 0.0], [5.0, -3.0, -2.0], [0.1, 0.0, 0.0], [0.0] * 3, [-30.0, 0, 30], [2.0, 0, 0]]
    )
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 0.0])
    module.teacher.weigh(weight)
    expected = handed.clone()
    expected[1] *= 2 / 10
    expected[4] *= 1 / 60
    expected[5] *= 0
    torch.testing.assert_close(module.teacher._gated(handed), expected)


def test_a_pass_of_several_counts_no_more_than_one(
    system: tuple[RagModule, Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning divides the loss of a pass by the number of passes, and the loss is scaled up for it."""
    module, batch = system
    assert module.teacher is not None
    teacher, found = module.teacher, []
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    # So little that it binds: the answers here are of a token or two.
    monkeypatch.setattr(teacher, "weigh", lambda weight: PassageTeacher.weigh(teacher, weight / 100))
    for passes in (1, 4):
        monkeypatch.setattr(RagModule, "accumulate", passes)
        monkeypatch.setattr(RagModule, "loss_scale", lambda module, _: float(module.accumulate))
        teacher.load([1.0, 1.0])
        module.zero_grad()
        (module.training_step(batch, 0)["loss"] / passes).backward()
        found.append(torch.cat([p.grad.flatten() for p in module.retriever.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-7)


def test_agreement_by_hand() -> None:
    teacher = PassageTeacher(None)  # type: ignore[arg-type]
    assert (teacher.agreement, teacher.gate) == (0.5, 0.0)
    sums = torch.tensor([[-1.0, -2.0, -3.0], [-2.0, -1.0, -1.0], [-5.0, -1.0, -1.0], [-1.0, -9.0, -9.0]])
    logprobs = torch.stack([sums, torch.zeros(4, 3)], 2)
    relevant = torch.tensor([[True, False, False], [True, False, False], [False] * 3, [True, False, False]])
    other = torch.tensor([[False, True, True], [False, True, False], [True] * 3, [False, True, True]])
    lesson = Lesson(torch.zeros(4), torch.ones(4), relevant, other)
    # The first question agrees in both pairs, the second in none; the third has no relevant passage; the last has no
    # weight.
    teacher.measure(logprobs, lesson, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert teacher.agreement == pytest.approx((KEPT * DOUBT / 2 + 1) / (KEPT * DOUBT + 2))
    for _ in range(60):
        teacher.measure(logprobs[:1], Lesson(*(part[:1] for part in lesson)), torch.ones(1))
    assert teacher.agreement == pytest.approx(1, abs=0.01) and teacher.gate == 1


def test_a_killed_run_goes_on_with_its_gate(small_system: SmallSystem, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = train(small_system.config(tmp_path / "a" / "run", BOTH))
    train_until(small_system.config(tmp_path / "b" / "run", BOTH, "trainer.checkpoint_every=3"), 3)
    resumed = resume(str(tmp_path / "b" / "run"), [])
    for name in ("train/nll", "train/positive_nll", "train/agreement", "train/gate"):
        assert column(resumed, name) == column(whole, name) and column(whole, name), name


def test_two_ranks_teach_as_one(small_system: SmallSystem, tmp_path: Path) -> None:
    folders = {}
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        folders[ranks] = tmp_path / str(ranks) / "run"
        more = (BOTH, f"trainer.devices={ranks}", f"trainer.batch_size={6 // ranks}", "data.test=")
        done = small_system.command("train", *small_system.words(folders[ranks], *more))
        assert done.returncode == 0, done.stdout[-4000:]
    for name in ("train/nll", "train/positive_nll", "train/agreement", "train/grad_norm", "validation/mrr"):
        one, two = (column(folders[ranks], name) for ranks in (1, 2))
        assert one and one == pytest.approx(two, rel=1e-3), name
