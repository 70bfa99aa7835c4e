"""Checkpoints that a run resumes from: every N steps and at the end; Ctrl-C and SIGTERM save first, on all ranks."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L

from openbook.utils.console import say
from openbook.utils.distributed import any_rank

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Checkpointing(L.Callback):
    """Writes `last.ckpt` every N optimizer steps, when training ends, and on SIGINT, SIGTERM or SIGUSR1, which end
    training in order after the optimizer step under way.

    Nothing is saved inside a signal handler: under several ranks a collective there hangs, and the weights may be half
    stepped. A second Ctrl-C stops at once without saving. Put it after the callbacks whose state must be saved.
    """

    def __init__(self, path: Path, every: int):
        self.path = Path(path)
        self.every = every
        self.received: int | None = None
        self._saved = self._seen = 0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved = self._seen = trainer.global_step
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen:  # in the middle of an accumulated step
            return
        self._seen = trainer.global_step
        stopping = any_rank(self.received is not None)
        if stopping:
            self.received = self.received or int(signal.SIGTERM)
            trainer.should_stop = True
        if stopping or self._seen - self._saved >= self.every:
            self._save(trainer)
        if stopping:
            say(f"stopped by a signal after step {self._seen}; saved {self.path}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore_handlers()
        if trainer.global_step != self._saved:
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved = trainer.global_step

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def _restore_handlers(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
