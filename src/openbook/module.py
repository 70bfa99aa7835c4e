"""The LightningModule: retriever and generator under one marginal likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from openbook.answering import answer
from openbook.batch import Batch, Retrieved
from openbook.config_training import OptimConfig
from openbook.contexts import ContextBuilder, answer_logprobs, closed_book_rows
from openbook.corpus import Corpus
from openbook.distributed import gather_objects, sum_over_ranks, world_size
from openbook.errors import OpenBookError
from openbook.generator import Generator
from openbook.metrics import Prediction, summarize
from openbook.objectives import OBJECTIVES
from openbook.optim import learning_rate_schedule, parameter_groups
from openbook.retriever import Retriever


class RagModule(L.LightningModule):
    """End-to-end RAG training (Lewis et al. 2020, section 2). `training_step` is the method.

    retriever is None for the closed-book objective. n_docs passages are marginalised in training, eval_n_docs at
    evaluation. reduction: the loss is a mean per "question" or per target "token", over the batches of all ranks.
    """

    def __init__(
        self,
        retriever: Retriever | None,
        generator: Generator,
        contexts: ContextBuilder,
        corpus: Corpus,
        detokenize: Callable[[list[int]], str],
        objective: str,
        n_docs: int,
        optim: OptimConfig,
        max_steps: int,
        max_answer_tokens: int,
        eval_n_docs: int = 0,
        reduction: str = "question",
        label_smoothing: float = 0.0,
        seed: int = 0,
    ):
        super().__init__()
        self.retriever = retriever
        self.generator = generator
        self.contexts = contexts
        self.corpus = corpus
        self.detokenize = detokenize
        self.objective = objective
        self.n_docs = n_docs
        self.eval_n_docs = eval_n_docs or n_docs
        self.optim = optim
        self.max_steps = max_steps
        self.max_answer_tokens = max_answer_tokens
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.seed = seed
        self.predictions: list[Prediction] = []
        self.summary: dict[str, Any] = {}
        self.index_is_exact = False
        self.train()  # transformers gives models in eval mode, and Lightning leaves modes alone: dropout would be off

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        if self.retriever is None:
            retrieved = Retrieved(closed_book_rows(batch), torch.zeros_like(batch.weight)[:, None])
            doc_scores = retrieved.index_scores
        else:
            question_emb = self.retriever.encode_questions(batch.question_ids, batch.question_mask)  # q(x)
            retrieved = self.retriever.retrieve(question_emb, self.n_docs)  # z in top-k, by the index as it stands
            doc_scores = self.retriever.score(question_emb, retrieved)  # d(z)^T q(x), with today's weights
        token_logprobs = answer_logprobs(self.generator, batch, retrieved.rows, self.contexts, self.label_smoothing)
        nll = OBJECTIVES[self.objective](token_logprobs, doc_scores, batch.target_mask)  # -log p(y|x)
        loss = self._reduce(nll, batch)
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
        self.predictions.extend(self._answer(batch))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.predictions.extend(self._answer(batch))

    def on_validation_epoch_start(self) -> None:
        self.predictions = []
        self.index_is_exact = self.retriever is not None and self.retriever.index_is_exact()

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        self._summarize()
        for name in ("exact_match", "f1", "recall_at_1", "recall_at_5", "recall_at_20"):
            # On every rank, and the same number: all have gathered all predictions.
            self.log(f"validation/{name}", self.summary[name], prog_bar=name in ("exact_match", "recall_at_1"))

    def on_test_epoch_end(self) -> None:
        self._summarize()

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
        if self.retriever is not None:
            parts += [
                ("question_encoder", self.retriever.question_encoder, optim.lr_question_encoder or optim.lr),
                ("passage_encoder", self.retriever.passage_encoder, optim.lr_passage_encoder or optim.lr),
            ]
        optimizer = torch.optim.AdamW(parameter_groups(parts, optim.weight_decay), fused=True)
        if self.retriever is not None:
            fresh = self.retriever.fresh
            optimizer.register_step_post_hook(lambda *_: fresh.outdate())
        schedule = learning_rate_schedule(optimizer, optim.warmup_steps, self.max_steps, optim.final_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _answer(self, batch: Batch) -> list[Prediction]:
        return answer(
            batch, self.retriever, self.generator, self.contexts, self.corpus, self.objective, self.eval_n_docs,
            self.max_answer_tokens, self.detokenize, self.index_is_exact,
        )  # fmt: skip

    def _summarize(self) -> None:
        gathered = gather_objects([prediction.to_json() for prediction in self.predictions])
        self.predictions = [Prediction.from_json(fields) for part in gathered for fields in part]
        self.predictions.sort(key=lambda prediction: prediction.id)
        self.summary = summarize(self.predictions)

    def _log_likelihood(self, nll: Tensor, batch: Batch) -> None:
        """-log p(y|x) per question and per target token, over the batches of all ranks."""
        weight = batch.weight * (nll != torch.inf)
        tokens = weight * batch.target_mask.sum(-1)
        sums = torch.stack([torch.where(weight > 0, nll, 0.0).sum(), weight.sum(), tokens.sum()])
        total, questions, n_tokens = sum_over_ranks(sums).tolist()
        if math.isnan(total) or not questions:
            raise OpenBookError("the likelihood is not a number" if questions else "no question has found a passage",
                                where=f"step {self.global_step}", action="Training has diverged: lower optim.lr_*, "
                                "raise optim.warmup_steps, or resume from an earlier checkpoint.")  # fmt: skip
        self.log("train/nll", total / questions, rank_zero_only=True, prog_bar=True)
        self.log("train/nll_per_token", total / n_tokens, rank_zero_only=True)
