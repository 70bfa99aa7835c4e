"""Where the time goes: questions per second, seconds per step, seconds of each stage."""

import time
from typing import Any

import lightning as L


class Throughput(L.Callback):
    """Logs throughput/step_seconds (forward passes of one optimizer step, without refresh or validation) and
    throughput/questions_per_second over all ranks. Put it before IndexRefresh, so that a refresh is not counted.

    validation_seconds: spent on validations in this process, an index that one of them had to wait for left out."""

    def __init__(self) -> None:
        self._started = 0.0
        self._seconds = 0.0
        self._questions = 0
        self._step = -1
        self._cursor = 0
        self.validation_seconds = 0.0
        self._validating = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._cursor = getattr(trainer.datamodule, "consumed", 0)  # type: ignore[attr-defined]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seconds += time.perf_counter() - self._started
        self._questions += batch.cursor - self._cursor  # of all ranks, fillers left out
        self._cursor = batch.cursor
        if trainer.global_step != self._step:  # not in the middle of an accumulated step
            self._step = trainer.global_step
            pl_module.log("throughput/step_seconds", self._seconds, rank_zero_only=True)
            pl_module.log("throughput/questions_per_second", self._questions / self._seconds, rank_zero_only=True)
            self._seconds, self._questions = 0.0, 0

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0:
            self._validating = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validation_seconds += time.perf_counter() - (self._validating or time.perf_counter())
        self._validating = 0.0
