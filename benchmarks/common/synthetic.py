"""A corpus of numbers and an encoder that costs next to nothing: the real index, refresh and search at any size.

Passage n has three tokens that spell n; the encoder looks two vectors up and adds them: one of a few cluster centres,
one of many smaller offsets. So embeddings are clustered as real ones are, distinct, and depend on weights that drift.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from openbook.config.refresh_schedule import RefreshSchedule
from openbook.data.corpus import PassageTokens
from openbook.data.encoder_inputs import EncoderFormat
from openbook.index.shard_index import IndexOptions
from openbook.models.encoders import TextEncoder
from openbook.refresh.manager import RefreshManager, RefreshOptions
from openbook.retrieval.corpus_encoder import CorpusOptions
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.passage_embedder import PassageEmbedder

STYLE = EncoderFormat((0,), (0,), (0,), pad=0)
CENTRES, OFFSETS = 1024, 4096
_HIGH, _LOW = 1 << 8, 1 << 12  # a passage's number is spelt in digits of these sizes, most significant first
SPREAD = 0.8
"""Length of an offset beside a centre's 1: the nearest neighbours of a passage are of its own cluster."""


def corpus(n: int) -> PassageTokens:
    """n passages of a title token and two text tokens."""
    numbers = np.arange(n)
    flat = np.stack([numbers // _LOW // _LOW % _HIGH, numbers // _LOW % _LOW, numbers % _LOW], axis=1)
    return PassageTokens(flat.astype(np.uint16).reshape(-1), np.arange(n + 1) * 3, np.ones(n, dtype=np.int32))


class Lookup(nn.Module):
    """Stands where a transformers model stands in a TextEncoder."""

    def __init__(self, dim: int, seed: int):
        super().__init__()
        self.config = SimpleNamespace(hidden_size=dim)
        generator = torch.Generator().manual_seed(seed)
        self.centres = nn.Parameter(nn.functional.normalize(torch.randn(CENTRES, dim, generator=generator), dim=1))
        offsets = nn.functional.normalize(torch.randn(OFFSETS, dim, generator=generator), dim=1)
        self.offsets = nn.Parameter(SPREAD * offsets)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> SimpleNamespace:
        """[n, 1, dim]: one state for the whole passage."""
        number = (input_ids[:, 1] * _LOW + input_ids[:, 3]) * _LOW + input_ids[:, 4]  # start title sep text text end
        mixed = number * 2654435761 % (1 << 32)
        state = self.centres[mixed >> 22] + self.offsets[(mixed >> 7) % OFFSETS]
        return SimpleNamespace(last_hidden_state=state[:, None])

    @torch.no_grad()
    def drift(self, size: float = 0.05) -> None:
        """Move as a training step would: another fingerprint, other embeddings, the same clusters."""
        moved = self.offsets + size * torch.roll(self.offsets, 1, dims=0)
        self.offsets.copy_(SPREAD * nn.functional.normalize(moved, dim=1))


def encoder(dim: int, seed: int = 0) -> TextEncoder:
    return TextEncoder(Lookup(dim, seed), "mean", normalize=True)


def system(
    n: int, dim: int, index: IndexOptions, mode: str, every: int, spread: int = 10
) -> tuple[DenseRetriever, RefreshManager]:
    """A retriever over n passages and the manager of its index; nothing is indexed yet."""
    tokens, passages = corpus(n), encoder(dim)
    retriever = DenseRetriever(passages, PassageEmbedder(passages, tokens, STYLE, 8), temperature=0.05)
    options = RefreshOptions(RefreshSchedule.read(str(every)), mode, spread)  # type: ignore[arg-type]
    probes = torch.from_numpy(questions(n, 32)), torch.ones(32, 6, dtype=torch.bool)
    return retriever, RefreshManager(
        options=options, index=index, corpus=CorpusOptions(tokens, STYLE, 8, f"synthetic {n}"), probes=probes
    )


def questions(n: int, how_many: int, seed: int = 1) -> np.ndarray:
    """[how_many, 6] ids: passages drawn by a seed, as an encoder reads them."""
    chosen = np.random.default_rng(seed).integers(n, size=how_many)
    ids = np.zeros((how_many, 6), dtype=np.int64)
    ids[:, 1], ids[:, 3], ids[:, 4] = chosen // _LOW // _LOW % _HIGH, chosen // _LOW % _LOW, chosen % _LOW
    return ids


def embeddings(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """[n, dim] fp32 of length 1: what the encoder makes of the first n passages."""
    tokens, made = corpus(n).flat.reshape(n, 3).astype(np.int64), encoder(dim, seed)
    parts = []
    with torch.inference_mode():
        for start in range(0, n, 8192):
            digits = torch.from_numpy(tokens[start : start + 8192])
            ids = torch.zeros(len(digits), 6, dtype=torch.int64)
            ids[:, 1], ids[:, 3], ids[:, 4] = digits.T
            parts.append(made(ids, None))
    return torch.cat(parts).numpy()
