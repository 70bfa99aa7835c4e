"""What teaches the retriever besides the generator, and how far the generator is followed.

The gradient of the marginal likelihood in doc_scores is prior minus posterior: the retriever follows the generator's
opinion of the passages. A generator that cannot read the corpus yet has an opinion all the same, and following it makes
retrieval worse. Where positive passages are known, or found by BM25 with an answer in them, two things can be done:

- the encoders also learn from them: -log p(z+ | x) of DPR (objectives/dpr.py) over all passages that the batch reads
  anyway: the index's hard negatives (ANCE, Xiong et al. 2020) and the positives of its other questions;
- the generator's opinion is measured against them. Agreement is the probability that it finds the answer likelier in a
  relevant passage than in another one that was retrieved for the same question; 0.5 is chance. The gradient of the
  marginal reaches the retriever in proportion,

      gate = clip((agreement - 0.5) / (FOLLOWED - 0.5), 0, 1)

  so that nothing is followed at chance level, and everything from FOLLOWED on. Nor does it count for more than a
  positive passage does: prior minus posterior adds up to 2 at most in absolute value, for one passage against another,
  while RAG-Token's gradient is the sum of that over the tokens of the answer; it is scaled down to 2 per question.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from openbook.batch import MISSING_ROW, Batch, Retrieved, to_device
from openbook.objectives.dpr import nll_of
from openbook.retrieval.dense import DenseRetriever, of_all_ranks
from openbook.training.dpr_negatives import TrainingPassages
from openbook.utils.distributed import sum_over_ranks

# The agreement from which on the generator is followed fully: four pairs of five in the right order.
FOLLOWED = 0.8

# Of what was measured before, so much still counts at the next pass: some ten passes are remembered.
KEPT = 0.9

# Questions at chance level that the measurement begins with.
DOUBT = 4.0


class Lesson(NamedTuple):
    """Of a batch: nll [n] is -log p(z+ | x), 0 where no positive passage is known [n], of its questions and of their
    other wordings; relevant and other [batch, n_docs] bool on the CPU, of its questions, retrieved passages that recall
    counts and those without an answer. One that holds an answer beside a known positive passage is neither."""

    nll: Tensor
    known: Tensor
    relevant: Tensor
    other: Tensor


class PassageTeacher:
    """See the module's text. passages: the positives of the training questions, looked through already."""

    def __init__(self, passages: TrainingPassages):
        self.passages = passages
        self._agreeing, self._measured = DOUBT / 2, DOUBT
        self.counted = 0.0  # questions that had passages to compare
        self._most: Tensor | None = None

    @property
    def agreement(self) -> float:
        """Of recent passes of all ranks, 0 to 1."""
        return self._agreeing / self._measured

    @property
    def gate(self) -> float:
        """How much of the marginal's gradient the retriever gets, 0 to 1."""
        return min(max((self.agreement - 0.5) / (FOLLOWED - 0.5), 0.0), 1.0)

    def state(self) -> list[float]:
        """What a checkpoint keeps."""
        return [self._agreeing, self._measured, self.counted]

    def load(self, state: list[float]) -> None:
        """Older checkpoints did not count: what they have measured is taken for something."""
        self._agreeing, self._measured, self.counted = (*state, 1.0)[:3]

    def scores(
        self, retriever: DenseRetriever, queries: Tensor, retrieved: Retrieved, batch: Batch, of: Tensor
    ) -> tuple[Tensor, Lesson]:
        """doc_scores [n, n_docs] as `retriever.score` gives them, the gradient in them through the gate, and what the
        positive passages say. queries [n] are the batch's questions, and behind them other wordings of question `of`
        [n]. Every passage is encoded once, whichever rank's questions retrieved it or have it as positive, and competes
        for the questions of all ranks: several give the gradient of one with the whole batch. All ranks call this
        together."""
        positives = torch.tensor(self.passages.positives(batch))[of]
        known = positives != MISSING_ROW
        wanted = torch.cat([retrieved.rows.flatten(), positives])
        rows = of_all_ranks(wanted[wanted != MISSING_ROW].tolist())
        every = retriever.score_rows(queries, rows)
        device = every.device
        columns = torch.searchsorted(rows, retrieved.rows.clamp(min=0)).clamp(max=len(rows) - 1)
        gated = every.gather(1, to_device(columns, device))
        if gated.requires_grad:
            gated.register_hook(self._gated)
        doc_scores = torch.where(to_device(retrieved.mask, device), gated, -torch.inf)

        competing = self.passages.competing(batch.examples, rows.tolist())[of]
        right = torch.searchsorted(rows, positives.clamp(min=0)).clamp(max=len(rows) - 1)[:, None]
        competes = to_device(competing.scatter(1, right, True), device)
        nll = nll_of(every.masked_fill(~competes, -torch.inf), to_device(right[:, 0], device))
        n = len(batch.examples)
        own = retrieved.of_first(n)
        other = competing[:n].gather(1, columns[:n]) & own.mask
        relevant = self._relevant(batch, own, ~other & own.mask)
        known = to_device(known, device)
        return doc_scores, Lesson(torch.where(known, nll, 0.0), known, relevant, other & ~relevant)

    def weigh(self, loss_weight: Tensor) -> None:
        """What each question and wording of the pass counts in what its backward starts from [n]."""
        self._most = 2 * loss_weight.detach()[:, None]

    def _gated(self, gradient: Tensor) -> Tensor:
        """The marginal's gradient in doc_scores [batch, n_docs] as far as it is followed."""
        if self._most is not None:
            norm = gradient.abs().sum(1, keepdim=True)
            gradient = gradient * (self._most / norm.clamp(min=1e-30)).clamp(max=1)
        return gradient * self.gate

    def _relevant(self, batch: Batch, retrieved: Retrieved, right: Tensor) -> Tensor:
        relevant = right.clone()
        for place, example in enumerate(batch.examples):
            if gold := self.passages.known_positives(example):
                relevant[place] = torch.isin(retrieved.rows[place], torch.tensor(gold))
        return relevant

    def measure(self, token_logprobs: Tensor, lesson: Lesson, weight: Tensor) -> None:
        """Remember how often the answer was likelier in relevant passages. All ranks call this together.

        token_logprobs [batch, n_docs, target_len], 0 at padding; weight [batch], 0 for what does not count.
        """
        likelihood = token_logprobs.detach().double().sum(-1)
        relevant, other = (to_device(mask, likelihood.device) for mask in (lesson.relevant, lesson.other))
        pairs = (relevant[:, :, None] & other[:, None]).double()
        above = likelihood[:, :, None] - likelihood[:, None]
        n_pairs = pairs.sum((1, 2))
        agreeing = (pairs * ((above > 0).double() + 0.5 * (above == 0).double())).sum((1, 2)) / n_pairs.clamp(min=1)
        counted = (n_pairs > 0) & (weight > 0)
        sums = sum_over_ranks(torch.stack([agreeing[counted].sum(), counted.sum().double()]))
        self._agreeing = KEPT * self._agreeing + float(sums[0])
        self._measured = KEPT * self._measured + float(sums[1])
        self.counted += float(sums[1])
