"""What a GPU does to the vocabulary head, on a CPU: rows of padding are left out, exactly; and the kernel in Triton's
interpreter gives what torch gives. On a GPU, where there is one, the kernel itself."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from openbook.objectives import vocabulary_head
from openbook.objectives.fused import Objective, fused_marginal_nll
from openbook.objectives.marginal import rag_sequence_nll, rag_token_nll
from openbook.objectives.vocabulary_head import CHUNK_BYTES, VocabularyHead, chunk_bytes_of, kernel_for
from tests.objectives.test_fused import EXACT, VOCAB, case, compare

WORDS = 59  # of the kernel's tests; nothing divides it


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU pads as a GPU does."""
    monkeypatch.setitem(vocabulary_head.ALIGNED, "cpu", 64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("objective", [rag_token_nll, rag_sequence_nll])
@pytest.mark.parametrize("rows", [4, 1000])
def test_padding_is_left_out_exactly(
    padded: None, objective: Objective, smoothing: float, bias: bool, rows: int
) -> None:
    """Values and all gradients against the plain formula in float64, chunked and whole."""
    assert len(VocabularyHead(torch.zeros(VOCAB, 3), None, torch.float32, torch.float32).weight) == 64 > VOCAB
    compare(case(bias=bias), objective, smoothing, rows)


def test_padding_changes_no_bit_under_autocast(padded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for aligned in (1, 64):
        monkeypatch.setitem(vocabulary_head.ALIGNED, "cpu", aligned)
        here = case(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            loss = here.fused(rag_token_nll, 0.1).loss
        loss.backward()
        found.append([loss.detach(), *here.grads()])
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-4)


def test_a_padded_gradient_reaches_tied_embeddings(padded: None) -> None:
    head = torch.randn(VOCAB, 11, dtype=torch.float64, requires_grad=True)
    labels, scores = torch.randint(VOCAB, (2, 3)), torch.randn(2, 2, dtype=torch.float64)
    hidden = torch.nn.functional.embedding(labels, head)[:, None].expand(2, 2, 3, 11).tanh()
    fused_marginal_nll(hidden, head, None, labels, scores, rag_token_nll).loss.backward()
    assert head.grad is not None and head.grad.shape == head.shape
    torch.optim.AdamW([head]).step()
    assert head.isfinite().all()


def test_a_chunk_is_as_large_as_the_device_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chunk_bytes_of(torch.device("cpu")) == CHUNK_BYTES
    for gib, mib in ((4, 128), (16, 256), (80, 512)):
        memory = type("Properties", (), {"total_memory": gib << 30})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, memory=memory: memory)
        assert chunk_bytes_of(torch.device("cuda")) == mib << 20


def test_slices_begin_at_aligned_words(monkeypatch: pytest.MonkeyPatch, padded: None) -> None:
    monkeypatch.setitem(vocabulary_head._AT_ONCE, "cpu", 1000 * 7)
    starts = [some.start for some in vocabulary_head._slices(1000, 7 * 10, torch.zeros(1))]
    assert starts[:3] == [0, 64, 128] and len(starts) == 16


# Whether there is a kernel


@pytest.fixture
def no_kernel_known() -> Any:
    kernel_for.cache_clear()
    yield
    kernel_for.cache_clear()


def test_what_stands_in_for_the_kernel(monkeypatch: pytest.MonkeyPatch, no_kernel_known: None) -> None:
    assert kernel_for("cpu") is None
    monkeypatch.setitem(sys.modules, "openbook.objectives.softmax_kernel", None)  # as if Triton were not there
    monkeypatch.setattr(vocabulary_head.shutil, "which", lambda name: f"/bin/{name}")
    with pytest.warns(UserWarning, match="Triton cannot run .*: .* takes longer on a GPU"):
        assert kernel_for("cuda") is None
    kernel_for.cache_clear()
    monkeypatch.setattr(vocabulary_head.shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="no C compiler"):
        assert kernel_for("cuda") is None
    kernel_for.cache_clear()
    there = ModuleType("softmax_kernel")
    there.residual_and_logprobs = lambda *_: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openbook.objectives.softmax_kernel", there)
    monkeypatch.setattr(vocabulary_head.shutil, "which", lambda name: name == "gcc" or None)

    def fail(*_: object) -> None:
        raise subprocess.CalledProcessError(1, ["gcc"])  # as without Python's headers

    with monkeypatch.context() as patch:
        patch.setattr(vocabulary_head, "_run_once", fail)
        with pytest.warns(UserWarning, match=r"Triton cannot run \(CalledProcessError: .*gcc"):
            assert kernel_for("cuda") is None
    kernel_for.cache_clear()
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(vocabulary_head, "_run_once", lambda kernel, _: kernel("cpu"))
        assert kernel_for("cuda") is there.residual_and_logprobs


# The kernel


@pytest.fixture(params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The kernel and where its tensors must be: in Triton's interpreter on the CPU, or compiled."""
    pytest.importorskip("triton", reason="needs the extra `triton`")
    if request.param == "interpreter":
        if torch.cuda.is_available():
            pytest.skip("Triton interprets everything or nothing; here it compiles")
        assert os.environ["TRITON_INTERPRET"] == "1"  # by tests/__init__.py
    from openbook.objectives import softmax_kernel

    monkeypatch.setattr(softmax_kernel, "_BLOCK", 16)
    device = torch.device("cpu" if request.param == "interpreter" else "cuda")

    def run(logits: Tensor, labels: Tensor, bias: Tensor | None, **named: Any) -> Any:
        long = None if bias is None else torch.nn.functional.pad(bias, (0, logits.shape[1] - len(bias)))
        moved = [None if one is None else one.to(device) for one in (logits, labels, long)]
        return [None if one is None else one.cpu() for one in softmax_kernel.residual_and_logprobs(*moved, **named)]

    return run


def by_torch(logits: Tensor, labels: Tensor, bias: Tensor | None, vocab: int, smoothing: float) -> list[Tensor]:
    """In float64, from the definition: residual and log-probabilities."""
    x = logits[:, :vocab].double() + (0.0 if bias is None else bias.double())
    logprobs = x.log_softmax(-1)
    target = torch.zeros_like(logprobs).scatter_(-1, labels[:, None], 1.0)
    plain = logprobs.gather(-1, labels[:, None])[:, 0]
    smoothed = (1 - smoothing) * plain + smoothing * logprobs.mean(-1)
    return [logprobs.exp() - (1 - smoothing) * target - smoothing / vocab, smoothed, plain]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("stride", [WORDS, 64, 80])
def test_the_kernel_gives_the_definition(
    kernel: Callable[..., Any], stride: int, smoothing: float, bias: bool, dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(7, stride, generator=draw)).to(dtype)
    labels = torch.randint(WORDS, (7,), generator=draw)
    labels[0], labels[1] = 0, WORDS - 1
    shift = torch.randn(WORDS, generator=draw) if bias else None
    residual, smoothed, plain = by_torch(logits, labels, shift, WORDS, smoothing)
    found = kernel(logits.clone(), labels, shift, vocab=WORDS, smoothing=smoothing, keep=True)
    torch.testing.assert_close(found[1].double(), smoothed, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(found[2].double(), plain, rtol=1e-6, atol=2e-6)
    assert found[0].dtype == dtype and not found[0][:, WORDS:].any()
    # To bf16 the interpreter cuts off; a GPU rounds, to half of that.
    within = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-6}
    torch.testing.assert_close(found[0][:, :WORDS].double(), residual, **within)
    untouched = kernel(logits.clone(), labels, shift, vocab=WORDS, smoothing=smoothing, keep=False)
    assert untouched[0] is None and torch.equal(untouched[1], found[1]) and torch.equal(untouched[2], found[2])


def test_the_kernel_keeps_what_rounding_would_lose(kernel: Callable[..., Any]) -> None:
    """p - 1 of a sure label, words that are impossible, numbers far from 0, and what is no number."""
    logits = torch.zeros(5, 64)
    logits[0, 5] = 13.25  # p = 0.9999
    logits[1, 5:9] = torch.tensor([-torch.inf, -200.0, 300.0, 298.0])
    logits[2] = -30000.0
    logits[3, 7] = torch.nan
    logits[4] = torch.linspace(-80, 80, 64)
    labels = torch.tensor([5, 7, 3, 2, 0])
    residual, _, plain = by_torch(logits, labels, None, WORDS, 0.0)
    found = kernel(logits.bfloat16(), labels, None, vocab=WORDS, smoothing=0.0, keep=True)
    assert float(found[0][0, 5]) == pytest.approx(float(residual[0, 5]), rel=0.01)
    assert found[1][3].isnan() and found[0][3, :WORDS].isnan().all()  # a diverged state is not hidden
    rest = torch.tensor([0, 1, 2])
    torch.testing.assert_close(found[0][rest, :WORDS].double(), residual[rest], rtol=0.01, atol=1e-6)
    torch.testing.assert_close(found[1][[0, 1, 2, 4]].double(), plain[[0, 1, 2, 4]], rtol=5e-3, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_loss_by_the_kernel(
    kernel: Callable[..., Any], padded: None, monkeypatch: pytest.MonkeyPatch, smoothing: float
) -> None:
    """The whole fused loss and its gradients in fp32, in pieces and whole, against those by torch's operators."""
    for rows in (8, 4000):
        grads = []
        for chosen in (None, lambda *a: kernel(*a[:3], vocab=a[3], smoothing=a[4], keep=a[5])):
            monkeypatch.setattr(vocabulary_head, "kernel_for", lambda kind, chosen=chosen: chosen)
            here = case(dtype=torch.float32)
            found = here.fused(rag_token_nll, smoothing, rows)
            found.loss.backward()
            grads.append([found.loss.detach(), found.nll, found.token_logprobs, *here.grads()])
        torch.testing.assert_close(grads[1], grads[0], rtol=2e-5, atol=2e-6)


def test_no_rows(kernel: Callable[..., Any]) -> None:
    found = kernel(torch.zeros(0, 64), torch.zeros(0, dtype=torch.int64), None, vocab=WORDS, smoothing=0.0, keep=True)
    assert found[0].shape == (0, 64) and found[1].shape == found[2].shape == (0,)


def test_float64_is_never_given_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(vocabulary_head, "kernel_for", lambda kind: refuse)
    here = case()
    torch.testing.assert_close(
        here.fused(rag_token_nll).loss.detach(), here.plain(rag_token_nll).loss.detach(), **EXACT
    )
