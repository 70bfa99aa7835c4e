"""The contents of a run folder, as far as its files exist and are readable."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from openbook.metrics.prediction import Prediction
from openbook.tracking.curves import Curves, curves_of, read_rows
from openbook.utils.json_lines import read_json_lines, why_unreadable


@dataclass
class RunFiles:
    """The contents of a run folder. `problems` names each missing or unreadable file; its field is then empty."""

    summary: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    curves: Curves = field(default_factory=dict)
    predictions: list[Prediction] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)

    @property
    def damage(self) -> list[str]:
        """What is wrong with the files that are there."""
        return [text for name, text in self.problems.items() if name not in self.missing]


def read_run(run_folder: Path) -> RunFiles:
    """Every file of the folder that the report uses, as far as it exists and is readable."""
    files = RunFiles()

    def predictions(path: Path) -> list[Prediction]:
        readable, bad = read_json_lines(path, Prediction.from_json)
        if bad:
            files.problems[path.name] = f"{path.name}: {len(bad)} lines cannot be read, the first is line {bad[0]}."
        elif not readable:
            files.problems[path.name] = f"{path.name} is empty."
        return readable

    def curves(path: Path) -> Curves:
        rows, bad = read_rows(path)
        if bad:
            files.problems[path.name] = f"{path.name}: {len(bad)} lines cannot be read, the first is line {bad[0]}."
        elif not rows:
            files.problems[path.name] = f"{path.name} is empty."
        return curves_of(rows)

    readers: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "summary": ("summary.json", _json_object),
        "environment": ("environment.json", _json_object),
        "config": ("config.yaml", partial(Path.read_text, encoding="utf-8")),
        "curves": ("metrics.csv", curves),
        "predictions": ("predictions.jsonl", predictions),
    }
    for attribute, (name, reader) in readers.items():
        try:
            setattr(files, attribute, reader(run_folder / name))
        except FileNotFoundError:
            files.missing.add(name)
            files.problems[name] = f"{name} is missing from the run folder."
        except (OSError, ValueError, KeyError, TypeError) as error:
            files.problems[name] = f"{name} cannot be read: {why_unreadable(error)}."
    return files


def _json_object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}, not an object")
    return content
