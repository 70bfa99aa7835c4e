"""The LightningModule of the retriever's warm-up: both encoders under the DPR loss, no generator."""

import math
from typing import Any

import torch
from torch import Tensor

from openbook.batch import MISSING_ROW, Batch, to_device
from openbook.config.training import OptimConfig
from openbook.data.corpus import Corpus
from openbook.inference.evidence import best_passages, found_passages, own_row, summarize_found
from openbook.objectives.dpr import dpr_scores, in_batch_hits, nll_of
from openbook.retrieval.dense import DenseRetriever, of_all_ranks
from openbook.training.base_module import QuestionModule
from openbook.training.dpr_negatives import TrainingPassages


class DprModule(QuestionModule):
    """Dense passage retrieval (Karpukhin et al. 2020, section 3.2). `training_step` is the method.

    passages chooses what the questions are trained on; None where nothing trains (evaluate). n_docs passages per
    question are kept in the predictions; identical_ids: what of those found is ignored (own_row). Every rank encodes
    its share of the distinct passages of all ranks' batches, and all of them are every rank's candidates: several ranks
    give the gradient of one with the whole batch.
    """

    retriever: DenseRetriever

    def __init__(
        self,
        retriever: DenseRetriever,
        corpus: Corpus,
        passages: TrainingPassages | None,
        *,
        optim: OptimConfig,
        max_steps: int,
        n_docs: int,
        resamples: int = 0,
        regex_answers: bool = False,
        identical_ids: str = "auto",
        seed: int = 0,
    ):
        super().__init__(retriever, optim=optim, max_steps=max_steps, resamples=resamples, seed=seed)
        self.corpus, self.passages = corpus, passages
        self.eval_n_docs, self.regex_answers, self.identical_ids = n_docs, regex_answers, identical_ids
        self.train()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss is the mean over the questions of the optimizer step, of all ranks; so are the measures."""
        nll, hits, weight = self.likelihood(batch)
        self.trail.read(self.global_step + 1, batch, nll=nll)
        sums = torch.stack([(nll.detach() * weight).sum(), (hits * weight).sum(), weight.sum()])
        total, n_hits, questions = self.sums_of_step(sums)
        if not math.isfinite(total):
            raise self.diverged()
        if questions:
            self.log("train/nll", total / questions, rank_zero_only=True)
            self.log("train/in_batch_accuracy", n_hits / questions, rank_zero_only=True)
        return {"loss": (nll * weight * self.worth(batch)).sum() * self.loss_scale(weight), "nll": nll.detach()}

    def worth(self, batch: Batch) -> Tensor | float:
        """What a question's log-likelihood is multiplied with in the loss, [batch]."""
        return 1.0

    def likelihood(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """-log p(positive passage | question), whether no other passage scores higher, and the weight (0 for a
        question without a positive passage), each [batch]. All ranks call this together."""
        assert self.passages is not None
        question_emb = self.retriever.represent(batch)
        positives = self.passages.positives(batch)
        negatives = self.passages.hard_negatives(batch, positives, self._index_rows(question_emb))
        rows, device = of_all_ranks([row for row in positives if row != MISSING_ROW] + negatives), batch.weight.device
        positive = torch.tensor(positives)
        columns = to_device(torch.searchsorted(rows, positive.clamp(min=0)).clamp(max=len(rows) - 1), device)
        mask = to_device(self.passages.competing(batch.examples, rows.tolist()), device)
        scores = dpr_scores(
            question_emb, self.retriever.encode_among_ranks(rows), columns, mask, self.retriever.temperature
        )
        return (
            nll_of(scores, columns),
            in_batch_hits(scores.detach(), columns),
            batch.weight * to_device(positive != MISSING_ROW, device),
        )

    def _index_rows(self, question_emb: Tensor) -> Tensor | None:
        """What the live index finds [batch, depth], once it has been refreshed: before that it knows only what the
        encoder could do untrained. A frozen passage encoder's index is as good as it will be."""
        assert self.passages is not None
        snapshot = self.retriever.snapshot
        waiting = snapshot is None or (snapshot.generation == 0 and self.retriever.passage_encoder.trains)
        if not self.passages.options.index_negatives or waiting:
            return None
        return self.retriever.search(question_emb.detach(), self.passages.options.depth).rows

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        own = [own_row(example, self.corpus, self.identical_ids) for example in batch.examples]
        rows, doc_scores = best_passages(batch, self.retriever, self.eval_n_docs, self.index_is_exact, self.depth, own)
        self.predictions.extend(
            found_passages(batch, rows, doc_scores, self.corpus, self.regex_answers, depth=self.depth)
        )

    def summarized(self, resamples: int) -> dict[str, Any]:
        return summarize_found(self.predictions, resamples, self.seed)
