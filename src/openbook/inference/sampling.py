"""Answers drawn at random from the marginal over passages, reproducibly.

Token by token, each from the marginal of the next token given the prefix, is a draw from p(y|x) of RAG-Token and, with
passages weighted by their posterior given the prefix, of RAG-Sequence (Lewis et al. 2020, section 2.1): no candidates,
no search. Temperature and nucleus (Holtzman et al. 2020, section 3.1) reshape that one distribution, not those of the
passages.

What is drawn is a function of the seed and the question's id: the same in any batch and on any number of ranks, as far
as the logits are (their last bits depend on what else is in a batch).
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from openbook.errors import OpenBookError
from openbook.inference.rag_token import Decoded, Objective, follow
from openbook.models.generator import Generator


@torch.inference_mode()
def sample(
    generator: Generator,
    context_ids: Tensor,
    context_mask: Tensor,
    doc_logprobs: Tensor,
    objective: Objective,
    uniforms: Tensor,
    min_length: int = 0,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    no_repeat_ngram: int = 0,
) -> Decoded:
    """One answer to each question; sequence_logprob is the model's, whatever temperature and top_p.

    uniforms: [batch, max_length], from 0 to below 1, one number for each token. The others are those of `greedy`.
    """
    if not (temperature > 0 and 0 < top_p <= 1):
        raise OpenBookError(
            "nothing can be drawn",
            got=f"temperature {temperature}, top_p {top_p}",
            expected="temperature > 0 and 0 < top_p <= 1",
        )
    uniforms = uniforms.to(context_ids.device)

    def drawn(step: int, marginal: Tensor) -> Tensor:
        return draw(marginal, uniforms[:, step], temperature, top_p)

    return follow(
        drawn,
        generator,
        context_ids,
        context_mask,
        doc_logprobs,
        objective,
        uniforms.shape[1],
        min_length,
        no_repeat_ngram,
    )


def draw(logprobs: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Tokens [batch] at the places `uniform` [batch] of the cumulative distribution, most probable token first.

    logprobs [batch, vocab], up to a constant. top_p: of tokens by falling probability those before which less than
    top_p lies are kept, always the first. A row that is -inf throughout gives some token.
    """
    probabilities, order = (logprobs.double() / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    if top_p < 1:
        probabilities = probabilities.masked_fill(probabilities.cumsum(-1) - probabilities >= top_p, 0.0)
    ends = probabilities.cumsum(-1)
    places = torch.searchsorted(ends, uniform.double()[:, None] * ends[:, -1:], right=True)
    last = ((probabilities > 0).sum(-1, keepdim=True) - 1).clamp(min=0)  # of rounding in the sum's last bit
    return order.gather(1, torch.minimum(places, last))[:, 0]


def uniforms(seed: int, ids: Sequence[str], length: int) -> Tensor:
    """[len(ids), length] float64 from 0 to below 1, each row a function of seed and id."""
    rows = []
    for name in ids:
        key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7])
        rows.append(torch.rand(length, dtype=torch.float64, generator=torch.Generator().manual_seed(key)))
    return torch.stack(rows)
