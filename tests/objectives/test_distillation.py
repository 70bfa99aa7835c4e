"""EMDR2, Perplexity Distillation and LOOP against loops written from the papers, against numbers derived by hand, their
gradients, and runs through the front door."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openbook.commands.evaluate import evaluate
from openbook.commands.train import resume, train
from openbook.errors import OpenBookError
from openbook.objectives.by_name import LIKELIHOOD_OF, OBJECTIVES, loss_of
from openbook.objectives.marginal import doc_logprobs, rag_token_nll
from openbook.tracking.checkpoint import read_checkpoint
from tests.objectives.test_marginal import BATCH, N_DOCS, TARGET_LEN, example
from tests.references import loops
from tests.small_system import SmallSystem, column, train_until

TEMPERATURE = 0.7
NAMES = ("emdr2", "perplexity_distillation", "leave_one_out")
MISSING = -math.inf

Tokens = list[list[float]]


def likelihood(tokens: list[float], mask: list[bool]) -> float:
    """p(y|x,z_k) of one passage."""
    return math.prod(math.exp(value) for value, counts in zip(tokens, mask, strict=True) if counts)


def target_of(name: str, tokens: Tokens, scores: list[float], mask: list[bool]) -> list[float]:
    """What the retriever is asked to match; for EMDR2 the posterior, which its gradient has in the target's place."""
    present = [k for k in range(N_DOCS) if scores[k] != MISSING]
    if name == "emdr2":
        return loops.posterior_sequence(tokens, scores, mask)
    weights = [0.0] * N_DOCS
    for k in present:
        if name == "perplexity_distillation":
            weights[k] = likelihood(tokens[k], mask) ** (1 / TEMPERATURE)
        elif len(present) > 1:
            others = [score if j != k else MISSING for j, score in enumerate(scores)]
            weights[k] = math.exp(loops.rag_token(tokens, others, mask) / TEMPERATURE)
    return [weight / (sum(weights) or 1.0) for weight in weights]


def loss_in_loops(name: str, tokens: Tokens, scores: list[float], mask: list[bool]) -> float:
    generator_term = loops.rag_token(tokens, scores, mask)
    if name == "emdr2":
        return generator_term + loops.rag_sequence(tokens, scores, mask)
    divergence = 0.0
    for target, prior in zip(target_of(name, tokens, scores, mask), loops.prior(scores), strict=True):
        if target > 0:
            divergence += target * math.log(target / prior)
    return generator_term + divergence


