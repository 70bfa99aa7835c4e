"""Reads metrics.csv as curves over steps."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path

Curves = dict[str, tuple[list[float], list[float]]]  # Column of metrics.csv -> (steps, values), steps ascending.


def read_metrics(path: Path) -> Curves:
    """The columns of a CSV file with a `step` column and gaps, in the format of Lightning's CSVLogger.

    Of a step that occurs twice (resumed runs) the last value counts; cells that are not finite numbers are gaps.
    """
    return curves_of(read_rows(path)[0])


def read_rows(path: Path) -> tuple[list[dict[str, str]], list[int]]:
    """The rows {column: cell} of such a file, and the numbers of the lines that cannot be read: cut, with a step that
    is no number, or not UTF-8. No cell of the project's own has a line break in it."""
    lines = path.read_bytes().split(b"\n")
    rows: list[dict[str, str]] = []
    bad: list[int] = []
    header: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            cells = next(csv.reader([line.decode("utf-8")]))
        except (UnicodeDecodeError, csv.Error):
            cells = []
        row = dict(zip(header, cells, strict=False))  # cells beyond the header belong to no column
        if number == 1 and "step" in cells:
            header = cells
        elif len(row) == len(header) > 0 and math.isfinite(_number(row["step"])) and number < len(lines):
            rows.append(row)
        else:  # the last line, too, ends with a line feed unless it was cut
            bad.append(number)
    return rows, bad


def curves_of(rows: Iterable[dict[str, str]]) -> Curves:
    """{column: (steps, values)} of the rows."""
    columns: dict[str, dict[float, float]] = {}
    for row in rows:
        numbers = {column: value for column, cell in row.items() if math.isfinite(value := _number(cell))}
        step = numbers.pop("step")
        for column, value in numbers.items():
            columns.setdefault(column, {})[step] = value
    return {column: (sorted(values), [values[step] for step in sorted(values)]) for column, values in columns.items()}


def _number(cell: object) -> float:
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
