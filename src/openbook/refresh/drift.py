"""How stale an index is: what the current encoder would retrieve and how it would score it, against the index.

Axis names beside those of `batch`: n is questions (or passages, where vectors are compared), m candidates per
question. Scores are inner products. Every result is a plain number; where there is nothing to compare it is that of
an index that has lost nothing.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from openbook.batch import MISSING_ROW


def overlap_at_k(before_rows: Tensor, after_rows: Tensor) -> float:
    """The share, 0 to 1, of the old top-k that is in the new top-k, over all questions together.

    before_rows, after_rows: [n, k] int64, a question's hits in any order. Missing hits (MISSING_ROW) of the old side
    are not counted, those of the new side match nothing. 1.0 where the old side has no hit at all.
    """
    present = before_rows != MISSING_ROW
    kept = (before_rows[:, :, None] == after_rows[:, None, :]).any(-1) & present
    n_present = int(present.sum())
    return int(kept.sum()) / n_present if n_present else 1.0


def overlap_among_candidates(index_scores: Tensor, fresh_scores: Tensor, mask: Tensor, k: int) -> float:
    """overlap_at_k without encoding the corpus: how many of the index's first k are among the k best by fresh scores,
    where only the index's own first m passages (m several times k) are scored afresh.

    index_scores, fresh_scores: [n, m]; mask: [n, m] bool, False where there is no candidate. Scores are finite where it
    is True. An upper bound on what encoding the whole corpus would show: a passage that climbs into the top-k from
    beyond the m candidates is not seen here, so it displaces none. At m = n_passages the two are equal. Ties go to the
    candidate that stands first.
    """
    return overlap_at_k(_best(index_scores, mask, k), _best(fresh_scores, mask, k))


def rank_correlation(before_scores: Tensor, after_scores: Tensor, mask: Tensor) -> float:
    """Mean over questions of Spearman's rho, -1 to 1, between the stale and the fresh scores of the same candidates.

    before_scores, after_scores: [n, m], finite where mask [n, m] bool is True. Equal scores share their mean
    rank, and rho is the Pearson correlation of the ranks (Spearman 1904; the form that holds with ties). Questions
    with fewer than two candidates or with all scores equal on one side have no rho and are left out; 1.0 where none is
    left. Candidates that an index chose are all near the top, so this falls sooner than a correlation over a corpus.
    """
    before, after = _centred_ranks(before_scores, mask), _centred_ranks(after_scores, mask)
    spread = before.square().sum(1) * after.square().sum(1)
    defined = spread > 0
    rho = (before * after).sum(1)[defined] / spread[defined].sqrt()
    return rho.mean().item() if len(rho) else 1.0


def cosine_drift(before: Tensor, after: Tensor) -> float:
    """Mean of 1 - cosine, 0 to 2, between the old and the new embeddings [n, dim] of the same passages; 0.0 for none.

    A turn of all vectors together counts here, though it changes no ranking if the questions turn with them.
    """
    # In float64: of 1 - cosine little is left in fp32 where a passage has hardly moved.
    drift = 1 - F.cosine_similarity(before.double(), after.double(), dim=1)
    return drift.mean().clamp(min=0).item() if len(drift) else 0.0


def score_drift(before_scores: Tensor, after_scores: Tensor, mask: Tensor) -> float:
    """Mean |fresh - stale| score of the same candidates, in units of the inner product; 0.0 where there is none.

    before_scores, after_scores: [n, m]; mask: [n, m] bool. With an index that
    compresses vectors it holds their error too.
    """
    drift = (after_scores[mask].double() - before_scores[mask].double()).abs()
    return drift.mean().item() if len(drift) else 0.0


def _best(scores: Tensor, mask: Tensor, k: int) -> Tensor:
    """[n, min(k, m)] int64: columns of the k highest scores, MISSING_ROW where a question has fewer candidates."""
    order = scores.masked_fill(~mask, -torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :k]
    return order.where(mask.gather(1, order), MISSING_ROW)


def _centred_ranks(scores: Tensor, mask: Tensor) -> Tensor:
    """[n, m] float64: rank among the question's candidates, ties sharing the mean of theirs, less the mean rank.

    0 where mask is False.
    """
    scores = scores.double().masked_fill(~mask, torch.inf).contiguous()
    rising = scores.sort(dim=1).values
    n_lower, n_up_to = torch.searchsorted(rising, scores), torch.searchsorted(rising, scores, right=True)
    # Twice the rank, n_lower + n_up_to + 1, less twice the mean, n + 1: whole numbers until the last step.
    doubled = n_lower + n_up_to - mask.sum(1, keepdim=True)
    return torch.where(mask, doubled.double() / 2, 0.0)
