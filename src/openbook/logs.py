"""metrics.csv as a Lightning logger that a resumed run continues, and checkpoints that are whole or not there."""

from __future__ import annotations

import csv
import os
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from openbook.errors import OpenBookError


class MetricsCsv(Logger):
    """One row per optimizer step in `metrics.csv`, a column per metric, empty where a step has none; `step` is the
    number of optimizer steps done (Lightning counts the steps before).

    A resumed run keeps the rows up to the step it resumes from and goes on below them; Lightning's own CSVLogger
    would delete the file.
    """

    def __init__(self, path: Path, keep_until: int = 0):
        super().__init__()
        self.path = Path(path)
        self.rows: dict[int, dict[str, float]] = {}
        self._next_save = 0.0
        if keep_until and self.path.is_file():
            with open(self.path, encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if int(row["step"]) <= keep_until:
                        self.rows[int(row["step"])] = {k: float(v) for k, v in row.items() if v and k != "step"}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = self.rows.setdefault(int(step or 0) + 1, {})
        row.update({name: value for name, value in metrics.items() if name != "epoch"})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Settings are in config.yaml."""

    @rank_zero_only
    def save(self) -> None:
        """Lightning asks for this at every step; the file is rewritten whole, so seldom enough to cost 3 % at most."""
        if time.perf_counter() >= self._next_save:
            self._write()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.rows:
            self._write()

    def _write(self) -> None:
        started = time.perf_counter()
        columns = sorted({name for row in self.rows.values() for name in row})
        new = self.path.with_name(f".{self.path.name}.new")
        with open(new, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["step", *columns])
            writer.writeheader()
            writer.writerows({"step": step, **self.rows[step]} for step in sorted(self.rows))
        os.replace(new, self.path)
        self._next_save = time.perf_counter() + 30 * (time.perf_counter() - started)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the target, syncs, renames: a kill at any moment leaves the old checkpoint or the new one.

    Lightning's own way stages in $TMPDIR; where that is another file system the move can be cut in the middle.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            with open(new, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        return read_checkpoint(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content; tensors and plain values only, nothing in it is executed."""
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise OpenBookError("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: checkpoints could execute code",
                            action="Unset it.")  # fmt: skip
    path = Path(path)
    if not path.is_file():
        raise OpenBookError("no such checkpoint", where=path, action=_others(path))
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise OpenBookError(
            "the checkpoint is damaged", where=path, got=type(error).__name__, action=_others(path)
        ) from error


def _others(path: Path) -> str:
    """What to do instead: the newest other checkpoints of the folder."""
    found = sorted(path.parent.glob("*.ckpt"), key=lambda other: -other.stat().st_mtime)
    names = [other.name for other in found if other != path][:3]
    return f"Newest others there: {', '.join(names)}." if names else "There is no other checkpoint in that folder."
