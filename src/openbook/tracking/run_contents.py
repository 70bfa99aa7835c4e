"""The contents of a run folder, as far as its files exist and are readable."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from openbook.metrics.prediction import Prediction
from openbook.tracking.curves import Curves, read_metrics
from openbook.utils.json_lines import lines_of


@dataclass
class RunFiles:
    """The contents of a run folder. `problems` names each missing or unreadable file; its field is then empty."""

    summary: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    curves: Curves = field(default_factory=dict)
    predictions: list[Prediction] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


def read_run(run_folder: Path) -> RunFiles:
    """Every file of the folder that the report uses, as far as it exists and is readable."""
    files = RunFiles()

    def predictions(path: Path) -> list[Prediction]:
        readable, bad = [], []
        for number, line in enumerate(lines_of(path), 1):
            try:
                readable.append(Prediction.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                bad.append(number)
        if bad:
            files.problems[path.name] = f"{path.name}: {len(bad)} lines cannot be read, the first is line {bad[0]}."
        return readable

    readers: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "summary": ("summary.json", _json_object),
        "environment": ("environment.json", _json_object),
        "config": ("config.yaml", partial(Path.read_text, encoding="utf-8")),
        "curves": ("metrics.csv", read_metrics),
        "predictions": ("predictions.jsonl", predictions),
    }
    for attribute, (name, reader) in readers.items():
        try:
            setattr(files, attribute, reader(run_folder / name))
        except FileNotFoundError:
            files.problems[name] = f"{name} is missing from the run folder."
        except (OSError, ValueError, KeyError, TypeError) as error:
            files.problems[name] = f"{name} cannot be read: {error}."
    return files


def _json_object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}, not an object")
    return content
