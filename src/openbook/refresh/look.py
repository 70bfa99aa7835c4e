"""A look at how stale the index is, between refreshes: encode what it gives for a few probe questions."""

from __future__ import annotations

import torch
from torch import Tensor

from openbook.refresh.drift import cosine_drift, overlap_among_candidates, rank_correlation
from openbook.refresh.measure import Sample
from openbook.retrieval.dense import Retriever
from openbook.utils.distributed import rank, sum_over_ranks, world_size


def look(retriever: Retriever, questions: Tensor, sample: Sample, k: int) -> dict[str, float]:
    """Overlap@k and rank correlation of stale and fresh scores among the index's first 3 k passages for questions
    [n, dim] (the same on every rank), and the cosine drift of the sample; by the name each is logged under.

    About as much work as a training step: the ranks share the questions. Called by all ranks together.
    """
    snapshot = retriever.snapshot
    assert snapshot is not None
    mine = questions[slice(rank(), None, world_size())]
    found = snapshot.search(mine, 3 * k)
    rows, places = torch.unique(found.rows.clamp(min=0), return_inverse=True)
    fresh = torch.einsum("bd,bkd->bk", mine, retriever.encode_once(rows).cpu()[places])
    before = sample.vectors
    if snapshot.index.replaceable:  # there they may have been replaced since
        before = torch.from_numpy(snapshot.index.vectors(sample.rows - snapshot.first_row))
    values = (
        overlap_among_candidates(found.index_scores, fresh, found.mask, k),
        rank_correlation(found.index_scores, fresh, found.mask),
        cosine_drift(before, retriever.encode_once(torch.from_numpy(sample.rows)).cpu()),
    )
    weights = torch.tensor([len(mine), len(mine), len(sample.rows)], dtype=torch.float64)
    sums = sum_over_ranks(torch.stack([torch.tensor(values, dtype=torch.float64) * weights, weights]))
    names = ("staleness/overlap_at_k", "staleness/rank_correlation", "staleness/cosine_drift")
    return dict(zip(names, (sums[0] / sums[1].clamp(min=1)).tolist(), strict=True))


@torch.inference_mode()
def embedded(probes: tuple[Tensor, Tensor] | None, retriever: Retriever, dtype: torch.dtype) -> Tensor:
    """Probe questions' embeddings [n, dim] fp32 on the CPU under today's question encoder, autocast to dtype; n is 0
    without probes. probes: ids and mask [n, question_len]."""
    encoder = retriever.question_encoder
    if probes is None:
        return torch.empty(0, encoder.dim)
    device, training = next(encoder.parameters()).device, encoder.training
    encoder.eval()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        questions = encoder(*(part.to(device) for part in probes)).float().cpu()
    encoder.train(training)
    return questions
