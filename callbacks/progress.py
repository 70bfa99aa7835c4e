"""How far training, validation and test are, by the same lines and bars as every other long stage."""

from contextlib import suppress
from typing import Any

import lightning as L

from openbook.utils.console import Stage, stage

LAST_VALIDATION = ("exact_match", "recall_at_1")


class Progress(L.Callback):
    """Of training: optimizer steps, questions per second over all ranks, the loss (train/nll), and of the last
    validation what was measured of it. Of validation and test: batches of rank 0."""

    def __init__(self) -> None:
        self._open: dict[str, Stage] = {}
        self._done = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open["train"] = stage("training", "steps", trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._open["train"](trainer.global_step, max(trainer.max_steps, 0), lambda: _measured(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close("train")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin("validation", "validating")

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._advance("validation", trainer.num_val_batches)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close("validation")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin("test", "testing")

    def on_test_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._advance("test", trainer.num_test_batches)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close("test")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        for name in list(self._open):
            self._close(name)

    def _begin(self, name: str, label: str) -> None:
        self._done, self._open[name] = 0, stage(label, "batches")

    def _advance(self, name: str, batches: list[Any]) -> None:
        self._done += 1
        total = sum(batches)
        self._open[name](self._done, int(total) if total != float("inf") else 0)

    def _close(self, name: str) -> None:
        with suppress(KeyError):  # what was not begun: a run that ended in the set-up of its training
            self._open.pop(name).close()


def _measured(trainer: L.Trainer) -> str:
    """What is known at a step."""
    known = {name: float(value) for name, value in trainer.callback_metrics.items()}
    speed, nll = known.get("throughput/questions_per_second"), known.get("train/nll")
    told = [f"{speed:.1f} questions/s in the step"] if speed is not None else []
    told += [f"loss {nll:.3f}"] if nll is not None else []
    last = {name: known.get(f"validation/{name}") for name in LAST_VALIDATION}
    rates = [
        f"{name.replace('_at_', '@').replace('_', ' ')} {value:.3f}"
        for name, value in last.items()
        if value is not None
    ]
    told += [f"last validation {', '.join(rates)}"] if rates else []
    return "".join(f", {one}" for one in told)
