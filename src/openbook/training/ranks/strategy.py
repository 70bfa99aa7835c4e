"""Lightning's strategy for several ranks that each hold everything."""

from collections.abc import Callable
from datetime import timedelta

import lightning as L
from lightning.pytorch.strategies import DDPStrategy

from openbook.utils.distributed import raise_if_any_rank_failed


class Ranks(DDPStrategy):
    """DDP whose ranks hear, once they are connected, of one that failed while it set up."""

    def __init__(self, timeout: float):
        """timeout: seconds that ranks wait for one another."""
        # The only buffers are frozen weights.
        super().__init__(broadcast_buffers=False, timeout=timedelta(seconds=timeout))

    def setup_environment(self) -> None:
        super().setup_environment()
        raise_if_any_rank_failed(None)


class OnceConnected(L.Callback):
    """Calls `then` on every rank when all are there to train, before a checkpoint is restored."""

    then: Callable[[], None] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and self.then is not None:
            self.then()
