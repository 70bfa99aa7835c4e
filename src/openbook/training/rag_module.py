"""The LightningModule: retriever and generator under one marginal likelihood."""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from openbook.batch import MISSING_ROW, Batch, Retrieved, to_device
from openbook.config.training import OptimConfig
from openbook.inference.answering import Answering
from openbook.metrics.summary import summarize
from openbook.models.contexts import ContextBuilder, answer_hidden
from openbook.models.generator import Generator
from openbook.objectives.by_name import LIKELIHOOD_OF, OBJECTIVES, loss_of
from openbook.objectives.fused import FusedLoss, fused_marginal_nll
from openbook.objectives.marginal import Loss
from openbook.retrieval.base import Retriever
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.paraphrases import retrieve_for_all
from openbook.training.base_module import QuestionModule
from openbook.training.passage_teacher import PassageTeacher
from openbook.utils.distributed import sum_over_ranks


class Read(NamedTuple):
    """loss: scalar, with gradient. Without: minimised and nll, -log p(y|x), [batch]; token_logprobs [batch, n_docs,
    target_len] of each passage read alone, 0 at padding."""

    loss: Tensor
    minimised: Tensor
    nll: Tensor
    token_logprobs: Tensor


class RagModule(QuestionModule):
    """End-to-end RAG training (Lewis et al. 2020, section 2). `training_step` is the method.

    objective: the name of what is minimised, or with `loss` a function of one's own, of the likelihood that is reported
    and that answers are decoded by (openbook.objectives.LIKELIHOOD_OF). n_docs passages are marginalised in training,
    answering.n_docs at evaluation. reduction: the loss is a mean per "question" or per target "token", over the batches
    of all ranks. loss: (token_logprobs [batch, n_docs, target_len], doc_scores [batch, n_docs], target_mask [batch,
    target_len]) -> loss per question [batch]. teacher: what a DenseRetriever learns from besides, in training.
    """

    def __init__(
        self,
        retriever: Retriever[Any],
        generator: Generator,
        contexts: ContextBuilder,
        answering: Answering,
        *,
        objective: str,
        n_docs: int,
        optim: OptimConfig,
        max_steps: int,
        reduction: str = "question",
        label_smoothing: float = 0.0,
        seed: int = 0,
        distill_temperature: float = 1.0,
        resamples: int = 0,
        loss: Loss | None = None,
        teacher: PassageTeacher | None = None,
    ):
        super().__init__(retriever, optim=optim, max_steps=max_steps, resamples=resamples, seed=seed)
        self.generator, self.contexts, self.answering = generator, contexts, answering
        self.likelihood = LIKELIHOOD_OF[objective]
        self.minimises_likelihood = loss is None and objective == self.likelihood and not label_smoothing
        self.loss = loss or loss_of(objective, distill_temperature)
        self.n_docs, self.reduction, self.label_smoothing = n_docs, reduction, label_smoothing
        self.teacher = teacher
        self.train()  # transformers gives models in eval mode, and Lightning leaves modes alone: dropout would be off

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        n, lesson = len(batch.examples), None
        queries, of = self.represented(batch)  # q(x)
        every = self._retrieved(queries, of, n)  # z in top-k, by the index as it stands
        if self.teacher is None:
            scores = self.retriever.score(queries, every)  # d(z)^T q(x), with the current weights
        else:
            scores, lesson = self.teacher.scores(cast(DenseRetriever, self.retriever), queries, every, batch, of)
        retrieved, doc_scores = every.of_first(n), scores[:n]
        loss_weight = self._loss_weight(doc_scores, batch)
        read = self.read(batch, retrieved.rows, doc_scores, loss_weight)
        loss = self.loss_of_all(read, scores, of, batch, loss_weight)
        if self.teacher is not None and lesson is not None:
            weights = loss_weight[to_device(of, loss_weight.device)]
            self.teacher.weigh(weights / self.accumulate)  # Lightning divides before the backward
            self.teacher.measure(read.token_logprobs, lesson, batch.weight)
            loss = loss + (lesson.nll * weights).sum()
            self._log_teacher(self.teacher, lesson.nll.detach()[:n], batch.weight * lesson.known[:n])
        seen = {"doc_scores": doc_scores.detach(), "index_scores": retrieved.index_scores.detach()}
        self.trail.read(self.global_step + 1, batch, retrieved.rows, nll=read.nll, **seen)
        self._log(read.nll, read.minimised, batch)
        measured = {"nll": read.nll, "token_logprobs": read.token_logprobs, **seen}
        return {"loss": loss, **measured, "rows": retrieved.rows}

    def represented(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """q(x) [n, dim] of the questions and behind them of their paraphrases; of [n], on the CPU: which question each
        one is."""
        queries, of, others = self.retriever.represent(batch), torch.arange(len(batch.examples)), batch.paraphrases
        if others is None or not isinstance(self.retriever, DenseRetriever):
            return queries, of
        wordings = self.retriever.question_encoder(others.ids, others.mask)
        return torch.cat([queries, wordings]), torch.cat([of, others.of])

    def _retrieved(self, queries: Tensor, of: Tensor, n: int) -> Retrieved:
        """The passages [len(of), n_docs] that the n questions are read with, for all of their wordings."""
        if len(of) == n:
            return self.retriever.retrieve(queries, self.n_docs)
        retriever, asked = cast(DenseRetriever, self.retriever), queries.detach()
        retrieved = retrieve_for_all(retriever, asked[:n], asked[n:], of[n:], self.n_docs)
        return Retrieved(retrieved.rows[of], retrieved.index_scores[to_device(of, queries.device)])

    def loss_of_all(self, read: Read, scores: Tensor, of: Tensor, batch: Batch, loss_weight: Tensor) -> Tensor:
        """What was read of the questions, and behind them the objective of their other wordings x': p(z|x') is theirs
        (scores [n, n_docs]), p(y|x,z) is what was read of question `of` [n], and a constant. Every wording counts as
        its question does: loss_weight [batch]."""
        n = len(loss_weight)
        if len(of) == n:
            return read.loss
        doc_scores, on = scores[n:], to_device(of[n:], scores.device)
        counted = torch.isfinite(doc_scores).any(1)  # of a question without any passage there is nothing to say
        doc_scores = torch.where(counted[:, None], doc_scores, 0.0)
        losses = self.loss(read.token_logprobs.detach()[on], doc_scores, batch.target_mask[on])
        return read.loss + (torch.where(counted & losses.isfinite(), losses, 0.0) * loss_weight[on]).sum()

    def read(self, batch: Batch, rows: Tensor, doc_scores: Tensor, loss_weight: Tensor) -> Read:
        """The targets read from passages rows [batch, n_docs] (on the CPU): the objective, weighed by loss_weight
        [batch], and what is looked at. doc_scores [batch, n_docs], -inf where rows have no passage."""
        hidden = answer_hidden(self.generator, batch, rows, self.contexts)  # of p(y_t | x, z, y_<t)
        loss, losses, token_logprobs = self.fused_loss(hidden, doc_scores, batch, rows != MISSING_ROW, loss_weight)
        nll = losses  # -log p(y|x)
        if not self.minimises_likelihood:
            nll = OBJECTIVES[self.likelihood](token_logprobs, doc_scores.detach(), batch.target_mask)
        return Read(loss, losses, nll, token_logprobs)

    def fused_loss(
        self, hidden: Tensor, doc_scores: Tensor, batch: Batch, doc_mask: Tensor, loss_weight: Tensor
    ) -> FusedLoss:
        """The objective on hidden [batch, n_docs, target_len, dim], through the vocabulary head without keeping its
        logits; the loss is the sum over questions, each times its loss_weight [batch]. doc_mask [batch, n_docs] bool on
        the CPU: False where doc_scores are -inf."""
        targets = torch.arange(hidden.shape[2]) < torch.tensor(batch.target_lengths)[:, None]
        return fused_marginal_nll(
            hidden,
            self.generator.head_weight,
            self.generator.head_bias,
            batch.labels,
            doc_scores,
            self.loss,
            loss_weight,
            self.label_smoothing,
            counted=targets[:, None] & doc_mask[:, :, None],
        )

    def _loss_weight(self, doc_scores: Tensor, batch: Batch) -> Tensor:
        """[batch]: the weight of each question's loss in the mean over the questions (or target tokens) of the
        optimizer step. A question without any passage has no likelihood to learn from and is left out here; one whose
        likelihood is 0 for another reason counts, and adds nothing."""
        weight = batch.weight * (doc_scores != -torch.inf).any(-1)
        return weight * self.loss_scale(weight if self.reduction == "question" else weight * batch.target_mask.sum(-1))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.predictions.extend(self.answering(batch, self.retriever, self.index_is_exact, self.depth))

    def passage_ids(self, rows: list[int]) -> list[str]:
        return [passage.id for passage in self.answering.corpus.passages(rows)]

    def parts(self) -> list[tuple[str, nn.Module, float]]:
        generator = ("generator", cast(nn.Module, self.generator), self.optim.lr_generator or self.optim.lr)
        return [generator, *super().parts()]

    def summarized(self, resamples: int) -> dict[str, Any]:
        how = self.answering
        return summarize(self.predictions, how.task, resamples, self.seed, how.labels)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.teacher is not None:
            checkpoint["teacher"] = self.teacher.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.teacher is not None and "teacher" in checkpoint:
            self.teacher.load(checkpoint["teacher"])

    def _log_teacher(self, teacher: PassageTeacher, nll: Tensor, weight: Tensor) -> None:
        total, questions = sum_over_ranks(torch.stack([(nll * weight).sum(), weight.sum()])).tolist()
        if questions:
            self.log("train/positive_nll", total / questions, rank_zero_only=True)
        self.log("train/agreement", teacher.agreement, rank_zero_only=True)
        self.log("train/gate", teacher.gate, rank_zero_only=True)

    def _log(self, nll: Tensor, losses: Tensor, batch: Batch) -> None:
        """-log p(y|x) per question and per target token, over the step's batches of all ranks, and where it is not
        what is minimised, that per question. The step's one wait for a GPU after the search: before the weights are
        moved, it must be known that this is a number."""
        weight, minimised = (batch.weight * (values != torch.inf) for values in (nll, losses))
        tokens = weight * batch.target_mask.sum(-1)
        sums = [torch.where(weight > 0, nll, 0.0).sum(), weight.sum(), tokens.sum()]
        sums += [torch.where(minimised > 0, losses, 0.0).sum(), minimised.sum()]
        total, questions, n_tokens, loss, n_minimised = self.sums_of_step(torch.stack(sums))
        if not self.minimises_likelihood:
            self.log("train/loss", loss / max(n_minimised, 1.0), rank_zero_only=True)
        if not questions:  # none has found a passage, as happens with BM25
            return
        if math.isnan(total):
            raise self.diverged()
        self.log("train/nll", total / questions, rank_zero_only=True)
        self.log("train/nll_per_token", total / n_tokens, rank_zero_only=True)
