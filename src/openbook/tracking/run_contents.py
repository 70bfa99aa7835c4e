"""What a run folder holds for its report, as far as it is there and readable."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openbook.metrics.prediction import Prediction
from openbook.tracking.curves import Curves, read_metrics


@dataclass
class RunFiles:
    """What a run folder holds. `problems` says per file what is missing or unreadable; the rest is then empty."""

    summary: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    curves: Curves = field(default_factory=dict)
    predictions: list[Prediction] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


def read_run(run_folder: Path) -> RunFiles:
    """Every file of the folder that the report uses, as far as it is there and readable."""
    files = RunFiles()

    def read(name: str, reader: Any, empty: Any) -> Any:
        path = run_folder / name
        if not path.is_file():
            files.problems[name] = f"{name} is missing from the run folder."
            return empty
        try:
            return reader(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            files.problems[name] = f"{name} cannot be read: {error}."
            return empty

    def predictions(path: Path) -> list[Prediction]:
        read_ones, bad = [], []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                read_ones.append(Prediction.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                bad.append(number)
        if bad:
            files.problems[path.name] = f"{path.name}: {len(bad)} lines cannot be read, the first is line {bad[0]}."
        return read_ones

    files.summary = read("summary.json", _json_object, {})
    files.environment = read("environment.json", _json_object, {})
    files.config = read("config.yaml", lambda path: path.read_text(encoding="utf-8"), "")
    files.curves = read("metrics.csv", read_metrics, {})
    files.predictions = read("predictions.jsonl", predictions, [])
    return files


def _json_object(path: Path) -> dict[str, Any]:
    read = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(read, dict):
        raise TypeError(f"it holds a {type(read).__name__}, not an object")
    return read
