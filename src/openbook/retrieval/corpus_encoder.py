"""Passages to embeddings, without padding, by a copy of the encoder that stays as it was.

One length at a time; where the encoder packs (models/passes/packed), passages that are too few to fill a pass of their
length are read together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openbook.batch import to_device
from openbook.data.corpus import PassageTokens
from openbook.data.encoder_inputs import EncoderFormat, passage_inputs
from openbook.data.length_batches import plan_passes
from openbook.models.encoders import TextEncoder
from openbook.utils.distributed import rank, shard, world_size

CPU = torch.device("cpu")

_MOST_WAITING = 32  # passes under way on a GPU, each with some MiB of embeddings


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for every coder of a device: memory that was freed on a stream is used again on that stream alone."""
    return torch.cuda.Stream(device)


class PassageCoder:
    """A copy of a passage encoder, weights in dtype and in eval mode (dropout would make an index of noise).

    The encoder itself and the random state are left as they are; weights are cast once, not in every forward pass.

    coder(rows) -> embeddings [n, dim] fp32 on the CPU, under inference_mode; on the device that encodes where they are
    to be `kept` on it. On a GPU the work goes to a stream of its own beside training: `start` does not wait, and the
    embeddings are waited for when they are asked for. `begin` and `finished` do so with many passes.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        tokens: PassageTokens,
        style: EncoderFormat,
        max_length: int,
        *,
        dtype: torch.dtype = torch.float32,
        kept: bool = False,
    ):
        self.encoder = copy.deepcopy(encoder).to(dtype).eval().requires_grad_(False)
        self.tokens, self.style, self.max_length = tokens, style, max_length
        self.device, self.kept = next(encoder.parameters()).device, kept
        self._stream = _side_stream(self.device) if self.device.type == "cuda" else None
        self._waiting: list[Encoding] = []
        self._may_wait = 0 if self._stream is None else _MOST_WAITING

    def take(self, encoder: TextEncoder) -> None:
        """Copy the weights as they are now."""
        with torch.no_grad():
            for mine, theirs in zip(self.encoder.parameters(), encoder.parameters(), strict=True):
                mine.copy_(theirs)

    def lengths(self, rows: np.ndarray | range) -> np.ndarray:
        """[n] tokens of each passage as the encoder reads it, special tokens included."""
        return np.minimum(self.tokens.length(np.asarray(rows)) + self.style.n_special, self.max_length)

    def tokens_in(self, passes: list[np.ndarray]) -> np.ndarray:
        """[number of passes] tokens that the encoder reads in each."""
        return np.array([self.lengths(rows).sum() for rows in passes], dtype=np.int64)

    def passes(
        self, rows: np.ndarray | range, tokens_per_pass: int, seed: int = 0, full: bool = True
    ) -> list[np.ndarray]:
        """`plan_passes` of these rows, as rows. full: passages of several lengths share a pass where that can be."""
        rows = np.asarray(rows)
        places = plan_passes(self.lengths(rows), tokens_per_pass, seed, packs=full and self.encoder.packs)
        return [rows[some] for some in places]

    def __call__(self, rows: np.ndarray) -> Tensor:
        return self.start(rows).result()

    def start(self, rows: np.ndarray) -> Encoding:
        """Begin to encode the passages at rows [n] in one forward pass; of one length they need no padding."""
        ids, mask = passage_inputs(self.tokens, rows, self.style, self.max_length)
        lengths: np.ndarray | None = None
        hidden: Tensor | None = None
        if not bool(mask.all()):
            if self.encoder.packs:
                ids, lengths = ids[mask], self.lengths(rows)
            else:
                hidden = mask
        with torch.inference_mode():
            if self._stream is None:
                return Encoding(rows, self.encoder(ids, hidden, lengths), kept=self.kept)
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._stream):
                hidden = None if hidden is None else to_device(hidden, self.device)
                embeddings = self.encoder(to_device(ids, self.device), hidden, lengths)
                return Encoding(rows, embeddings, self._stream.record_event(), self.kept)

    def begin(self, passes: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Begin to encode each pass; gives (rows, embeddings) of those that are done, which on a CPU each is at once.
        On a GPU the last of them are `finished` later, as many as its memory can hold beside a step."""
        for rows in passes:
            self._waiting.append(self.start(rows))
            while len(self._waiting) > self._may_wait:
                done = self._waiting.pop(0)
                yield done.rows, done.result()

    def finished(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(rows, embeddings) of each pass that was begun and not given yet; waits for what is still computed."""
        waiting, self._waiting = self._waiting, []
        for encoding in waiting:
            yield encoding.rows, encoding.result()


class Encoding:
    """Embeddings of the passages at rows [n], perhaps still being computed."""

    def __init__(self, rows: np.ndarray, embeddings: Tensor, done: torch.cuda.Event | None = None, kept: bool = False):
        self.rows, self._embeddings, self._done, self._kept = rows, embeddings, done, kept

    def result(self) -> Tensor:
        """[n, dim] fp32, on the CPU unless `kept` where they are; waits for what is still computed."""
        if self._done is not None:
            self._done.synchronize()
        if not self._kept:
            return self._embeddings.float().cpu()
        if self._embeddings.is_cuda:  # or its stream would reuse the memory before this one has read it
            self._embeddings.record_stream(torch.cuda.current_stream(self._embeddings.device))
        return self._embeddings.float()


def encode_passes(coder: PassageCoder, passes: list[np.ndarray]) -> Iterator[tuple[np.ndarray, Tensor]]:
    """(rows, embeddings) of each pass. Of a GPU's passes the next is under way before the last is waited for."""
    for encoding, _ in pairwise(chain[Any](map(coder.start, passes), [None])):  # the last has none ahead of it
        yield encoding.rows, encoding.result()


@dataclass(frozen=True)
class CorpusOptions:
    """What is indexed and how it is encoded: token ids, the format they are read in and its limit, the corpus'
    fingerprint; tokens per forward pass and the weights' dtype; seed of the order in which passages are encoded."""

    tokens: PassageTokens
    style: EncoderFormat
    max_length: int
    fingerprint: str
    tokens_per_pass: int = 4096
    dtype: torch.dtype = torch.float32
    seed: int = 0

    @property
    def n_passages(self) -> int:
        return len(self.tokens.title_lengths)

    def my_rows(self) -> range:
        """This rank's shard."""
        return shard(self.n_passages, rank(), world_size())

    def coder(self, encoder: TextEncoder, index_device: torch.device = CPU) -> PassageCoder:
        """index_device: where embeddings are stored; from an encoder on the same device they do not leave it."""
        kept = next(encoder.parameters()).device == index_device
        return PassageCoder(encoder, self.tokens, self.style, self.max_length, dtype=self.dtype, kept=kept)
