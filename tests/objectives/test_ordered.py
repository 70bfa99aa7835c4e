"""The likelihood of an ordered subset, against enumeration of all of them on six passages, gradients included."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from openbook.objectives.ordered import ordered_logprob

N = 6


@pytest.fixture
def scores() -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 1.5


def probability(scores: list[float], subset: tuple[int, ...]) -> float:
    left, total = set(range(N)), 1.0
    for one in subset:
        total *= math.exp(scores[one]) / sum(math.exp(scores[j]) for j in left)
        left.remove(one)
    return total


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_the_probabilities_of_all_ordered_subsets_are_those_of_enumeration(scores: Tensor, k: int) -> None:
    subsets = list(itertools.permutations(range(N), k))
    found = ordered_logprob(scores.expand(len(subsets), N), torch.tensor(subsets)).exp()
    assert found.tolist() == pytest.approx([probability(scores.tolist(), one) for one in subsets], rel=1e-12)
    assert float(found.sum()) == pytest.approx(1)


@pytest.mark.parametrize("baseline", [0.0, 0.7])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_expected_gradient_is_that_of_the_expected_reward(scores: Tensor, k: int, baseline: float) -> None:
    subsets = list(itertools.permutations(range(N), k))
    rewards = torch.randn(len(subsets), generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    # E[reward], differentiated through the probabilities themselves
    plain = scores.clone().requires_grad_()
    left = torch.exp(plain)
    chances = []
    for subset in subsets:
        chance, rest = plain.new_ones(()), left.sum()
        for one in subset:
            chance, rest = chance * left[one] / rest, rest - left[one]
        chances.append(chance)
    expected_reward = (torch.stack(chances) * rewards).sum()
    (wanted,) = torch.autograd.grad(-expected_reward, plain)
    # the mean over subsets drawn from P of the loss's gradient
    asked = scores.clone().requires_grad_()
    logprobs = ordered_logprob(asked.expand(len(subsets), N), torch.tensor(subsets))
    (found,) = torch.autograd.grad((-(rewards - baseline) * logprobs * logprobs.exp().detach()).sum(), asked)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_rows_may_choose_fewer_and_passages_may_not_compete(scores: Tensor) -> None:
    rows = scores.expand(3, N).clone()
    rows[1, 4] = -torch.inf
    asked = rows.clone().requires_grad_()
    found = ordered_logprob(asked, torch.tensor([[2, 0, 5], [1, -1, -1], [-1, -1, -1]]))
    values = scores.tolist()
    assert float(found[0]) == pytest.approx(math.log(probability(values, (2, 0, 5))))
    among = sum(math.exp(value) for place, value in enumerate(values) if place != 4)
    assert float(found[1]) == pytest.approx(values[1] - math.log(among))
    assert float(found[2]) == 0
    (gradient,) = torch.autograd.grad(found.sum(), asked)
    assert bool(gradient.isfinite().all())
    assert gradient[1, 4] == 0 and gradient[2].abs().sum() == 0


def test_one_chosen_passage_is_dprs_loss() -> None:
    from openbook.objectives.dpr import nll_of

    scores, positive = torch.randn(4, 9, dtype=torch.float64), torch.tensor([0, 3, 8, 3])
    torch.testing.assert_close(-ordered_logprob(scores, positive[:, None]), nll_of(scores, positive))
