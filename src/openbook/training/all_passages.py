"""Training a generator that reads all passages of a question at once, and what it teaches the retriever.

The generator learns from its likelihood alone, -log p(y | x, z_1 .. z_K), which says nothing about single passages. The
retriever learns from a second term, in which the generator's opinion of the passages is a constant:

    emdr2                     -log sum_k p(z_k|x) p(y|x,z_k)                         Sachan et al. 2021, eq. 7
    perplexity_distillation   KL(softmax(log p(y|x,z_k) / T) || p(z|x))              Izacard et al. 2022, section 2.2
    leave_one_out             KL(softmax(-log p(y | x, all but z_k) / T) || p(z|x))  the same
    attention_distillation    KL(softmax(what is read of z_k / T) || p(z|x))         the same
    generator_only            nothing                                                fusion in the decoder alone

p(y|x,z_k) is the same generator's, reading that passage alone. What is read of a passage is the sum over its context's
tokens of attention weight times the norm of the value, a mean over heads, layers and target tokens.
"""

from typing import Any

import torch
from torch import Tensor

from openbook.batch import MISSING_ROW, Batch
from openbook.models.all_passages.reading import Readings, read_together
from openbook.objectives.distillation import distilled, expected_likelihood
from openbook.objectives.fused import FusedLoss
from openbook.objectives.marginal import all_passages_nll, closed_book_nll, masked_logprobs
from openbook.training.rag_module import RagModule, Read


class AllPassagesModule(RagModule):
    """A RagModule whose generator reads all passages at once (generator.reads=all)."""

    def __init__(self, *arguments: Any, objective: str, distill_temperature: float = 1.0, **named: Any):
        # The base class wants an objective of single passages; this one minimises its own.
        super().__init__(*arguments, objective="rag_token", **named)
        self.objective, self.distill_temperature = objective, distill_temperature
        self.loss, self.likelihood = _first_nll, "all_passages"
        self.minimises_likelihood = objective == "generator_only" and not self.label_smoothing

    def read(self, batch: Batch, rows: Tensor, doc_scores: Tensor, loss_weight: Tensor) -> Read:
        readings = read_together(
            self.generator,
            batch,
            rows,
            self.contexts,
            leave_one_out=self.objective == "leave_one_out",
            attention=self.objective == "attention_distillation",
        )
        present = rows != MISSING_ROW
        every = self._through_head(readings.together, batch, torch.ones(len(rows), 1, dtype=torch.bool), loss_weight)
        with torch.no_grad():
            alone = self._through_head(readings.alone, batch, present, loss_weight).token_logprobs
            opinion = self._opinion(readings, alone, present, batch, loss_weight)
        taught = self._taught(opinion, doc_scores)
        learns = (loss_weight != 0) & taught.isfinite()
        loss = every.loss + (torch.where(learns, taught, 0.0) * loss_weight).sum()
        nll = all_passages_nll(every.token_logprobs, doc_scores, batch.target_mask)
        minimised = torch.where(nll.isinf(), nll, every.nll + taught.detach())  # without a passage there is neither
        return Read(loss, minimised, nll, alone)

    def _through_head(self, hidden: Tensor, batch: Batch, present: Tensor, loss_weight: Tensor) -> FusedLoss:
        """Hidden states [batch, n, target_len, dim] through the head. Only those read from all passages, n = 1, have a
        loss that means something."""
        return self.fused_loss(
            hidden, hidden.new_zeros(hidden.shape[:2], dtype=torch.float32), batch, present, loss_weight
        )

    def _opinion(
        self, readings: Readings, alone: Tensor, present: Tensor, batch: Batch, loss_weight: Tensor
    ) -> Tensor | None:
        """[batch, n_docs], -inf where there is none; None where the retriever is not taught."""
        mask = batch.target_mask
        match self.objective:
            case "emdr2" | "perplexity_distillation":
                opinion = masked_logprobs(alone, mask).sum(-1)
            case "leave_one_out":
                assert readings.without is not None
                several = (present.sum(1, keepdim=True) > 1) & present
                without = self._through_head(readings.without, batch, several, loss_weight).token_logprobs
                opinion = torch.where(several.to(alone.device), -masked_logprobs(without, mask).sum(-1), -torch.inf)
            case "attention_distillation":
                assert readings.attention is not None
                opinion = readings.attention
            case _:
                return None
        return torch.where(present.to(alone.device), opinion, -torch.inf)

    def _taught(self, opinion: Tensor | None, doc_scores: Tensor) -> Tensor:
        """The retriever's term [batch]."""
        if opinion is None:
            return doc_scores.new_zeros(len(doc_scores))
        if self.objective == "emdr2":
            return expected_likelihood(opinion, doc_scores)
        return distilled(opinion, doc_scores, self.distill_temperature)


def _first_nll(token_logprobs: Tensor, doc_scores: Tensor, target_mask: Tensor) -> Tensor:
    """-log p(y|x) of the first of n readings."""
    return closed_book_nll(token_logprobs[:, :1], doc_scores[:, :1], target_mask)
