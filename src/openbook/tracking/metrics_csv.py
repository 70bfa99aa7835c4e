"""metrics.csv as a Lightning logger that a resumed run continues."""

import csv
import os
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from openbook.tracking.curves import read_rows
from openbook.utils.atomic import replacing
from openbook.utils.console import say


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
        self._damaged = False
        if keep_until:
            self._take_up(keep_until)

    def _take_up(self, keep_until: int) -> None:
        """The rows of the run that is resumed, as far as they can be read: no curve is worth more than the run."""
        rows, bad = read_rows(self.path) if self.path.is_file() else ([], [])
        cells = 0
        for row in rows:
            values = {name: _number(cell) for name, cell in row.items() if cell and name != "step"}
            cells += sum(value is None for value in values.values())
            if (step := int(float(row["step"]))) <= keep_until:
                self.rows[step] = {name: value for name, value in values.items() if value is not None}
        self._damaged = bool(bad or cells) or not rows
        if bad or cells:
            first = f", the first is line {bad[0]}" if bad else ""
            what = f"{len(bad)} of its lines{first}, and {cells} cells of others cannot be read: they are left out"
        else:
            what = f"it has no rows: the curves begin after step {keep_until}"
        if self._damaged:
            say(f"warning: {self.path} is damaged: {what}")

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
        if self._damaged and self.path.is_file():
            os.replace(self.path, self.path.with_name(self.path.name + ".damaged"))
        self._damaged = False
        columns = sorted({name for row in self.rows.values() for name in row})
        with replacing(self.path) as new, open(new, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["step", *columns])
            writer.writeheader()
            writer.writerows({"step": step, **self.rows[step]} for step in sorted(self.rows))
        self._next_save = time.perf_counter() + 30 * (time.perf_counter() - started)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
