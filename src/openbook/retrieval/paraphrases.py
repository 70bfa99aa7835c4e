"""Which passages are read of a question that is asked in several wordings.

A question encoder that has seen one wording of a question takes another one for a question about something near. Each
wording of a training question has its own prior p(z|x_j) and, as the answer is the same, the likelihood p(y|x,z) that
the generator has of it after reading one of them. What is read are the passages with the highest mean of the priors:
the right one, and those that some wording would take for it.
"""

import torch
from torch import Tensor

from openbook.batch import Retrieved, to_device
from openbook.retrieval.dense import DenseRetriever

# So many of a question's own best passages are looked at: what another wording finds beyond them is left out.
POOL = 32


def retrieve_for_all(retriever: DenseRetriever, queries: Tensor, wordings: Tensor, of: Tensor, top_k: int) -> Retrieved:
    """The top_k of the mean prior, best first, by the index as it stands; index_scores are the question's own.

    queries [batch, dim] of questions; wordings [n, dim] of their paraphrases; of [n] on the CPU: whose each one is."""
    own = retriever.retrieve(queries, max(POOL, top_k))
    others = retriever.search(wordings, top_k)
    prior = _prior(own, retriever.temperature)
    same = others.rows[:, :, None] == own.rows[of][:, None, :]
    found = (_prior(others, retriever.temperature)[:, :, None] * same).sum(1)
    mean = prior.index_add(0, of, found) / (1 + torch.bincount(of, minlength=len(prior)))[:, None]
    order = torch.where(own.mask, mean, -1.0).argsort(dim=1, descending=True, stable=True)[:, :top_k]
    return Retrieved(own.rows.gather(1, order), own.index_scores.gather(1, to_device(order, own.index_scores.device)))


def _prior(found: Retrieved, temperature: float) -> Tensor:
    """[batch, top_k] on the CPU, 0 where nothing was found."""
    scores = torch.where(found.mask, found.index_scores.detach().cpu().double() / temperature, -torch.inf)
    return torch.where(found.mask.any(1, keepdim=True), scores.softmax(1), 0.0)
