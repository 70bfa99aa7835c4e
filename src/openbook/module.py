"""The LightningModule: retriever and generator under one marginal likelihood."""

from __future__ import annotations

import math
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from openbook.answering import Answering
from openbook.batch import Batch, Retrieved
from openbook.config_training import OptimConfig
from openbook.contexts import ContextBuilder, answer_logprobs, closed_book_rows
from openbook.distributed import gather_objects, sum_over_ranks, world_size
from openbook.errors import OpenBookError
from openbook.generator import Generator
from openbook.lexical import LexicalRetriever
from openbook.metrics import Prediction, summarize
from openbook.objectives import OBJECTIVES, READS, loss_of
from openbook.optim import learning_rate_schedule, parameter_groups
from openbook.retriever import Retriever

WATCHED = {"exact_match", "f1", "recall_at_1", "recall_at_5", "recall_at_20", "utility", "rouge_l", "label_accuracy"}
"""What of the summary of a validation is drawn as a curve, as far as it is measured."""


class RagModule(L.LightningModule):
    """End-to-end RAG training (Lewis et al. 2020, section 2). `training_step` is the method.

    retriever is None for the closed-book objective. objective: what trains; `reads` is the likelihood that is reported
    and that answers are decoded by (openbook.objectives.READS). n_docs passages are marginalised in training,
    eval_n_docs at evaluation. reduction: the loss is a mean per "question" or per target "token", over the batches of
    all ranks.
    """

    def __init__(
        self,
        retriever: Retriever | LexicalRetriever | None,
        generator: Generator,
        contexts: ContextBuilder,
        answering: Answering,
        objective: str,
        n_docs: int,
        optim: OptimConfig,
        max_steps: int,
        reduction: str = "question",
        label_smoothing: float = 0.0,
        seed: int = 0,
        distill_temperature: float = 1.0,
        resamples: int = 0,
    ):
        super().__init__()
        self.retriever = retriever
        self.generator = generator
        self.contexts = contexts
        self.answering = answering
        self.objective = objective
        self.reads = READS[objective]
        self.loss = loss_of(objective, distill_temperature)
        self.n_docs = n_docs
        self.optim = optim
        self.max_steps = max_steps
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.seed = seed
        self.resamples = resamples
        self.predictions: list[Prediction] = []
        self.summary: dict[str, Any] = {}
        self.index_is_exact = False
        self.train()  # transformers gives models in eval mode, and Lightning leaves modes alone: dropout would be off

    @property
    def dense_retriever(self) -> Retriever | None:
        """The retriever whose index goes stale; None for BM25 and a closed book."""
        return self.retriever if isinstance(self.retriever, Retriever) else None

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        if self.retriever is None:
            retrieved = Retrieved(closed_book_rows(batch), torch.zeros_like(batch.weight)[:, None])
            doc_scores = retrieved.index_scores
        else:
            questions: Any = self.retriever.represent(batch)  # q(x)
            retrieved = self.retriever.retrieve(questions, self.n_docs)  # z in top-k, by the index as it stands
            doc_scores = self.retriever.score(questions, retrieved)  # d(z)^T q(x), with today's weights
        token_logprobs = answer_logprobs(self.generator, batch, retrieved.rows, self.contexts, self.label_smoothing)
        losses = nll = self.loss(token_logprobs, doc_scores, batch.target_mask)  # -log p(y|x), or what stands for it
        if self.reads != self.objective:
            nll = OBJECTIVES[self.reads](token_logprobs.detach(), doc_scores.detach(), batch.target_mask)
            self._log_loss(losses, batch)
        loss = self._reduce(losses, batch)
        self._log_likelihood(nll, batch)
        seen = {"nll": nll, "token_logprobs": token_logprobs, "doc_scores": doc_scores}
        seen |= {"rows": retrieved.rows, "index_scores": retrieved.index_scores}
        return {"loss": loss, **{name: value.detach() for name, value in seen.items()}}

    def _reduce(self, nll: Tensor, batch: Batch) -> Tensor:
        """The mean over the questions (or target tokens) of all ranks' batches; DDP averages the ranks' gradients, so
        each rank's share is scaled by the number of ranks. A question without any passage has no likelihood to learn
        from and is left out."""
        weight = batch.weight * (nll != torch.inf)
        units = weight if self.reduction == "question" else weight * batch.target_mask.sum(-1)
        total = sum_over_ranks(units.sum()).clamp(min=1)
        return torch.where(weight > 0, nll, 0.0).sum() * world_size() / total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.predictions.extend(self.answering(batch, self.retriever, self.index_is_exact))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        self.predictions = []
        self.index_is_exact = self.retriever is not None and self.retriever.index_is_exact()

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        self._summarize(resamples=0)
        for name in sorted(WATCHED & set(self.summary)):
            # On every rank, and the same number: all have gathered all predictions.
            self.log(f"validation/{name}", self.summary[name], prog_bar=name in ("exact_match", "recall_at_1"))

    def on_test_epoch_end(self) -> None:
        self._summarize(self.resamples)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Random state is a function of (seed, step, rank), so that a resumed run draws what it would have drawn."""
        torch.manual_seed(hash((self.seed, self.global_step, batch_idx, self.global_rank)) & 0x7FFFFFFF)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """By norm over all parts together. Lightning refuses to clip for a fused optimizer under autocast, because one
        with a gradient scaler would unscale too late; bf16 needs no scaler."""
        if gradient_clip_val:
            norm = nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
            self.log("train/grad_norm", norm, rank_zero_only=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optim = self.optim
        parts = [("generator", cast(nn.Module, self.generator), optim.lr_generator or optim.lr)]
        dense = self.dense_retriever
        if dense is not None:
            parts += [
                ("question_encoder", dense.question_encoder, optim.lr_question_encoder or optim.lr),
                ("passage_encoder", dense.passage_encoder, optim.lr_passage_encoder or optim.lr),
            ]
        optimizer = torch.optim.AdamW(parameter_groups(parts, optim.weight_decay), fused=True)
        if dense is not None:
            fresh = dense.fresh
            optimizer.register_step_post_hook(lambda *_: fresh.outdate())
        schedule = learning_rate_schedule(optimizer, optim.warmup_steps, self.max_steps, optim.final_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _summarize(self, resamples: int) -> None:
        gathered = gather_objects([prediction.to_json() for prediction in self.predictions])
        self.predictions = [Prediction.from_json(fields) for part in gathered for fields in part]
        self.predictions.sort(key=lambda prediction: prediction.id)
        how = self.answering
        self.summary = summarize(self.predictions, how.task, resamples, self.seed, how.labels)

    def _log_loss(self, losses: Tensor, batch: Batch) -> None:
        """What is minimised, per question, where it is not the likelihood."""
        weight = batch.weight * (losses != torch.inf)
        sums = torch.stack([torch.where(weight > 0, losses, 0.0).sum(), weight.sum()])
        total, questions = sum_over_ranks(sums).tolist()
        self.log("train/loss", total / max(questions, 1.0), rank_zero_only=True)

    def _log_likelihood(self, nll: Tensor, batch: Batch) -> None:
        """-log p(y|x) per question and per target token, over the batches of all ranks."""
        weight = batch.weight * (nll != torch.inf)
        tokens = weight * batch.target_mask.sum(-1)
        sums = torch.stack([torch.where(weight > 0, nll, 0.0).sum(), weight.sum(), tokens.sum()])
        total, questions, n_tokens = sum_over_ranks(sums).tolist()
        if not questions:  # none has found a passage, as happens with BM25
            return
        if math.isnan(total):
            raise OpenBookError("the likelihood is not a number", where=f"step {self.global_step}",
                                action="Training has diverged: lower optim.lr_*, raise optim.warmup_steps, or resume "
                                "from an earlier checkpoint.")  # fmt: skip
        self.log("train/nll", total / questions, rank_zero_only=True, prog_bar=True)
        self.log("train/nll_per_token", total / n_tokens, rank_zero_only=True)
