"""How stale the index is at every step, and what the marginal makes of the passages: measured for free."""

from typing import Any

import lightning as L
import torch

from openbook.objectives.marginal import doc_logprobs, posterior
from openbook.refresh.manager import RefreshManager
from openbook.utils.distributed import sum_over_ranks


class Staleness(L.Callback):
    """Logs, as means over the questions of all ranks:

    train/staleness            |doc_scores - index_scores| of the passages read, in units of the inner product
    train/prior_entropy        of p(z|x), nats; log(n_docs) is a retriever without opinion, 0 one without doubt
    train/posterior_entropy    of p(z|x,y), nats
    train/steps_since_refresh  optimizer steps since the weights that the index was made from; the mean over the
                               passages where they differ
    """

    def __init__(self, manager: RefreshManager):
        self.manager = manager

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        doc_scores, index_scores = outputs["doc_scores"].float(), outputs["index_scores"]
        present = index_scores.isfinite()
        drift = torch.where(present, doc_scores * pl_module.retriever.temperature - index_scores, 0.0).abs()  # type: ignore[union-attr]
        after = posterior(outputs["token_logprobs"], doc_scores, batch.target_mask, pl_module.likelihood)  # type: ignore[arg-type]
        per_question = torch.stack(
            [
                drift.sum(-1) / present.sum(-1).clamp(min=1),
                torch.special.entr(doc_logprobs(doc_scores).exp()).sum(-1),
                torch.special.entr(after).sum(-1),
                torch.ones_like(batch.weight),
            ]
        )
        *sums, questions = sum_over_ranks((per_question * batch.weight).sum(-1)).tolist()
        for name, value in zip(("staleness", "prior_entropy", "posterior_entropy"), sums, strict=True):
            pl_module.log(f"train/{name}", value / max(questions, 1.0), rank_zero_only=True)
        pl_module.log("train/steps_since_refresh", self.manager.age(trainer.global_step), rank_zero_only=True)
