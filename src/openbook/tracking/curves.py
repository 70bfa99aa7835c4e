"""Reads metrics.csv as curves over steps."""

import csv
import math
from pathlib import Path

Curves = dict[str, tuple[list[float], list[float]]]  # Column of metrics.csv -> (steps, values), steps ascending.


def read_metrics(path: Path) -> Curves:
    """The columns of a CSV file with a `step` column and gaps, in the format of Lightning's CSVLogger.

    Of a step that occurs twice (resumed runs) the last value counts; cells that are not finite numbers are gaps.
    """
    columns: dict[str, dict[float, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            numbers = {column: value for column, cell in row.items() if math.isfinite(value := _number(cell))}
            step = numbers.pop("step", math.nan)
            numbers.pop(None, None)  # cells beyond the header
            for column, value in numbers.items() if math.isfinite(step) else ():
                columns.setdefault(column, {})[step] = value
    return {column: (sorted(values), [values[step] for step in sorted(values)]) for column, values in columns.items()}


def _number(cell: object) -> float:
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
