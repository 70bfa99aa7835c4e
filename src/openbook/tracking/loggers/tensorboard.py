"""Curves for TensorBoard, by Lightning's own logger."""

from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class TensorBoard(TensorBoardLogger):
    """The metrics of metrics.csv at the same steps, in tensorboard/ of the run folder; `tensorboard --logdir FOLDER`
    shows them. done: steps after which a resumed run goes on; what an earlier process wrote of later ones is hidden."""

    def __init__(self, folder: Path, done: int = 0):
        super().__init__(folder, name="tensorboard", version="", purge_step=done + 1 if done else None)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Lightning counts the steps before this one, metrics.csv those that are done."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, int(step or 0) + 1)
