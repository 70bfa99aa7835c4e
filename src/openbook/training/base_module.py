"""What the LightningModules have in common: questions answered at evaluation, metrics gathered over the ranks, one
optimizer with a learning rate for each part, and random states that a resumed run draws again."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from openbook.batch import Batch
from openbook.config.evaluation import WATCHED
from openbook.config.training import OptimConfig
from openbook.metrics.prediction import Prediction
from openbook.metrics.ranking import summarize_ranking
from openbook.retrieval.base import Retriever
from openbook.training.divergence import DivergedError, Trail, is_finite
from openbook.training.optimizer import (
    learning_rate_factor,
    learning_rate_schedule,
    optimizer_of,
    parameter_groups,
)
from openbook.training.ranks.sharding import clip_grad_norm, local
from openbook.utils.distributed import any_rank, gather_objects, sum_over_ranks, world_size


class QuestionModule(L.LightningModule):
    """A retriever and the questions it is measured on. A child has training_step, validation_step, which adds to
    `predictions`, and `summarized`. max_steps: optimizer steps, of the learning-rate schedule. resamples: of the
    bootstrap behind the test's intervals. test_depth: passages per question that a test ranks, `depth` while it does
    (metrics/ranking.py); 0: none.
    """

    def __init__(self, retriever: Retriever[Any], *, optim: OptimConfig, max_steps: int, resamples: int, seed: int):
        super().__init__()
        self.retriever = retriever
        self.optim, self.max_steps, self.resamples, self.seed = optim, max_steps, resamples, seed
        self.predictions: list[Prediction] = []
        self.summary: dict[str, Any] = {}
        self.index_is_exact = False
        self.depth = self.test_depth = 0
        self.trail = Trail()
        self._units = torch.zeros(())
        self._logged_step, self._logged = -1, list[float]()

    def summarized(self, resamples: int) -> dict[str, Any]:
        """The metrics of all ranks' `predictions`."""
        raise NotImplementedError

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        self.predictions, self.depth = [], 0
        self.index_is_exact = self.retriever.index_is_exact()

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()
        self.depth = self.test_depth

    def on_validation_epoch_end(self) -> None:
        self._summarize(resamples=0)
        for name in sorted(WATCHED):
            if self.summary.get(name) is not None:
                # On every rank, and the same number: all have gathered all predictions.
                self.log(f"validation/{name}", self.summary[name])

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
            norm = clip_grad_norm(self.parameters(), gradient_clip_val)
            self.trail.clipped(self.global_step + 1, norm)
            self.log("train/grad_norm", norm, rank_zero_only=True)

    @property
    def accumulate(self) -> int:
        """Forward passes of one optimizer step."""
        return self._trainer.accumulate_grad_batches if self._trainer is not None else 1

    def loss_scale(self, units: Tensor) -> Tensor | float:
        """What a sum over this rank's questions is multiplied with, so that the loss of an optimizer step is one mean
        over the units (questions or target tokens, [batch] of this pass) of all its passes and ranks. DDP averages the
        ranks' gradients, hence the number of ranks. All ranks call this together.

        With several passes their number of units is known after the last only: `on_before_optimizer_step` divides.
        """
        if self.accumulate == 1:
            return world_size() / sum_over_ranks(units.sum()).clamp(min=1)
        self._units = self._units.to(units.device) + units.sum().detach()
        return float(world_size() * self.accumulate)  # Lightning divides by their number

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.accumulate == 1:
            return
        gradients = [local(value.grad) for value in self.parameters() if value.grad is not None]
        total = sum_over_ranks(self._units).clamp(min=1)
        for gradient in gradients:
            gradient /= total.to(gradient.device)
        self._units = torch.zeros(())

    def sums_of_step(self, sums: Tensor) -> list[float]:
        """What is logged of the passes of an optimizer step so far: sums [n] of this pass, over all ranks, added to
        those before it. All ranks call this together."""
        if self.global_step != self._logged_step:
            self._logged_step, self._logged = self.global_step, [0.0] * len(sums)
        self._logged = [one + more for one, more in zip(self._logged, sum_over_ranks(sums).tolist(), strict=True)]
        return self._logged

    def parts(self) -> list[tuple[str, nn.Module, float]]:
        """(name, module, peak learning rate) of what trains."""
        return self.retriever.parts(self.optim)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optim, retriever = self.optim, self.retriever
        parts = self.parts()
        modules = [module for _, module, _ in parts]
        optimizer = optimizer_of(optim.name, parameter_groups(parts, optim.weight_decay), modules)
        optimizer.register_step_post_hook(lambda *_: retriever.weights_changed())
        schedule = learning_rate_schedule(optimizer, optim.warmup_steps, self.max_steps, optim.final_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rates and weight decay are those of this run's configuration, which a resumed run may have changed; moments
        and step are the checkpoint's. Lightning would restore the old rates, and nobody would be told."""
        optim = self.optim
        groups = parameter_groups(self.parts(), optim.weight_decay)
        for saved, schedule in zip(checkpoint["optimizer_states"], checkpoint["lr_schedulers"], strict=True):
            schedule["base_lrs"] = [group["lr"] for group in groups]
            step = schedule["last_epoch"]
            now = learning_rate_factor(step, optim.warmup_steps, self.max_steps, optim.final_lr)
            schedule["_last_lr"] = [group["lr"] * now for group in groups]
            for old, group in zip(saved["param_groups"], groups, strict=True):
                old |= {"initial_lr": group["lr"], "lr": group["lr"] * now, "weight_decay": group["weight_decay"]}

    def diverged(self) -> DivergedError:
        """What is raised when the likelihood is not a number."""
        return DivergedError("the likelihood is not a number", self.global_step + 1)

    def check_finite(self) -> None:
        """DivergedError where a weight is no number: no checkpoint of such weights takes the place of a sound one."""
        if any_rank(not is_finite(self)):  # of layers in parts a rank sees its own alone
            raise DivergedError("weights are not numbers any more", self.global_step)

    def passage_ids(self, rows: list[int]) -> list[str]:
        """The ids of rows of the corpus."""
        return list(map(str, rows))

    def divergence(self) -> dict[str, Any]:
        """The last two steps, and the weights as they are, for diverged.json."""
        return self.trail.report(self.parts(), self.passage_ids)

    def _summarize(self, resamples: int) -> None:
        gathered = gather_objects([prediction.to_json() for prediction in self.predictions])
        self.predictions = [Prediction.from_json(fields) for part in gathered for fields in part]
        self.predictions.sort(key=lambda prediction: prediction.id)
        self.summary = self.summarized(resamples)
        if self.depth:
            self.summary["retrieval"] = summarize_ranking(self.predictions, self.depth)
