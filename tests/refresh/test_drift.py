"""Staleness against numbers by hand, scipy where it is installed, and a whole re-encoding in small."""

from __future__ import annotations

import math

import pytest
import torch

from openbook.refresh.drift import cosine_drift, overlap_among_candidates, overlap_at_k, rank_correlation, score_drift

INF = math.inf


def all_true(scores: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(scores, dtype=torch.bool)


def test_overlap_by_hand() -> None:
    before = torch.tensor([[4, 9, 2], [7, 1, -1], [-1, -1, -1]])
    after = torch.tensor([[2, 8, 4], [3, -1, -1], [5, 6, 0]])
    assert overlap_at_k(before, after) == 2 / 5  # 4 and 2 of five hits; a missing row is never "kept"
    assert overlap_at_k(before, before) == 1.0
    assert overlap_at_k(before[2:], after[2:]) == 1.0, "no hit, nothing lost"
    # The new side may be read deeper than the old one.
    assert overlap_at_k(torch.tensor([[1, 2]]), torch.tensor([[5, 4, 3, 2, 0]])) == 0.5


def test_rank_correlation_by_hand() -> None:
    before = torch.tensor(
        [
            [4.0, 3.0, 2.0, 1.0],  # ranks 4 3 2 1 against 3 4 1 2: rho = 1 - 6 * (4 * 1) / (4 * 15) = .6
            [4.0, 3.0, 2.0, 1.0],  # the fourth is masked; 3 2 1 against 1 2 3: -1
            [9.0, 9.0, 9.0, 9.0],  # constant: left out
            [5.0, -INF, -INF, -INF],  # one candidate: left out
            [2.0, 1.0, 1.0, -INF],  # 3, 1.5, 1.5 against 3, 2, 1: 1.5 / sqrt(1.5 * 2)
        ]
    )
    after = torch.tensor(
        [
            [0.3, 0.4, 0.1, 0.2],
            [0.1, 0.2, 0.3, 9.0],
            [1.0, 2.0, 3.0, 4.0],
            [1.0, -INF, -INF, -INF],
            [3.0, 2.0, 1.0, -INF],
        ]
    )
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]).bool()
    for row, rho in ((0, 0.6), (1, -1.0), (4, math.sqrt(0.75))):
        one = slice(row, row + 1)
        assert rank_correlation(before[one], after[one], mask[one]) == pytest.approx(rho, abs=1e-12)
    assert rank_correlation(before, after, mask) == pytest.approx((0.6 - 1 + math.sqrt(0.75)) / 3, abs=1e-12)
    assert rank_correlation(before[2:4], after[2:4], mask[2:4]) == 1.0
    assert rank_correlation(before[:0], after[:0], mask[:0]) == 1.0


def test_rank_correlation_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = torch.Generator().manual_seed(3)
    # Few distinct values: many ties on both sides.
    before = torch.randint(0, 7, (13, 23), generator=draw).float()
    after = (before + torch.randint(-3, 4, (13, 23), generator=draw)).bfloat16()
    mask = torch.rand((13, 23), generator=draw) < 0.8
    triples = zip(before, after, mask, strict=True)
    rhos = [stats.spearmanr(b[m].numpy(), a[m].float().numpy()).statistic for b, a, m in triples]
    assert rank_correlation(before, after, mask) == pytest.approx(sum(rhos) / 13, abs=1e-12)


def test_cosine_drift_by_hand() -> None:
    before = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
    after = torch.tensor([[5.0, 0.0], [1.0, 1.0], [-3.0, -4.0]])
    assert cosine_drift(before, after) == pytest.approx((0 + 1 - math.sqrt(0.5) + 2) / 3)
    assert cosine_drift(before, before) == pytest.approx(0.0, abs=1e-15)
    assert cosine_drift(before[:0], after[:0]) == 0.0
    # A turn by a ten-thousandth: 1 - cos is 5e-9, far under fp32's spacing at 1.
    assert cosine_drift(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1e-4]])) == pytest.approx(5e-9, rel=1e-6)


def test_score_drift_by_hand() -> None:
    before = torch.tensor([[1.0, 0.5, -INF], [2.0, -INF, -INF]])
    after = torch.tensor([[0.25, 1.0, -INF], [2.25, 7.0, 7.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert score_drift(before, after, mask) == 0.5
    assert score_drift(before, after, torch.zeros_like(mask)) == 0.0


def test_overlap_among_candidates_by_hand() -> None:
    index_scores = torch.tensor([[9.0, 8.0, 7.0, 6.0, 5.0], [9.0, 8.0, 7.0, -INF, -INF], [9.0, -INF, -INF, -INF, -INF]])
    fresh = torch.tensor([[1.0, 5.0, 2.0, 4.0, 3.0], [1.0, 2.0, 3.0, 9.0, 9.0], [-7.0, 9.0, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    # k = 2: of {0, 1} against {1, 3} one is left, of {0, 1} against {2, 1} one, of {0} one.
    assert overlap_among_candidates(index_scores, fresh, mask, 2) == 3 / 5
    assert overlap_among_candidates(index_scores, fresh, mask, 5) == 1.0, "with m = k nothing can be displaced"
    assert overlap_among_candidates(index_scores, index_scores.clone(), mask, 3) == 1.0
    tied = torch.zeros(1, 5)
    assert overlap_among_candidates(index_scores[:1], tied, mask[:1], 2) == 1.0, "ties go to the first"


def test_candidates_bound_what_a_whole_encoding_shows() -> None:
    draw = torch.Generator().manual_seed(5)
    n_passages, k = 211, 7
    stale = torch.randn((31, n_passages), generator=draw)
    fresh = stale + torch.randn((31, n_passages), generator=draw)
    exact = overlap_at_k(stale.topk(k).indices, fresh.topk(k).indices)
    estimates = []
    for m in (k, 3 * k, 11 * k, n_passages):
        index_scores, rows = stale.topk(m)
        candidates = fresh.gather(1, rows)
        estimates.append(overlap_among_candidates(index_scores, candidates, all_true(candidates), k))
    assert estimates == sorted(estimates, reverse=True), "more candidates, a tighter bound"
    assert estimates[0] == 1.0 and estimates[-1] == exact < 0.8
