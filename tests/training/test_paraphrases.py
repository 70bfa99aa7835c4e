"""Learning from other wordings of a question: the loss by hand, and who gets its gradient."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.batch import Batch, Paraphrases
from openbook.commands.train import train
from openbook.objectives import OBJECTIVES
from openbook.setup.prepare import prepare
from openbook.training.rag_module import RagModule
from tests.small_system import SmallSystem, column

N = 4  # questions of the batch


@pytest.fixture(params=["generator", "both"])
def system(request: pytest.FixtureRequest, small_system: SmallSystem, tmp_path: Path) -> tuple[RagModule, Batch]:
    prepared = prepare(small_system.config(tmp_path / "run", f"retriever.teacher={request.param}"))
    module: Any = prepared.module()
    prepared.refresh().manager.ensure(module.retriever, 0)
    return module.eval(), next(iter(prepared.questions.train_dataloader()))


def repeated(batch: Batch, of: list[int]) -> Batch:
    """With questions of the batch as their own paraphrases."""
    numbers = torch.tensor(of, dtype=torch.int64)
    return replace(batch, paraphrases=Paraphrases(batch.question_ids[of], batch.question_mask[of], numbers))


def step(module: RagModule, batch: Batch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a training step gives, and the gradients by parameter."""
    module.zero_grad()
    if module.teacher is not None:
        module.teacher.load([0.7, 1.0])  # the same gate at every step
    measured = module.training_step(batch, 0)
    measured["loss"].backward()
    return measured, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("of", [[0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3]])
def test_a_question_as_its_own_paraphrase_teaches_the_retriever_again_and_the_generator_once(
    system: tuple[RagModule, Batch], of: list[int]
) -> None:
    module, batch = system
    plain, once = step(module, batch)
    more, again = step(module, repeated(batch, of))
    times = 1 + len(of) // N
    assert torch.equal(plain["rows"], more["rows"])
    torch.testing.assert_close(more["loss"], times * plain["loss"])
    assert once.keys() == again.keys()
    for name, gradient in once.items():
        factor = times if name.startswith("retriever") else 1
        torch.testing.assert_close(again[name], factor * gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_loss_is_the_objective_under_the_paraphrases_prior(system: tuple[RagModule, Batch]) -> None:
    module, batch = system
    of = [0, 0, 3]
    ids, mask = batch.question_ids[[1, 2, 1]], batch.question_mask[[1, 2, 1]]
    asked = replace(batch, paraphrases=Paraphrases(ids, mask, torch.tensor(of)))
    if module.teacher is not None:
        pytest.skip("the positive passages' part is in the test above")
    measured, _ = step(module, asked)
    retriever: Any = module.retriever
    vectors = retriever.question_encoder(ids, mask)
    expected = measured["nll"].double().mean()
    for wording, question in enumerate(of):
        embedded = retriever.passages.encode(measured["rows"][question])
        scores = (embedded @ vectors[wording]) / retriever.temperature
        token_logprobs = measured["token_logprobs"][question].detach()
        nll = OBJECTIVES["rag_token"](token_logprobs[None], scores[None], batch.target_mask[[question]])
        expected = expected + nll.double().sum() / N
    torch.testing.assert_close(measured["loss"].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_question_that_does_not_count_has_no_paraphrases_that_do(system: tuple[RagModule, Batch]) -> None:
    module, batch = system
    weight = torch.tensor([1.0, 1, 0, 1])  # as at the end of an epoch
    batch = replace(batch, weight=weight)
    first, _ = step(module, repeated(batch, [0, 1, 2, 3]))
    second, _ = step(module, repeated(batch, [0, 1, 2, 2, 2, 3]))
    torch.testing.assert_close(first["loss"], second["loss"])


def test_a_run_reads_them_from_its_training_questions_alone(small_system: SmallSystem, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (small_system.data / "train.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["paraphrases"] = [rows[number - 1]["question"], rows[number - 2]["question"]][: number % 3]
    path = tmp_path / "worded.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    losses, memory = {}, {}
    for name, words in {"none": ("retriever.paraphrases=0",), "one": ("retriever.paraphrases=1",), "all": ()}.items():
        run = tmp_path / name
        train(small_system.config(run, f"data.train={path}", "trainer.max_steps=2", *words))
        losses[name] = column(run, "train/nll")
        memory[name] = json.loads((run / "plan.json").read_text(encoding="utf-8"))["models"]["activations"]
    plain = tmp_path / "plain"
    train(small_system.config(plain, "trainer.max_steps=2"))
    assert column(plain, "train/nll") == losses["none"]
    assert len({str(values) for values in losses.values()}) == 3
    assert memory["none"] < memory["one"] < memory["all"]  # the plan counts them
