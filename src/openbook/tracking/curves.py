"""Reading metrics.csv back as curves over steps."""

from __future__ import annotations

import csv
import math
from pathlib import Path

Curves = dict[str, tuple[list[float], list[float]]]
"""Column of metrics.csv -> (steps, values), steps ascending."""


def read_metrics(path: Path) -> Curves:
    """The columns of a CSV with a `step` column and gaps, as Lightning's CSVLogger writes it.

    A step written twice (a resumed run) counts with its last value; cells that are not finite numbers are gaps.
    """
    columns: dict[str, dict[float, float]] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            step = _number(row.get("step"))
            if step is None:
                continue
            for column, cell in row.items():
                value = _number(cell)
                if value is not None and column not in ("step", None):
                    columns.setdefault(column, {})[step] = value
    return {
        column: ([step for step, _ in points], [value for _, value in points])
        for column, points in ((column, sorted(values.items())) for column, values in columns.items())
    }


def _number(cell: object) -> float | None:
    try:
        value = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
