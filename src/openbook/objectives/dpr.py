"""Dense passage retrieval: the encoders trained on gold passages (Karpukhin et al. 2020, arXiv:2004.04906, eq. 2).

With s[b,j] = <question_emb[b], passage_emb[j]> / temperature over the passages of the whole batch, those of the other
questions included (in-batch negatives, section 3.2), and A_b the passages that question b may be told apart from:

    -log p(z+ | x_b) = logsumexp_{j in A_b}( s[b,j] ) - s[b,+]

Its gradient in s is p(j | x_b) over A_b, minus one at the positive passage.
"""

import torch
from torch import Tensor


def dpr_scores(question_emb: Tensor, passage_emb: Tensor, positive: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """s [batch, n] fp32 under any autocast (fp64 stays); -inf where a passage does not compete.

    question_emb [batch, dim], passage_emb [n, dim], mask [batch, n] bool: the passages that compete. positive [batch]
    int64: the column of each question's positive passage, which competes whatever the mask says.
    """
    with torch.autocast(question_emb.device.type, enabled=False):
        dtype = torch.promote_types(question_emb.dtype, torch.float32)
        scores = question_emb.to(dtype) @ passage_emb.to(dtype).T / temperature
    competes = mask.scatter(1, positive[:, None], True)
    return scores.masked_fill(~competes, -torch.inf)


def nll_of(scores: Tensor, positive: Tensor) -> Tensor:
    """-log p(positive passage | question) [batch], nats, from the scores [batch, n] of `dpr_scores`. A question whose
    positive passage competes with none has 0 and no gradient."""
    return torch.logsumexp(scores, 1) - scores.gather(1, positive[:, None]).squeeze(1)


def in_batch_hits(scores: Tensor, positive: Tensor) -> Tensor:
    """[batch] bool from the scores [batch, n] of `dpr_scores`: no passage that competes scores higher than the
    positive one. The share of them is the in-batch accuracy."""
    return scores.gather(1, positive[:, None]).squeeze(1) >= scores.amax(1)
