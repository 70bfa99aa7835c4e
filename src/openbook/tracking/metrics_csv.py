"""metrics.csv as a Lightning logger that a resumed run continues."""

import csv
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from openbook.utils.atomic import replacing


class MetricsCsv(Logger):
    """One row per optimizer step in `metrics.csv`, a column per metric, empty where a step has none; `step` is the
    number of optimizer steps done (Lightning counts the steps before).

    A resumed run keeps the rows up to the step it resumes from and appends to them; Lightning's CSVLogger would delete
    the file.
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
        """Lightning calls this at every step; rewriting the whole file is limited to about 3 % of the time."""
        if time.perf_counter() >= self._next_save:
            self.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """All rows on disk now."""
        if not self.rows:
            return
        started = time.perf_counter()
        columns = sorted({name for row in self.rows.values() for name in row})
        with replacing(self.path) as new, open(new, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["step", *columns])
            writer.writeheader()
            writer.writerows({"step": step, **self.rows[step]} for step in sorted(self.rows))
        self._next_save = time.perf_counter() + 30 * (time.perf_counter() - started)
