"""What n_docs costs: the estimates against loops over all passages, and what must hold whatever the numbers are."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from benchmarks.marginal.gradient import (
    Table,
    best,
    drawn_without_replacement,
    importance_gradient,
    measure,
    score_gradient,
)

OBJECTIVES = ("rag_token", "rag_sequence")


@pytest.fixture
def table() -> Table:
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    passages, questions = normal(6, 4), normal(2, 4)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    logprobs = torch.log_softmax(normal(2, 6, 3) * 2, -1)
    return Table(logprobs, mask, questions @ passages.T, passages, normal(2, 6))


def by_loops(objective: str, table: Table, question: int, kept: list[int]) -> list[float]:
    """sum over tokens (or once) of prior - posterior of each passage, from the paper's equations."""
    total = sum(math.exp(table.scores[question, z]) for z in kept)
    prior = {z: math.exp(table.scores[question, z]) / total for z in kept}
    tokens = [t for t in range(3) if table.mask[question, t]]
    groups = [[t] for t in tokens] if objective == "rag_token" else [tokens]
    found = [0.0] * 6
    for group in groups:
        joint = {z: prior[z] * math.exp(sum(float(table.logprobs[question, z, t]) for t in group)) for z in kept}
        for z in kept:
            found[z] += prior[z] - joint[z] / sum(joint.values())
    return found


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_gradient_of_the_best_k_is_that_of_the_papers_equations(table: Table, objective: str, k: int) -> None:
    kept = best(table.scores, k)
    found = score_gradient(objective, table, kept)
    for question in range(2):
        rows = sorted(range(6), key=lambda z: -float(table.scores[question, z]))[:k]
        expected = by_loops(objective, table, question, sorted(rows))
        assert found[question].tolist() == pytest.approx(expected, abs=1e-12)


def test_what_is_drawn_without_replacement_is_drawn_as_likely_as_it_is(table: Table) -> None:
    """The probability of a set is the sum over its orders (Plackett-Luce), from enumeration."""
    draw, counts, n = torch.Generator().manual_seed(0), dict[tuple[int, ...], int](), 20_000
    for kept in drawn_without_replacement(table.scores[:1].expand(n, -1), 2, draw):
        pair = tuple(kept.nonzero().flatten().tolist())
        counts[pair] = counts.get(pair, 0) + 1
    prior = torch.softmax(table.scores[0], -1).tolist()
    for a, b in itertools.combinations(range(6), 2):
        likely = prior[a] * prior[b] / (1 - prior[a]) + prior[b] * prior[a] / (1 - prior[b])
        assert counts.get((a, b), 0) / n == pytest.approx(likely, abs=4 * math.sqrt(likely / n) + 1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_weighed_draws_are_what_enumeration_expects_of_them(table: Table, objective: str) -> None:
    """E of the estimate from two draws, over all 36 ordered pairs."""
    draw = torch.Generator().manual_seed(1)
    mean = torch.stack([importance_gradient(objective, table, 2, draw) for _ in range(6000)]).mean(0)
    for question in range(2):
        prior = torch.softmax(table.scores[question], -1).tolist()
        tokens = [t for t in range(3) if table.mask[question, t]]
        groups = [[t] for t in tokens] if objective == "rag_token" else [tokens]
        expected = [0.0] * 6
        for pair in itertools.product(range(6), repeat=2):
            for group in groups:
                read = [math.exp(sum(float(table.logprobs[question, z, t]) for t in group)) for z in pair]
                for z, weight in zip(pair, read, strict=True):
                    expected[z] += prior[pair[0]] * prior[pair[1]] * (0.5 - weight / sum(read))
        assert mean[question].tolist() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_all_passages_are_the_exact_marginal_and_one_teaches_nothing(table: Table, objective: str) -> None:
    rows = {(row["way"], row["k"]): row for row in measure(objective, table, draws=20)}
    for way in ("top k", "top k of a stale index", "stale, 4 k re-ranked", "k drawn"):
        assert rows[way, 6]["bias"] == pytest.approx(0, abs=1e-9) == rows[way, 6]["median"]
        assert rows[way, 6]["deviation"] == pytest.approx(0, abs=1e-9)
        assert rows[way, 1]["bias"] == pytest.approx(1)  # p(z|x) of a single passage is 1 whatever its score
    assert rows["top k", 6]["mass"] == pytest.approx(1)
    masses = [rows["top k", k]["mass"] for k in (1, 2, 4, 6)]
    assert masses == sorted(masses)
    assert rows["k drawn, weighed", 4]["deviation"] > 0
