"""Checkpoints that a run resumes from: every N steps and at the end; Ctrl-C and SIGTERM save first, on all ranks."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any, cast

import lightning as L

from openbook.tracking.checkpoint import keep_last
from openbook.tracking.metrics_csv import MetricsCsv
from openbook.utils.console import say
from openbook.utils.distributed import largest, now_in, raise_on_all_ranks
from openbook.utils.signals import SIGNALS, Stopped

# What a resumed run goes on with.
STATE = ("validated", "best", "best_step", "since_best")


class Checkpointing(L.Callback):
    """Writes `last.ckpt` every N optimizer steps, when training ends, and on SIGINT, SIGTERM or SIGUSR1, which end
    training in order after the optimizer step under way; and `best.ckpt` after each validation whose `monitor` (a sum
    of metrics where it names several, joined by +) is higher than ever before. With patience, training ends after so
    many validations in a row without a new best. Before the first step there is a validation too: what training is to
    improve on may itself be the best; and after the last one, whatever the interval: what it trained shall not be lost.

    Curves are written before the checkpoint, the row of its step included, and a validation that is due at its step is
    waited for, or where a signal does not leave the time, made good when the run is resumed: a run that was killed and
    resumed has the curves of one that was not.

    Nothing is saved inside a signal handler: under several ranks a collective there hangs, and the weights may be half
    stepped. A second Ctrl-C stops at once without saving. Put it after the callbacks whose state must be saved.
    """

    def __init__(
        self,
        path: Path,
        every: int,
        *,
        keep: int = 1,
        monitor: str = "",
        patience: int = 0,
        validate_every: int = 0,
    ):
        """path: last.ckpt; every, validate_every: optimizer steps, 0 without validation; keep: how many of the last
        checkpoints; monitor: a metric of `module.summary`, empty for no best checkpoint; patience: validations, 0 for
        no end."""
        self.path, self.keep = Path(path), keep
        self.best_path = self.path.with_name("best.ckpt")
        self.every = every
        self.monitor, self.patience, self.validate_every = monitor, patience, validate_every
        self.received: int | None = None
        self.validated = -1  # the step of the last validation
        self.best: float | None = None
        self.best_step = self.since_best = 0
        self._saved = self._seen = self._last = 0
        self._outside = False
        self._before: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state_dict[name])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved = self._seen = trainer.global_step
        self._last = trainer.max_steps
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        if self._validates_at(trainer.global_step) and self.validated != trainer.global_step:
            # Lightning would log one of no step as one of the first.
            self._validate(trainer, int(not trainer.global_step))
        self._end_early(trainer)  # of a run that had, and was interrupted in its test

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        now_in(f"training, step {trainer.global_step + 1}")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now_in(f"validation after step {trainer.global_step}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen:  # in the middle of an accumulated step
            return
        self._seen = trainer.global_step
        stopping = largest(self.received or 0)
        if stopping:
            self.received = stopping
            trainer.should_stop = True
            # Lightning validates when it is to stop; a run that was not stopped would not, and might have another best.
            trainer.fit_loop.epoch_loop._skip_next_val = not self._validates_at(self._seen)
        if stopping or (self._is_due() and not self._validates_at(self._seen)):
            # Lightning logs the step after this hook, and would leave its row to the time after the checkpoint.
            trainer._logger_connector.update_train_step_metrics()
            self._save(trainer)
        if stopping:
            say(f"stopped by a signal after step {self._seen}; saved {self.path}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        self.validated = trainer.global_step
        values = [pl_module.summary.get(name) for name in self.monitor.split("+")]  # type: ignore[union-attr, operator]
        value = None if None in values else sum(values)
        improved = value is not None and (self.best is None or value > self.best)
        if improved:
            self.best, self.best_step, self.since_best = value, trainer.global_step, 0
        else:
            self.since_best += 1
        self._end_early(trainer)
        if improved:
            self._flush(trainer)
            self._write(trainer, self.best_path)
        if self._is_due() and not self._outside:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        stopped = largest(self.received or 0)  # it may have come to one rank since the last step
        self.received = stopped or None
        if not stopped and self._validates_at(trainer.global_step) and self.validated != trainer.global_step:
            self._validate(trainer, 1)
        self._restore_handlers()
        if trainer.global_step != self._saved:
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _end_early(self, trainer: L.Trainer) -> None:
        if self.patience and self.since_best >= self.patience and not trainer.should_stop:
            trainer.should_stop = True
            say(f"stopped early: {self.monitor} has not risen above {self.best} in {self.since_best} validations")

    def _is_due(self) -> bool:
        return self._seen - self._saved >= self.every

    def _validates_at(self, step: int) -> bool:
        return bool(self.validate_every) and (step % self.validate_every == 0 or step == self._last)

    def _validate(self, trainer: L.Trainer, ahead: int) -> None:
        """A validation outside of the training loop, whose counter of steps is then ahead by so many; nothing is saved
        that a run resumes from while it is turned back."""
        epoch_loop = trainer.fit_loop.epoch_loop
        trainer.validating = self._outside = True
        epoch_loop._batches_that_stepped -= ahead
        epoch_loop.val_loop.run()
        epoch_loop._batches_that_stepped += ahead
        self._outside, trainer.training = False, True

    def _save(self, trainer: L.Trainer) -> None:
        self._flush(trainer)
        self._write(trainer, self.path, self.keep)
        self._saved = trainer.global_step

    def _write(self, trainer: L.Trainer, path: Path, keep: int = 0) -> None:
        """As trainer.save_checkpoint, but for an error of the rank that writes, which is raised on all."""
        now_in(f"saving after step {trainer.global_step}")
        cast(Any, trainer.lightning_module).check_finite()
        content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        with raise_on_all_ranks():
            if keep and trainer.is_global_zero:
                keep_last(path, keep)
            trainer.strategy.save_checkpoint(content, path)

    def _flush(self, trainer: L.Trainer) -> None:
        """Curves on disk before the checkpoint: a resumed run can drop rows that it has, not make those it lacks."""
        with raise_on_all_ranks():
            for logger in trainer.loggers:
                if isinstance(logger, MetricsCsv):
                    logger.flush()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise Stopped(number)
        self.received = number

    def _restore_handlers(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
