"""Training guided by the answer, which openbook leaves out: a second question encoder reads question and answer.

    python -m benchmarks.marginal.posterior_guided EXPERIMENT [key=value ...]

trains as `openbook train` does, but minimises the negative evidence lower bound of Paranjape et al. 2022 ("Hindsight:
Posterior-guided training of retrievers for improved open-ended generation", section 3) in the place of the marginal:

    sum_k q(z_k|x,y) (-log p(y|x,z_k))  +  KL( q(z|x,y) || p(z|x) )

q is a guide, a copy of the question encoder that reads the answer behind the question; half of the n_docs passages are
the index's best for the question, half for the guide. At test the question alone is read. docs/method.md has what came
of it.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn

import openbook.setup.models
from openbook.__main__ import main
from openbook.batch import Batch, Retrieved, to_device
from openbook.models.encoders import load_tokenizer
from openbook.models.pretrained import model_folder
from openbook.objectives.by_name import OBJECTIVES
from openbook.objectives.marginal import masked_logprobs
from openbook.retrieval.dense import DenseRetriever
from openbook.training.rag_module import RagModule
from openbook.utils.distributed import world_size

LONGEST = 64  # tokens of question and answer


def answer_logprobs(token_logprobs: Tensor, target_mask: Tensor) -> Tensor:
    """log p(y|x,z) [batch, n_docs]."""
    return masked_logprobs(token_logprobs, target_mask).sum(-1)


def reading(token_logprobs: Tensor, guide_scores: Tensor, target_mask: Tensor) -> Tensor:
    """The bound's first term [batch], of which the generator learns; guide_scores are constants here."""
    return -(guide_scores.softmax(-1) * answer_logprobs(token_logprobs, target_mask)).sum(-1)


def guiding(answer: Tensor, guide_scores: Tensor, doc_scores: Tensor) -> Tensor:
    """The bound [batch], of which both question encoders and the passage encoder learn. answer: log p(y|x,z) [batch,
    n_docs], constants here."""
    guide, prior = guide_scores.log_softmax(-1), doc_scores.log_softmax(-1)
    return (guide.exp() * (guide - prior - answer)).sum(-1)


def half_of_each(first: Tensor, second: Tensor, n: int) -> Tensor:
    """[batch, n] rows: the first n // 2 of each row of `first`, then those of `second`, none of them twice."""
    rows = []
    for mine, theirs in zip(first.tolist(), second.tolist(), strict=True):
        kept = mine[: n // 2]
        for more in (theirs, mine):
            kept += [row for row in more if row not in kept][: n - len(kept)]
        rows.append(kept)
    return torch.tensor(rows)


class GuidedModule(RagModule):
    """A RagModule with a guide. One rank; passages are never missing, as with an index of all of them."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        assert isinstance(self.retriever, DenseRetriever) and self.teacher is None and world_size() == 1
        self.guide = copy.deepcopy(self.retriever.question_encoder)
        self.tokenizer = load_tokenizer(model_folder("minilm"))
        self.loss, self.minimises_likelihood = reading, False

    def parts(self) -> list[tuple[str, nn.Module, float]]:
        return [*super().parts(), ("guide", self.guide, self.optim.lr_question_encoder or self.optim.lr)]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        retriever = self.retriever
        asked, answers = zip(*((one.question, one.answers[0]) for one in batch.examples), strict=True)
        read = self.tokenizer(asked, answers, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        device = batch.labels.device
        guide = self.guide(to_device(read["input_ids"], device), to_device(read["attention_mask"], device).bool())
        queries = retriever.represent(batch)
        found = retriever.retrieve(queries, self.n_docs)
        rows = half_of_each(found.rows, retriever.retrieve(guide.detach(), self.n_docs).rows, self.n_docs)
        twice = Retrieved(rows.repeat(2, 1), found.index_scores.repeat(2, 1))  # so that each passage is encoded once
        doc_scores, guide_scores = retriever.score(torch.cat([queries, guide]), twice).chunk(2)
        weight = self._loss_weight(doc_scores, batch)
        told = self.read(batch, rows, guide_scores.detach(), weight)
        answer = answer_logprobs(told.token_logprobs, batch.target_mask)
        loss = told.loss + (guiding(answer, guide_scores, doc_scores) * weight).sum()
        nll = OBJECTIVES[self.likelihood](told.token_logprobs, doc_scores.detach(), batch.target_mask)
        self._log(nll, told.minimised, batch)
        mine = slice(self.n_docs // 2)  # those whose index scores are the question's: staleness is measured on them
        scores = {"doc_scores": doc_scores.detach()[:, mine], "index_scores": found.index_scores[:, mine]}
        return {
            "loss": loss,
            "nll": nll,
            "token_logprobs": told.token_logprobs[:, mine],
            "rows": rows[:, mine],
            **scores,
        }


if __name__ == "__main__":
    openbook.setup.models.RagModule = GuidedModule  # type: ignore[misc]
    sys.exit(main(["train", *sys.argv[1:]]))
