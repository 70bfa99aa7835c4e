"""Ctrl-C and SIGTERM leave a resumable run: the signal sets a flag, the end of the step saves, on all ranks."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L

from openbook.distributed import any_rank
from openbook.progress import say

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopOnSignal(L.Callback):
    """On SIGINT, SIGTERM or SIGUSR1: finish the optimizer step, save `last.ckpt`, end training in order.

    Nothing is saved inside the handler: under several ranks a collective there hangs, and the weights may be half
    stepped. A second Ctrl-C stops at once without saving. Put it after the callbacks whose state must be saved.
    """

    def __init__(self, checkpoints: Path):
        self.path = Path(checkpoints) / "last.ckpt"
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step_done = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if step_done and any_rank(self.received is not None):
            self.received = self.received or int(signal.SIGTERM)
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True
            say(f"stopped by signal after step {trainer.global_step}; saved {self.path}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
