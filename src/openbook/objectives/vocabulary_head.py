"""The vocabulary head on chunks of rows: log-probabilities of the labels, the residual that gradients are made of, and
the two products that make them.

On a GPU the head is cast together with rows of zeros that make its number of words a multiple of 64: a product whose
rows begin at odd places runs on kernels that are several times slower (50,265 words are odd). The words that do not
exist are left out of the softmax, and their residual is 0.
"""

import shutil
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ALIGNED = {"cuda": 64}  # words that the head is padded to a multiple of, by kind of device; 1 where it is not named

# Bytes that are worked on at once. On a CPU they stay in its cache; a GPU is busy with them.
_AT_ONCE = {"cpu": 2 * 2**20, "cuda": 64 * 2**20}

# Logits of one chunk. Each chunk reads and writes the head's gradient once, so that many small ones are slower; a GPU
# with much memory takes more.
CHUNK_BYTES = 128 * 2**20
_MOST_CHUNK_BYTES = 512 * 2**20


class VocabularyHead:
    """logits = hidden @ weight.T + bias for weight [vocab, dim], bias [vocab] or None. Products are in dtype, to which
    weight is cast here once, and what follows them in `exact`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, exact: torch.dtype):
        self.vocab, self.exact = len(weight), exact
        if more := -self.vocab % ALIGNED.get(weight.device.type, 1):
            self.weight = weight.new_zeros(self.vocab + more, weight.shape[1], dtype=dtype)
            self.weight[: self.vocab] = weight
        else:
            self.weight = weight.to(dtype)
        self.bias = None if bias is None else F.pad(bias.to(exact), (0, len(self.weight) - self.vocab))

    def new_gradient(self) -> Tensor:
        """Zeros for d weight in `exact`; beyond [:vocab] it stays 0."""
        return torch.zeros_like(self.weight, dtype=self.exact)

    def __call__(
        self, hidden: Tensor, labels: Tensor, *, smoothing: float, keep: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """hidden [n, dim], labels [n] -> residual [n, len(weight)] (None unless kept), the label's log-probability [n],
        smoothed as openbook.objectives.token_logprobs_of does, and as it is. The logits' memory becomes the
        residual's."""
        logits = hidden.to(self.weight.dtype) @ self.weight.T
        if (kernel := kernel_for(logits.device.type)) is not None and self.exact == torch.float32:
            return kernel(logits, labels, self.bias, self.vocab, smoothing, keep)
        return self._by_torch(logits, labels, smoothing, keep)

    def _by_torch(
        self, logits: Tensor, labels: Tensor, smoothing: float, keep: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """A few rows at a time: on a CPU these stay in its cache from the bias to the residual."""
        n, vocab, exact = len(logits), self.vocab, self.exact
        plain = logits.new_empty(n, dtype=exact)
        logprobs = torch.empty_like(plain) if smoothing else plain
        for some in _slices(n, vocab * exact.itemsize, logits):
            block, index = logits[some, :vocab].to(exact), labels[some, None]
            if self.bias is not None:
                block = block + self.bias[:vocab]
            top = block.amax(-1)
            softmax = block.softmax(-1)
            # The largest probability is at least 1 / vocab: unlike the label's, its logarithm is safe.
            top_logprob = softmax.amax(-1).log()
            logprob = block.gather(-1, index)[:, 0] - top + top_logprob
            plain[some] = logprob
            if smoothing:
                logprobs[some] = (1 - smoothing) * logprob + smoothing * (block.mean(-1) - top + top_logprob)
            if keep:
                if smoothing:
                    softmax -= smoothing / vocab
                # p - 1 without cancellation, also before rounding
                at_label = logprob.expm1() + smoothing - smoothing / vocab
                logits[some, :vocab] = softmax.scatter_(-1, index, at_label[:, None])
        if keep and vocab < logits.shape[1]:
            logits[:, vocab:] = 0
        return logits if keep else None, logprobs, plain

    def add_gradients(
        self, residual: Tensor, scaled: Tensor | None, d_states: Tensor | None, d_weight: Tensor | None
    ) -> None:
        """d_states [n, dim] += residual @ weight and d_weight += residual^T @ scaled [n, dim], whichever are there.

        Some of the vocabulary at a time: it stays in a CPU's cache, and no product is as large as the head."""
        words, dim = self.weight.shape
        for some in _slices(words, dim * self.weight.dtype.itemsize, residual):
            if d_states is not None:
                _add_product(d_states, residual[:, some], self.weight[some])
            if d_weight is not None and scaled is not None:
                _add_product(d_weight[some], residual[:, some].T, scaled)


def chunk_bytes_of(device: torch.device) -> int:
    """Logits held at a time: on a GPU a 64th of its memory, within limits."""
    if device.type != "cuda":
        return CHUNK_BYTES
    share = torch.cuda.get_device_properties(device).total_memory // 64
    return min(max(share, CHUNK_BYTES), _MOST_CHUNK_BYTES)


@cache
def kernel_for(kind: str) -> Any:
    """objectives/softmax_kernel's on a GPU, where there is Triton, which torch brings for CUDA, and what it needs to
    compile, a C compiler and Python's headers; None elsewhere."""
    if kind != "cuda":
        return None
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        warnings.warn("no C compiler: the loss is computed by torch alone, which takes longer on a GPU", stacklevel=2)
        return None
    try:
        from openbook.objectives.softmax_kernel import residual_and_logprobs

        _run_once(residual_and_logprobs, kind)
    except Exception as error:  # no Triton, no headers, a GPU that it does not know
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        warnings.warn(
            f"Triton cannot run ({said}): the loss is computed by torch alone, which takes longer on a GPU",
            stacklevel=2,
        )
        return None
    return residual_and_logprobs


def _run_once(kernel: Any, kind: str) -> None:
    """It is compiled when it is first called: better here than in a step, and as a step in bf16 asks for it."""
    logits, bias = torch.zeros(1, 128, device=kind, dtype=torch.bfloat16), torch.zeros(128, device=kind)
    kernel(logits, torch.zeros(1, dtype=torch.int64, device=kind), bias, 127, 0.0, True)


def _slices(n: int, row_bytes: int, on: Tensor) -> list[slice]:
    """n rows, some at a time, of which each begins where a GPU's products want it to."""
    at_once, aligned = _AT_ONCE.get(on.device.type, _AT_ONCE["cuda"]), ALIGNED.get(on.device.type, 1)
    at_once = max(aligned, at_once // row_bytes // aligned * aligned)
    return [slice(start, start + at_once) for start in range(0, n, at_once)]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, added up in total's type."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda and torch.version.hip is None:
        total += torch.mm(left, right, out_dtype=total.dtype)
    else:
        total += left @ right
