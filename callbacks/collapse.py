"""Watch for retrieval collapse: the same few passages for every question, after which the retriever stops learning."""

import math
import warnings
from collections import Counter, deque
from typing import Any, Literal

import lightning as L
import torch

from openbook.errors import OpenBookError
from openbook.utils.distributed import any_rank, gather_objects, sum_over_ranks

REMEDY = (
    "Lower optim.lr_passage_encoder and optim.lr_question_encoder, refresh the index more often (refresh.every), "
    "raise optim.warmup_steps, or give the generator a warm-up: one that cannot read teaches the retriever noise."
)


class CollapseWatch(L.Callback):
    """Logs, over the passages of the last `window` forward passes of all ranks:

    collapse/distinct_share      distinct passages, as a share of the most there could have been
    collapse/effective_passages  exp of the entropy of the retrieved ids: as many passages as if all were equally usual
    collapse/marginal_gain       nats per question by which the marginal beats the least useful passage alone

    A window whose effective passages are under `threshold` of the most there could have been is a collapse: it is said
    once, with what to try, or ends the run (action "stop"). Nothing is said before the first window is full.
    """

    def __init__(
        self, n_passages: int, window: int = 20, threshold: float = 0.05, action: Literal["warn", "stop"] = "warn"
    ):
        self.n_passages = n_passages
        self.threshold = threshold
        self.action = action
        self.recent: deque[list[int]] = deque(maxlen=window)
        self.warned = False

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self.recent), "warned": self.warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.recent.extend(state_dict["recent"])
        self.warned = bool(state_dict["warned"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        real = outputs["rows"][(batch.weight > 0).cpu()]  # where the rows are
        self.recent.append([row for part in gather_objects(real[real >= 0].tolist()) for row in part])
        counts = Counter(row for step in self.recent for row in step)
        retrieved = counts.total()
        if not retrieved:
            return
        most = min(self.n_passages, retrieved)
        effective = math.exp(-sum(n / retrieved * math.log(n / retrieved) for n in counts.values()))
        gain = _marginal_gain(outputs["token_logprobs"], outputs["doc_scores"], outputs["nll"], batch)
        measured = {"distinct_share": len(counts) / most, "effective_passages": effective, "marginal_gain": gain}
        for name, value in measured.items():
            pl_module.log(f"collapse/{name}", value, rank_zero_only=True)
        full = len(self.recent) == self.recent.maxlen
        if any_rank(full and effective < self.threshold * most and not self.warned):
            self.warned = True
            problem = OpenBookError(
                "retrieval has collapsed",
                where=f"step {trainer.global_step}",
                got=f"as good as {effective:.1f} passages for the questions of {len(self.recent)} steps",
                expected=f"at least {self.threshold * most:.1f} of {most:,}",
                action=REMEDY,
            )
            if self.action == "stop":
                raise problem
            if trainer.is_global_zero:
                warnings.warn(str(problem), stacklevel=2)


def _marginal_gain(token_logprobs: torch.Tensor, doc_scores: torch.Tensor, nll: torch.Tensor, batch: Any) -> float:
    """Mean over the questions of all ranks of log p(y|x) - min_k log p(y|x,z_k)."""
    alone = (token_logprobs * batch.target_mask[:, None]).sum(-1)
    worst = torch.where(doc_scores.isfinite(), alone, torch.inf).amin(1)
    counted = (batch.weight > 0) & worst.isfinite() & nll.isfinite()
    gains = torch.where(counted, -nll - worst, 0.0)
    total, n = sum_over_ranks(torch.stack([gains.sum(), counted.sum().to(gains.dtype)])).tolist()
    return total / max(n, 1.0)
