"""The fused loss against the plain formula: values, every gradient, every edge; and training through it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openbook.commands.train import train
from openbook.errors import OpenBookError
from openbook.objectives.by_name import OBJECTIVES
from openbook.objectives.fused import FusedLoss, Objective, _chunks, fused_marginal_nll
from openbook.objectives.marginal import doc_logprobs, rag_sequence_nll, rag_token_nll, token_logprobs_of
from openbook.training import rag_module as training
from tests.small_system import SmallSystem, column

BATCH, N_DOCS, TARGET_LEN, DIM, VOCAB = 7, 3, 5, 11, 53
ROW = VOCAB * 8  # bytes of one target position's logits in float64
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@dataclass
class Case:
    """Ragged targets (whole, one token, only the end, none at all), questions with 3, 2, 1 and 0 passages."""

    hidden: Tensor
    head: Tensor
    bias: Tensor | None
    labels: Tensor
    scores: Tensor
    weight: Tensor

    def grads(self) -> list[Tensor]:
        leaves = [value for value in (self.hidden, self.head, self.bias, self.scores) if value is not None]
        found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone() for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        return found

    def fused(self, objective: Objective, smoothing: float = 0.0, rows: int = 1000) -> FusedLoss:
        return fused_marginal_nll(
            self.hidden,
            self.head,
            self.bias,
            self.labels,
            self.scores,
            objective,
            self.weight,
            smoothing,
            chunk_bytes=rows * ROW,
        )

    def plain(self, objective: Objective, smoothing: float = 0.0) -> FusedLoss:
        logits = torch.nn.functional.linear(self.hidden, self.head, self.bias)
        labels = self.labels[:, None].expand(self.hidden.shape[:3])
        logprobs = token_logprobs_of(logits, labels, smoothing)
        nll = objective(logprobs, self.scores, self.labels >= 0)
        loss = (torch.where(nll != torch.inf, nll, 0.0) * self.weight).sum()
        present = (self.scores != -torch.inf)[..., None]
        unsmoothed = token_logprobs_of(logits, labels)  # what is reported is the likelihood itself
        return FusedLoss(loss, nll.detach(), torch.where(present, unsmoothed, 0.0).detach())


def case(batch: int = BATCH, n_docs: int = N_DOCS, bias: bool = True, dtype: torch.dtype = torch.float64) -> Case:
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    hidden = normal(batch, n_docs, TARGET_LEN, DIM).requires_grad_()
    head, scores = normal(VOCAB, DIM).requires_grad_(), normal(batch, n_docs)
    labels = torch.randint(VOCAB, (batch, TARGET_LEN), generator=draw)
    for question, length in {1: 1, 2: 3, 4: 0, 5: 1}.items():
        labels[question:][:1, length:] = -100
    if n_docs > 1:
        scores[1:][:1, 1] = scores[2:][:1, 1:] = scores[3:][:1] = -torch.inf
    weight = torch.rand(batch, generator=draw, dtype=torch.float64).to(dtype)
    weight[6:][:1] = 0
    return Case(hidden, head, normal(VOCAB).requires_grad_() if bias else None, labels, scores.requires_grad_(), weight)


def compare(case: Case, objective: Objective, smoothing: float = 0.0, rows: int = 1000, **tolerance: float) -> None:
    plain = case.plain(objective, smoothing)
    (0.7 * plain.loss).backward()
    wanted = case.grads()
    fused = case.fused(objective, smoothing, rows)
    (0.7 * fused.loss).backward()
    torch.testing.assert_close(tuple(fused), tuple(plain), **(tolerance or EXACT))
    for found, expected in zip(case.grads(), wanted, strict=True):
        torch.testing.assert_close(found, expected, **(tolerance or EXACT))


# rows of the questions that have any: 15, 2, 3, 0, 0, 3, 15
@pytest.mark.parametrize("rows", [1, 2, 4, 15, 20, 37, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("objective", [rag_token_nll, rag_sequence_nll])
def test_equals_the_plain_formula(objective: Objective, smoothing: float, rows: int) -> None:
    """Questions longer than a chunk, chunks of one question, of some and of all."""
    compare(case(), objective, smoothing, rows)


@pytest.mark.parametrize("rows", [2, 1000])
def test_closed_book_and_one_passage(rows: int) -> None:
    for objective in OBJECTIVES.values():
        compare(case(n_docs=1), objective, 0.1, rows)


def emdr2(token_logprobs: Tensor, doc_scores: Tensor, target_mask: Tensor) -> Tensor:
    """Another objective by its signature alone: each passage reads by itself, the retriever learns from a constant."""
    alone = torch.where(target_mask[:, None], token_logprobs, 0.0).sum(-1)
    prior = torch.where(doc_scores != -torch.inf, doc_logprobs(doc_scores), -50.0)
    return -alone.mean(1) - torch.logsumexp(prior + alone.detach(), 1)


@pytest.mark.parametrize("rows", [4, 1000])
def test_any_objective_of_the_same_signature(rows: int) -> None:
    whole = case()
    whole.scores = torch.randn(BATCH, N_DOCS, dtype=torch.float64, requires_grad=True)
    compare(whole, emdr2, 0.0, rows)


@pytest.mark.parametrize("rows", [4, 1000])
def test_missing_passages_and_questions_without_any(rows: int) -> None:
    here = case()
    with torch.no_grad():
        here.hidden[3] = torch.nan  # read by nobody
        here.hidden[1, 1] = torch.nan
    found = here.fused(rag_token_nll, 0.1, rows)
    found.loss.backward()
    assert found.nll[3] == torch.inf and found.nll[[0, 1, 2, 4, 5, 6]].isfinite().all()
    assert found.loss.isfinite() and all(grad.isfinite().all() for grad in (here.hidden.grad, here.head.grad))
    assert here.hidden.grad is not None and here.scores.grad is not None
    assert not here.hidden.grad[[3, 4, 6]].any() and not here.hidden.grad[1, 1].any() and here.hidden.grad[1, 0].any()
    assert not here.scores.grad[[3, 6]].any() and here.scores.grad[0].all()
    assert not here.fused(rag_token_nll, rows=rows).token_logprobs[3].any()


def test_a_diverged_state_is_not_hidden() -> None:
    here = case()
    with torch.no_grad():
        here.hidden[0, 0, 0] = torch.nan
    assert here.fused(rag_token_nll).loss.isnan()


@pytest.mark.parametrize("rows", [4, 1000])
@pytest.mark.parametrize("frozen", ["hidden", "head", "bias", "scores"])
def test_what_is_frozen_gets_no_gradient(frozen: str, rows: int) -> None:
    here = case()
    getattr(here, frozen).requires_grad_(False)
    here.fused(rag_sequence_nll, rows=rows).loss.backward()
    assert getattr(here, frozen).grad is None
    here.grads()
    compare(here, rag_sequence_nll, 0.1, rows)


@pytest.mark.parametrize("rows", [4, 1000])
def test_no_bias(rows: int) -> None:
    compare(case(bias=False), rag_token_nll, 0.1, rows)


def test_nothing_wanted_is_nothing_kept() -> None:
    here = case()
    with torch.no_grad():
        silent = here.fused(rag_token_nll, rows=4)
    loud = here.fused(rag_token_nll, rows=4)
    assert loud.loss.requires_grad and not silent.loss.requires_grad
    assert not loud.nll.requires_grad and not loud.token_logprobs.requires_grad
    torch.testing.assert_close(tuple(silent), tuple(value.detach() for value in loud), **EXACT)
    with torch.inference_mode():
        torch.testing.assert_close(here.fused(rag_token_nll).loss, loud.loss.detach(), **EXACT)


def test_no_questions_at_all() -> None:
    here = case(batch=0)
    found = here.fused(rag_token_nll)
    found.loss.backward()
    assert found.loss == 0 and found.nll.shape == (0,) and found.token_logprobs.shape == (0, N_DOCS, TARGET_LEN)
    assert here.head.grad is not None and not here.head.grad.any()


def test_non_contiguous_hidden_states_and_weight_by_default() -> None:
    here = case()
    turned = here.hidden.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    assert not turned.is_contiguous()
    fused_marginal_nll(turned, here.head, None, here.labels, here.scores, rag_token_nll).loss.backward()
    head_grad, here.head.grad, here.bias = here.head.grad, None, None
    here.weight = torch.ones(BATCH, dtype=torch.float64)
    here.plain(rag_token_nll).loss.backward()
    torch.testing.assert_close((turned.grad, head_grad), (here.hidden.grad, here.head.grad), **EXACT)


def test_tied_embeddings_and_accumulation() -> None:
    """The same matrix embeds and scores, over two backward passes without zeroing between them."""
    grads = []
    for kind in ("plain", "fused"):
        here = case()
        for share in (1.0, 0.3):
            embedded = torch.nn.functional.embedding(here.labels.clamp(min=0), here.head)
            tied = Case(here.hidden + embedded[:, None].tanh(), *list(vars(here).values())[1:])
            (share * getattr(tied, kind)(rag_token_nll).loss).backward()
        grads.append((here.head.grad, here.hidden.grad, here.scores.grad))
    torch.testing.assert_close(grads[1], grads[0], **EXACT)


@pytest.mark.parametrize("rows", [2, 1000])
@pytest.mark.parametrize("objective", [rag_token_nll, rag_sequence_nll])
def test_gradcheck(objective: Objective, rows: int) -> None:
    here = case(batch=2)
    hidden, head = here.hidden.detach()[:, :, :2, :3], here.head.detach()[:7, :3]
    labels, bias = torch.tensor([[3, 6], [1, -100]]), torch.randn(7, dtype=torch.float64)
    scores = torch.tensor([[0.3, -0.2, 0.9], [0.1, 0.4, 0.7]], dtype=torch.float64)

    def loss(hidden: Tensor, head: Tensor, bias: Tensor, scores: Tensor) -> Tensor:
        return fused_marginal_nll(hidden, head, bias, labels, scores, objective, None, 0.1, rows * 7 * 8, True).loss

    inputs = [value.clone().requires_grad_() for value in (hidden, head, bias, scores)]
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("objective", [rag_token_nll, rag_sequence_nll])
@pytest.mark.parametrize("rows", [8, 4000])
def test_bf16_autocast_is_near_fp32(objective: Objective, rows: int) -> None:
    """Products in bf16, log-softmax and scores in fp32: as near to fp32 as the plain formula under autocast."""
    exact = case(dtype=torch.float32)
    exact.plain(objective).loss.backward()
    wanted = exact.grads()
    errors: dict[str, list[float]] = {}
    for kind in ("plain", "fused"):
        here = case(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            found = here.plain(objective) if kind == "plain" else here.fused(objective, rows=rows)
        found.loss.backward()
        grads = here.grads()
        assert found.loss.dtype == found.token_logprobs.dtype == grads[1].dtype == torch.float32
        errors[kind] = [float((a - b).norm() / b.norm()) for a, b in zip(grads, wanted, strict=True)]
        torch.testing.assert_close(found.loss.detach(), exact.plain(objective).loss.detach(), rtol=5e-3, atol=0)
    for fused, plain in zip(errors["fused"], errors["plain"], strict=True):
        assert 1e-4 < fused < min(0.03, 1.5 * plain)  # really in bf16, and no worse for it


def test_bf16_hidden_states_keep_their_type() -> None:
    here = case(dtype=torch.bfloat16)
    here.scores = here.scores.detach().float().requires_grad_()
    here.weight = here.weight.float()
    here.fused(rag_token_nll).loss.backward()
    assert here.hidden.grad is not None and here.hidden.grad.dtype == torch.bfloat16
    assert here.scores.grad is not None and here.scores.grad.dtype == torch.float32


def test_a_sure_answer_keeps_its_gradient_in_bf16() -> None:
    """p - 1 of a label with p = 0.9999: rounding p to bf16 first would make it 0."""
    hidden = torch.eye(DIM)[None, None, :1].clone().requires_grad_()
    head = torch.zeros(VOCAB, DIM)
    head[5, 0] = 13.25
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused_marginal_nll(hidden, head, None, torch.tensor([[5]]), torch.zeros(1, 1), rag_token_nll).loss
    loss.backward()
    assert hidden.grad is not None
    sure = 1 / (1 + (VOCAB - 1) * torch.tensor(-13.25).exp())
    assert float(hidden.grad[0, 0, 0, 0]) == pytest.approx(float(13.25 * (sure - 1)), rel=0.01)


def test_what_backward_refuses() -> None:
    here = case()
    with pytest.raises(OpenBookError, match="no second derivative"):
        torch.autograd.grad(here.fused(rag_token_nll).loss, here.hidden, create_graph=True)
    loss = here.fused(rag_token_nll).loss
    loss.backward(retain_graph=True)
    with pytest.raises(OpenBookError, match="retain=True"):
        loss.backward()


def test_axes_and_types_are_checked() -> None:
    here = case()
    with pytest.raises(OpenBookError, match=r"labels \(6, 5\)"):
        fused_marginal_nll(here.hidden, here.head, None, here.labels[1:], here.scores, rag_token_nll)
    with pytest.raises(OpenBookError, match=r"head_bias \(52,\)"):
        fused_marginal_nll(here.hidden, here.head, torch.zeros(52), here.labels, here.scores, rag_token_nll)
    with pytest.raises(OpenBookError, match=r"hidden torch\.float32"):
        fused_marginal_nll(here.hidden.float(), here.head, None, here.labels, here.scores, rag_token_nll)
    with pytest.raises(OpenBookError, match=r"got torch\.float32, expected torch\.int64"):
        fused_marginal_nll(here.hidden, here.head, None, here.labels.float(), here.scores, rag_token_nll)


def test_chunks_are_whole_questions() -> None:
    assert list(_chunks([3, 2, 9, 0, 1, 4], 5)) == [
        (slice(0, 2), slice(0, 5)),
        (slice(2, 3), slice(5, 14)),
        (slice(3, 6), slice(14, 19)),
    ]
    assert list(_chunks([], 5)) == []


@pytest.mark.parametrize(
    "words",
    [("objective=rag_token",), ("objective=rag_sequence", "generator.label_smoothing=0.1"), ("objective=closed_book",)],
)
def test_training_gives_the_curve_of_the_plain_formula(
    words: tuple[str, ...], small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBOOK_RUN_DIR", "")
    curves = {}
    for kind in ("fused", "plain"):
        (tmp_path / kind).mkdir()
        config = small_system.config(tmp_path / kind / "run", "evaluate.before_training=false", *words)
        with monkeypatch.context() as patch:
            if kind == "plain":
                patch.setattr(training, "fused_marginal_nll", _plain)
            curves[kind] = column(train(config), "train/nll")
    assert len(curves["plain"]) == 6
    assert curves["fused"] == pytest.approx(curves["plain"], rel=1e-5)


def _plain(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    scores: Tensor,
    objective: Objective,
    weight: Tensor,
    smoothing: float,
    counted: Tensor,
) -> FusedLoss:
    assert torch.equal(counted, (labels >= 0)[:, None] & (scores != -torch.inf)[:, :, None])
    return Case(hidden, head, bias, labels, scores, weight).plain(objective, smoothing)
