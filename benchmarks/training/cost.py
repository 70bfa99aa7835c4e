"""What a training step and a refresh have to do, counted from their sizes, and seconds from that: the cost model.

    seconds = sum over kinds of work: amount of that kind * a constant of the machine

Amounts are formulas; constants are fitted by `benchmarks.training.cost_model`, all to one set of runs, none below 0.
One kind of work that is not counted (tokenising, Python, moving data) is in the constants of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from openbook.models.attention import ABSORBING_COSTS, NAME, cross_attention_costs, implementation

STEP_WORK = ("matmul", "attention", "elementwise", "weights", "calls", "search", "reading")
REFRESH_WORK = ("matmul", "attention", "elementwise", "calls", "writing")
"""Kinds of work. matmul: operations (2 per multiply-add) of linear layers. attention: heads * queries * keys of all
layers. elementwise: tokens * dim of all layers. weights: numbers read or written per trained weight, in the optimizer
and for every pass's gradient. calls: layers called, each of a pass. search: passages * dim * questions; reading:
passages * dim. writing: passages * dim into an index."""

TOKENS_PER_PASS = 65536 if torch.cuda.is_available() else 4096  # as trainer.tokens_per_pass=0 has it
TRAINING = 3  # forward and backward against forward: the gradients of inputs and of weights are a product each


@dataclass(frozen=True)
class Stack:
    """A transformer's layers; a decoder's have cross-attention."""

    layers: int
    dim: int
    heads: int

    @property
    def inner(self) -> int:
        return 4 * self.dim

    @property
    def weights(self) -> int:
        """Of an encoder's layers, biases and norms left out."""
        return self.layers * (4 * self.dim**2 + 2 * self.dim * self.inner)

    def encode(self, rows: float, length: float) -> np.ndarray:
        """matmul, attention, elementwise, of one forward pass of rows of that length."""
        tokens = rows * length
        return np.array(
            [
                2 * tokens * self.weights,
                self.layers * self.heads * tokens * length,
                self.layers * tokens * self.dim,
            ]
        )

    def decode(self, rows: int, target_len: int, context_len: int, absorbs: bool) -> np.ndarray:
        """Likewise, a decoder's: its own tokens, and contexts read with keys or, where it absorbs and that pays,
        without (models/attention)."""
        dim, tokens = self.dim, rows * target_len
        plain, absorbed = cross_attention_costs(dim, dim, self.heads, target_len, context_len)
        # Reading keys and values is counted as attention; reading states as wide as all heads together is a matmul.
        read = 2 * absorbed if absorbs and ABSORBING_COSTS * absorbed < plain else 4 * context_len * dim**2
        own = self.encode(rows, target_len)
        cross = np.array(
            [
                self.layers * (2 * tokens * 2 * dim**2 + rows * read),
                self.layers * self.heads * tokens * context_len,
                self.layers * tokens * dim,
            ]
        )
        return own + cross


@dataclass(frozen=True)
class Step:
    """Sizes of one training step: lengths in tokens, `batch` questions of n_docs passages each, all different."""

    n_passages: int = 20_000
    batch: int = 4
    n_docs: int = 5
    question_len: int = 16
    passage_len: int = 96
    target_len: int = 16
    encoder: Stack = Stack(3, 256, 4)
    generator: Stack = Stack(3, 256, 4)
    vocab: int = 20_000
    tokens_per_pass: int = TOKENS_PER_PASS
    absorbs: bool = implementation() == NAME

    @property
    def context_len(self) -> int:
        """start question sep passage end; a passage is encoded with as many special tokens."""
        return self.question_len + self.passage_len + 3

    @property
    def trained(self) -> int:
        """Weights that learn: two encoders, generator and head; biases, norms and positions left out."""
        cross = 4 * self.generator.layers * self.generator.dim**2
        return 2 * self.encoder.weights + 2 * self.generator.weights + cross + self.vocab * self.generator.dim

    def work(self) -> np.ndarray:
        """[len(STEP_WORK)]"""
        rows, target = self.batch * self.n_docs, self.target_len
        passage = self.passage_len + 3
        forward = (
            self.encoder.encode(self.batch, self.question_len + 2)
            + self.encoder.encode(rows, passage)
            + self.generator.encode(rows, self.context_len)
            + self.generator.decode(rows, target, self.context_len, self.absorbs)
        )
        forward[0] += 2 * rows * target * self.generator.dim * self.vocab
        encoder_passes = -(-rows // max(1, self.tokens_per_pass // passage))
        generator_passes = -(-rows // max(1, self.tokens_per_pass // self.context_len))
        decoder = self.generator.weights + self.generator.layers * 4 * self.generator.dim**2
        head = self.vocab * self.generator.dim
        gradients = (1 + encoder_passes) * self.encoder.weights
        # Looking words up has a gradient as large as the head, for the encoder and the decoder of every pass.
        gradients += generator_passes * (self.generator.weights + decoder + 2 * head) + head
        calls = (1 + encoder_passes) * self.encoder.layers + 3 * generator_passes * self.generator.layers
        numbers = self.n_passages * self.encoder.dim
        return np.array(
            [*TRAINING * forward, 7 * self.trained + 3 * gradients, TRAINING * calls, self.batch * numbers, numbers]
        )


@dataclass(frozen=True)
class Refresh:
    """Sizes of a refresh by one rank: n_passages of one length, encoded and written."""

    n_passages: int = 512
    passage_len: int = 96
    encoder: Stack = Stack(3, 256, 4)
    tokens_per_pass: int = TOKENS_PER_PASS

    def work(self) -> np.ndarray:
        """[len(REFRESH_WORK)]"""
        length = self.passage_len + 3
        passes = -(-self.n_passages // max(1, self.tokens_per_pass // length))
        encoding = self.encoder.encode(self.n_passages, length)
        return np.array([*encoding, passes * self.encoder.layers, self.n_passages * self.encoder.dim])


def fitted(work: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Constants [kinds], none negative, with the least sum of squared relative errors of work [n, kinds] @ constants.

    Every choice of kinds that take part is tried: of the choices whose least squares are nowhere negative, the best.
    """
    relative = work / seconds[:, None]
    scale = relative.max(0)
    relative = relative / np.where(scale, scale, 1)
    best, least = np.zeros(work.shape[1]), np.inf
    for n in range(1, work.shape[1] + 1):
        for chosen in map(list, combinations(range(work.shape[1]), n)):
            constants = np.linalg.lstsq(relative[:, chosen], np.ones(len(seconds)), rcond=None)[0]
            error = float(((relative[:, chosen] @ constants - 1) ** 2).sum())
            if (constants >= 0).all() and error < least - 1e-12:
                least, best = error, np.zeros(work.shape[1])
                best[chosen] = constants
    return best / np.where(scale, scale, 1)
