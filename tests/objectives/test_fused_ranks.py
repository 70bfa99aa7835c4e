"""The fused loss where gradients meet: two ranks, weights whole on each (DDP) or sharded over both (FSDP)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from openbook.objectives.fused import fused_marginal_nll
from openbook.objectives.marginal import rag_token_nll, token_logprobs_of
from tests.ranks import on_ranks

BATCH, N_DOCS, TARGET_LEN, VOCAB, DIM = 3, 2, 5, 17, 8


class Model(nn.Module):
    """Words that are the head's as well, and a layer between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.layer = nn.Embedding(VOCAB, DIM), nn.Linear(DIM, DIM)
        self.bias = nn.Parameter(torch.randn(VOCAB))

    def forward(self, ids: Tensor, labels: Tensor, doc_scores: Tensor, fused: bool = True) -> Tensor:
        hidden = self.layer(self.words(ids)).tanh()
        if fused:
            return fused_marginal_nll(
                hidden, self.words.weight, self.bias, labels, doc_scores, rag_token_nll, chunk_bytes=4 * VOCAB * 11
            ).loss
        logits = hidden @ self.words.weight.T + self.bias
        logprobs = token_logprobs_of(logits, labels[:, None].expand(logits.shape[:3]))
        return rag_token_nll(logprobs, doc_scores, labels >= 0).sum()


def drawn(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(7 + rank)
    labels = torch.randint(VOCAB, (BATCH, TARGET_LEN), generator=draw)
    labels[rank, 3:] = -100
    ids = torch.randint(VOCAB, (BATCH, N_DOCS, TARGET_LEN), generator=draw)
    return ids, labels, torch.randn(BATCH, N_DOCS, generator=draw)


def gradients_of(rank: int) -> dict[str, dict[str, Any]]:
    """By kind and name, as lists, whole."""
    found = {}
    for kind in ("ddp", "fsdp"):
        model: Any = Model()
        if kind == "fsdp":
            fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        wrapped = model if kind == "fsdp" else DistributedDataParallel(model, broadcast_buffers=False)
        for _ in range(2):  # a second step meets what the first has left
            model.zero_grad()
            wrapped(*drawn(rank)).backward()
        gradients = {name: part.grad for name, part in model.named_parameters()}
        whole = {name: part.full_tensor() if kind == "fsdp" else part for name, part in gradients.items()}
        found[kind] = {name: part.tolist() for name, part in whole.items()}
    return found


def test_ranks_average_the_gradients_of_the_plain_formula(tmp_path: Path) -> None:
    parts = on_ranks(2, gradients_of, tmp_path)
    plain = Model()
    (sum(plain(*drawn(rank), fused=False) for rank in (0, 1)) / 2).backward()
    for found in parts:
        for kind in ("ddp", "fsdp"):
            for name, part in plain.named_parameters():
                torch.testing.assert_close(
                    torch.tensor(found[kind][name]), part.grad, rtol=1e-5, atol=1e-6, msg=f"{kind} {name}"
                )


def test_alone() -> None:
    """Both ways of the model above agree in one process, or the test of two ranks says nothing."""
    one, other = Model(), Model()
    one(*drawn(0)).backward()
    other(*drawn(0), fused=False).backward()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)
