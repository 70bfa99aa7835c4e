"""Drawn answers: their frequencies against the marginal's probabilities by float64 loops, and what they depend on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from openbook.errors import OpenBookError
from openbook.inference.rag_token import Objective
from openbook.inference.sampling import draw, sample, uniforms
from tests.inference.test_rag_token import EOS, N_DOCS, N_PASSAGES, OBJECTIVES, VOCAB, TableGenerator, prefix_logprob

DRAWS, LENGTH = 20_000, 2
PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
PASSAGES = [3, 11, 7]


def drawn(objective: Objective, **settings: Any) -> dict[tuple[int, ...], int]:
    """How often each answer to one question was drawn."""
    generator = TableGenerator(5)
    generator.table[..., EOS] += 1.5  # so that answers end at both places
    ids = torch.tensor(PASSAGES)[:, None].repeat(DRAWS, 2)
    places = torch.rand(DRAWS, LENGTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = sample(generator, ids, torch.ones_like(ids), PRIOR.expand(DRAWS, -1), objective, places, **settings)  # type: ignore[arg-type]
    counts: dict[tuple[int, ...], int] = {}
    likelihood: dict[tuple[int, ...], float] = {}
    for row, logprob in zip(found.token_ids.tolist(), found.sequence_logprob.tolist(), strict=True):
        answer = tuple(row[: row.index(EOS) + 1] if EOS in row else row)
        counts[answer] = counts.get(answer, 0) + 1
        likelihood[answer] = logprob
    for answer, logprob in likelihood.items():  # the model's own, whatever reshapes the draw
        expected, _ = prefix_logprob(generator.table, PASSAGES, PRIOR.tolist(), [*answer], objective)
        assert logprob == pytest.approx(expected, abs=1e-9)
    return counts


def next_tokens(
    table: Tensor, prefix: tuple[int, ...], objective: str, temperature: float, top_p: float, banned: set[int]
) -> list[float]:
    """p(v | x, y_<t) [vocab], reshaped: tempered, then the nucleus."""
    past, _ = prefix_logprob(table, PASSAGES, PRIOR.tolist(), [*prefix], objective)
    values = []
    for token in range(VOCAB):
        with_it, _ = prefix_logprob(table, PASSAGES, PRIOR.tolist(), [*prefix, token], objective)
        values.append(0.0 if token in banned else math.exp((with_it - past) / temperature))
    total, before, kept = sum(values), 0.0, [0.0] * VOCAB
    for token in sorted(range(VOCAB), key=lambda v: -values[v]):
        if before < top_p:
            kept[token] = values[token] / total
        before += values[token] / total
    return [value / sum(kept) for value in kept]


def probabilities(
    objective: str, temperature: float = 1.0, top_p: float = 1.0, repeats: bool = True
) -> dict[tuple[int, ...], float]:
    """Of every answer of at most two tokens."""
    generator = TableGenerator(5)
    generator.table[..., EOS] += 1.5
    first = next_tokens(generator.table, (), objective, temperature, top_p, set())
    found = {(EOS,): first[EOS]}
    for one in range(VOCAB):
        if one != EOS:
            banned = set() if repeats else {one}
            second = next_tokens(generator.table, (one,), objective, temperature, top_p, banned)
            found |= {(one, other): first[one] * second[other] for other in range(VOCAB)}
    return found


def chi_square(counts: dict[tuple[int, ...], int], expected: dict[tuple[int, ...], float]) -> float:
    """Pearson's statistic in standard deviations from its mean; answers expected fewer than 5 times are one cell."""
    assert sum(expected.values()) == pytest.approx(1, abs=1e-9)
    assert all(expected[answer] > 0 for answer in counts)
    cells, rare = [], [0.0, 0.0]
    for answer, probability in expected.items():
        cell = [counts.get(answer, 0), DRAWS * probability]
        if cell[1] >= 5:
            cells.append(cell)
        else:
            rare = [rare[0] + cell[0], rare[1] + cell[1]]
    if rare[1] > 0:
        cells.append(rare)
    df = len(cells) - 1
    return (sum((seen - due) ** 2 / due for seen, due in cells) - df) / math.sqrt(2 * df)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.7, 1.0), (1.0, 0.6), (1.4, 0.8)])
def test_frequencies_are_the_marginals_probabilities(objective: Objective, temperature: float, top_p: float) -> None:
    counts = drawn(objective, temperature=temperature, top_p=top_p)
    assert abs(chi_square(counts, probabilities(objective, temperature, top_p))) < 4
    assert len(counts) >= 5


def test_frequencies_tell_the_likelihoods_apart() -> None:
    """The test above would fail for the other objective, another temperature or a repeated token."""
    assert chi_square(drawn("rag_token"), probabilities("rag_sequence")) > 20
    assert chi_square(drawn("rag_token", temperature=1.1), probabilities("rag_token")) > 10
    constrained = drawn("rag_token", no_repeat_ngram=1)
    assert abs(chi_square(constrained, probabilities("rag_token", repeats=False))) < 4


def test_limits_of_a_draw() -> None:
    """The first token of the order at 0, the last with any probability just below 1; a tiny nucleus is greedy."""
    logprobs = torch.tensor([[0.2, 0.5, 0.0, 0.3]]).log().repeat(5, 1)
    places = torch.tensor([0.0, 0.49, 0.51, 0.79, 1 - 2**-24])
    assert draw(logprobs, places, 1.0, 1.0).tolist() == [1, 1, 3, 3, 0]
    assert draw(logprobs, places, 1.0, 1e-9).tolist() == [1] * 5
    assert draw(logprobs, places, 1.0, 0.5).tolist() == [1] * 5
    assert draw(logprobs, places, 1.0, 0.51).tolist() == [1, 1, 1, 3, 3]
    assert draw(logprobs, places, 1e-6, 1.0).tolist() == [1] * 5


def test_a_missing_passage_and_a_question_without_any() -> None:
    ids = torch.randint(N_PASSAGES, (2 * N_DOCS, 2), generator=torch.Generator().manual_seed(1))
    prior = torch.tensor([[0.4, 0.6, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64).log()
    places = uniforms(0, ["a", "b"], 5)
    found = sample(TableGenerator(0), ids, torch.ones_like(ids), prior, "rag_sequence", places)  # type: ignore[arg-type]
    assert found.token_ids[1, 0] == EOS and found.sequence_logprob[1] == -math.inf
    two = [part.view(2, N_DOCS, 2)[:1, :2].flatten(0, 1) for part in (ids, torch.ones_like(ids))]
    alone = sample(TableGenerator(0), *two, prior[:1, :2], "rag_sequence", places[:1])  # type: ignore[arg-type]
    width = alone.token_ids.shape[1]
    assert torch.equal(found.token_ids[:1, :width], alone.token_ids)
    assert found.sequence_logprob[0] == pytest.approx(float(alone.sequence_logprob[0]), abs=1e-12)


def test_numbers_by_seed_and_id() -> None:
    both = uniforms(3, ["q1", "q2"], 4)
    assert torch.equal(uniforms(3, ["q2"], 4), both[1:])
    assert len({float(value) for value in torch.cat([both, uniforms(4, ["q1", "q2"], 4)]).flatten()}) == 16
    many = uniforms(0, [str(n) for n in range(5000)], 3)
    assert many.mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.02) and 0 <= many.min() <= many.max() < 1


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_what_cannot_be_drawn(settings: dict[str, float]) -> None:
    with pytest.raises(OpenBookError, match=r"nothing can be drawn.*temperature > 0 and 0 < top_p <= 1"):
        drawn("rag_token", **settings)