def loss(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return loss_of(name, TEMPERATURE)


def lists(*tensors: Tensor) -> list[tuple[Tokens, list[float], list[bool]]]:
    return list(zip(*(tensor.tolist() for tensor in tensors), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_loops_in_float64(name: str) -> None:
    inputs = example()
    expected = [loss_in_loops(name, *one) for one in lists(*inputs)]
    assert loss(name)(*inputs).tolist() == pytest.approx(expected, abs=1e-12)


def test_two_passages_two_tokens_by_hand() -> None:
    """Prior 3/4 and 1/4 (scores log 3 and 0). Passage one gives the tokens 1/2 and 1/5, passage two 1/10 and 4/5: 1/10
    and 8/100 for the answer, 0.095 by RAG-Sequence, 0.14 by RAG-Token.

    EMDR2: -log 0.14 - log 0.095. Perplexity Distillation: target 10/18 and 8/18. LOOP: without passage one, 8/100 is
    left, so its weight is 100/8 against 10: target 10/18 and 8/18 again, as with two passages it must be.
    """
    token_logprobs = torch.tensor([[[1 / 2, 1 / 5], [1 / 10, 4 / 5]]], dtype=torch.float64).log()
    doc_scores = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    inputs = token_logprobs, doc_scores, torch.ones(1, 2, dtype=torch.bool)
    divergence = 10 / 18 * math.log((10 / 18) / (3 / 4)) + 8 / 18 * math.log((8 / 18) / (1 / 4))
    assert OBJECTIVES["emdr2"](*inputs).item() == pytest.approx(-math.log(0.14 * 0.095), rel=1e-12)
    for name in ("perplexity_distillation", "leave_one_out"):
        assert OBJECTIVES[name](*inputs).item() == pytest.approx(divergence - math.log(0.14), rel=1e-12)


def test_leaving_one_of_three_out_by_hand() -> None:
    """One token, prior 1/2, 1/4, 1/4; the passages give it 1/2, 1/4 and 1/8.

    Without the first, 1/2 * 1/4 + 1/2 * 1/8 = 3/16; without the second, 2/3 * 1/2 + 1/3 * 1/8 = 3/8; without the third,
    2/3 * 1/2 + 1/3 * 1/4 = 5/12. Targets are as 16/3 : 8/3 : 12/5 = 80 : 40 : 36.
    """
    token_logprobs = torch.tensor([[[1 / 2], [1 / 4], [1 / 8]]], dtype=torch.float64).log()
    doc_scores = torch.tensor([[1 / 2, 1 / 4, 1 / 4]], dtype=torch.float64).log().requires_grad_()
    OBJECTIVES["leave_one_out"](token_logprobs, doc_scores, torch.ones(1, 1, dtype=torch.bool)).sum().backward()
    expected = torch.tensor([[1 / 2 - 80 / 156, 1 / 4 - 40 / 156, 1 / 4 - 36 / 156]], dtype=torch.float64)
    torch.testing.assert_close(doc_scores.grad, expected, atol=1e-15, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_retriever_is_pulled_from_its_prior_to_the_target(name: str) -> None:
    token_logprobs, doc_scores, mask = example()
    loss(name)(token_logprobs, doc_scores.requires_grad_(), mask).sum().backward()
    expected = []
    for tokens, scores, counts in lists(token_logprobs, doc_scores.detach(), mask):
        target = target_of(name, tokens, scores, counts)
        expected.append([p - t for p, t in zip(loops.prior(scores), target, strict=True)])
    torch.testing.assert_close(doc_scores.grad, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_learns_what_it_learns_in_rag_token(name: str) -> None:
    """The retriever's term is no lesson for the generator, and the generator's none for the retriever."""
    token_logprobs, doc_scores, mask = example()
    grads = []
    for objective in (loss(name), rag_token_nll):
        leaf = token_logprobs.clone().requires_grad_()
        objective(leaf, doc_scores, mask).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-15, rtol=0)


@pytest.mark.parametrize("name", ["perplexity_distillation", "leave_one_out"])
def test_the_temperature_sharpens_the_target(name: str) -> None:
    token_logprobs, doc_scores, mask = example()
    doc_scores = torch.zeros_like(doc_scores)
    divergence = [
        loss_of(name, temperature)(token_logprobs, doc_scores, mask) - rag_token_nll(token_logprobs, doc_scores, mask)
        for temperature in (1e6, 1.0, 1e-6)
    ]
    assert divergence[0].abs().max() < 1e-9  # a flat target is this prior
    torch.testing.assert_close(divergence[2], torch.full((BATCH,), math.log(N_DOCS), dtype=torch.float64))
    assert (divergence[0] < divergence[1]).all() and (divergence[1] < divergence[2]).all()


@pytest.mark.parametrize("name", NAMES)
def test_missing_passages_have_no_influence_and_no_gradient(name: str) -> None:
    token_logprobs, doc_scores, mask = example()
    missing = doc_scores.isinf()
    other = torch.where(missing[:, :, None], -1e4, token_logprobs)
    token_logprobs.requires_grad_(), doc_scores.requires_grad_()
    found = loss(name)(token_logprobs, doc_scores, mask)
    torch.testing.assert_close(found, loss(name)(other, doc_scores, mask))
    found.sum().backward()
    assert token_logprobs.grad is not None and doc_scores.grad is not None
    assert token_logprobs.grad[missing].abs().max() == doc_scores.grad[missing].abs().max() == 0
    assert torch.isfinite(token_logprobs.grad).all() and torch.isfinite(doc_scores.grad).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_passage_or_none_gives_no_nan(name: str, dtype: torch.dtype) -> None:
    token_logprobs, doc_scores, mask = example()
    doc_scores[3], doc_scores[4, 1:] = MISSING, MISSING
    leaves = token_logprobs.to(dtype).requires_grad_(), doc_scores.to(dtype).requires_grad_()
    found = loss(name)(*leaves, mask)
    assert found[3].item() == math.inf
    assert found[[0, 1, 2, 4, 5, 6]].isfinite().all()
    reader = rag_token_nll(*leaves, mask)[4]
    torch.testing.assert_close(found[4], 2 * reader if name == "emdr2" else reader)  # certain of its only passage
    torch.where(found.isfinite(), found, 0.0).sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None and leaf.grad.isfinite().all() and (leaf.grad[3] == 0).all()
    assert leaves[1].grad is not None and leaves[1].grad[4].abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_column_of_one_passage(name: str) -> None:
    token_logprobs, _, mask = example()
    found = loss(name)(token_logprobs[:, :1], torch.randn(BATCH, 1, dtype=torch.float64), mask)
    reader = -(token_logprobs[:, 0] * mask).sum(-1)
    torch.testing.assert_close(found, 2 * reader if name == "emdr2" else reader)


@pytest.mark.parametrize("name", NAMES)
def test_fp32_whatever_the_inputs_are(name: str) -> None:
    token_logprobs, doc_scores, mask = example()
    scores = (75 + doc_scores.float() / 100).clamp(min=70)
    with torch.autocast("cpu", torch.bfloat16):
        half = loss(name)(token_logprobs.bfloat16(), scores, mask)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(name)(token_logprobs.bfloat16().float(), scores, mask))


@pytest.mark.parametrize("name", NAMES)
def test_an_unlikely_answer_has_a_target_all_the_same(name: str) -> None:
    """exp(-4000) is 0 in any float: what counts are differences."""
    token_logprobs, doc_scores, mask = example()
    doc_scores.requires_grad_()
    loss(name)(token_logprobs.float() - 4000 / TARGET_LEN, doc_scores, mask).sum().backward()
    assert doc_scores.grad is not None and doc_scores.grad.isfinite().all()
    prior = doc_logprobs(doc_scores.detach()).exp()
    torch.testing.assert_close((prior - doc_scores.grad).sum(-1), torch.ones(BATCH, dtype=torch.float64))


def test_every_objective_has_a_likelihood_to_report() -> None:
    assert LIKELIHOOD_OF.keys() == OBJECTIVES.keys()
    assert {LIKELIHOOD_OF[name] for name in NAMES} == {"rag_token"}
    assert all(LIKELIHOOD_OF[reading] == reading for reading in LIKELIHOOD_OF.values())


# Runs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_run_trains_resumes_and_is_evaluated(name: str, small_system: SmallSystem, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    words = f"objective={name}", "trainer.max_steps=12", "trainer.checkpoint_every=3", "evaluate.before_training=false"
    whole = train(small_system.config(tmp_path / "a" / "run", *words))
    nll, losses = column(whole, "train/nll"), column(whole, "train/loss")
    assert sum(list(nll.values())[-3:]) < 0.9 * sum(list(nll.values())[:3])
    assert losses.keys() == nll.keys()
    assert all(losses[step] > nll[step] for step in nll)  # both further terms are positive
    train_until(small_system.config(tmp_path / "b" / "run", *words), 4)
    resumed = resume(str(tmp_path / "b" / "run"), [])
    for key in ("train/nll", "train/loss", "train/posterior_entropy", "refresh/overlap_at_k"):
        assert column(resumed, key) == pytest.approx(column(whole, key), rel=1e-5, abs=1e-6), key
    result = json.loads(evaluate(str(whole), []).read_text())
    assert result["test"] == json.loads((whole / "summary.json").read_text())["test"]


@pytest.mark.filterwarnings("ignore")
def test_the_distillation_temperature_reaches_the_loss(small_system: SmallSystem, tmp_path: Path) -> None:
    first = {}
    for temperature in (1, 1000):
        (tmp_path / str(temperature)).mkdir()
        run = train(
            small_system.config(
                tmp_path / str(temperature) / "run",
                "objective=perplexity_distillation",
                "trainer.max_steps=1",
                f"distill_temperature={temperature}",
                "evaluate.before_training=false",
                "data.test=",
            )
        )
        first[temperature] = column(run, "train/loss")[1], column(run, "train/nll")[1]
    assert first[1][1] == first[1000][1]
    assert first[1][0] != pytest.approx(first[1000][0], rel=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_both_encoders_and_the_generator_learn(small_system: SmallSystem, tmp_path: Path) -> None:
    words = "objective=leave_one_out", "trainer.checkpoint_every=1", "data.test=", "evaluate.before_training=false"
    weights = []
    for steps in (1, 2):
        (tmp_path / str(steps)).mkdir()
        run = train(small_system.config(tmp_path / str(steps) / "run", *words, f"trainer.max_steps={steps}"))
        weights.append(read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"])
    moved = {
        name.split(".")[1] if name.startswith("retriever") else "generator"
        for name, value in weights[0].items()
        if not torch.equal(value, weights[1][name])
    }
    assert moved == {"question_encoder", "passage_encoder", "generator"}


def test_a_temperature_of_zero_is_refused(small_system: SmallSystem, tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match="distill_temperature"):
        small_system.config(tmp_path / "run", "distill_temperature=0")
