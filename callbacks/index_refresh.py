"""Keep the index fresh: re-encode passages when it is time, and swap on all ranks at the same optimizer step."""

from typing import Any

import lightning as L

from openbook.refresh.manager import RefreshManager
from openbook.retrieval.dense import DenseRetriever


class IndexRefresh(L.Callback):
    """Lightning's hooks around a RefreshManager: a snapshot before the first search, a check after every step.

    fresh_test: before a test, encode the corpus again when the passage encoder has moved since.
    """

    def __init__(self, manager: RefreshManager, fresh_test: bool = True):
        self.manager = manager
        self.fresh_test = fresh_test
        self._seen = -1

    # By then a resumed run's weights are in place, whatever the strategy restores them with.
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen = trainer.global_step
        _log_first(trainer, self.manager.prepare(_retriever(pl_module), trainer.global_step))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _log_first(trainer, self.manager.ensure(_retriever(pl_module), trainer.global_step))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _retriever(pl_module).passages.cache.take()  # not for the index: a resumed run would not have it

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        retriever = _retriever(pl_module)
        _log_first(trainer, self.manager.ensure(retriever, trainer.global_step))
        if self.fresh_test and not retriever.index_is_fresh():
            self.manager.refresh(retriever, trainer.global_step, self.manager.store)
        else:
            self.manager.keep_vectors(retriever)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen:  # in the middle of an accumulated step
            return
        self._seen = trainer.global_step
        measured = self.manager.after_step(_retriever(pl_module), trainer.global_step)
        _log(trainer, measured)

    def state_dict(self) -> dict[str, Any]:
        return self.manager.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.manager.load_state_dict(state_dict)


def _log(trainer: L.Trainer, measured: dict[str, float]) -> None:
    """Not through the module: Lightning would repeat the values at the next step."""
    for logger in trainer.loggers if measured else ():
        logger.log_metrics(measured, step=trainer.global_step - 1)


def _log_first(trainer: L.Trainer, measured: dict[str, float]) -> None:
    """Of the first index, which is compared with none: what its family costs."""
    found = {name: value for name, value in measured.items() if name.startswith("index/")}
    for logger in trainer.loggers if found else ():
        logger.log_metrics(found, step=trainer.global_step - 1)


def _retriever(module: L.LightningModule) -> DenseRetriever:
    return module.retriever  # type: ignore[return-value]
