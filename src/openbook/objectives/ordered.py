"""Passages that were chosen one after the other, and what they were worth: reward-weighted log-likelihood.

The probability of an ordered subset z_1 .. z_k of the passages A (Plackett-Luce: Luce 1959, Plackett 1975), by scores
s[b,j]:

    log P(z_1 .. z_k | x_b) = sum_i ( s[b,z_i] - logsumexp_{j in A without z_1 .. z_{i-1}} s[b,j] )

The loss of a question is -(reward - baseline) log P. Where the subsets were drawn from P itself, the mean of its
gradient is that of -E[reward] (Williams 1992), whatever the baseline is; of older ones it is the gradient of their
reward-weighted likelihood (Peters & Schaal 2007).
"""

import torch
from torch import Tensor


def ordered_logprob(scores: Tensor, chosen: Tensor) -> Tensor:
    """log P [batch] of the ordered subset, nats.

    scores [batch, n], -inf where a passage does not compete; chosen [batch, k] int64: columns in their order, -1 behind
    the last. A question that chose nothing has 0 and no gradient. A column must not come twice.
    """
    left, total = scores, scores.new_zeros(len(scores))
    for column in chosen.T:
        there, place = column >= 0, column.clamp(min=0)[:, None]
        # No gradient flows through rows that have ended, the -inf of all their passages included.
        open_, ended = left.masked_fill(~there[:, None], 0.0), ~there
        gained = open_.gather(1, place).squeeze(1) - torch.logsumexp(open_, 1)
        total = total + gained.masked_fill(ended, 0.0)
        taken = torch.zeros_like(left, dtype=torch.bool).scatter(1, place, there[:, None])
        left = left.masked_fill(taken, -torch.inf)
    return total
