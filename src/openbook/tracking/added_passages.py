"""The corpora that a run has come to answer from since it was trained, each written once and never changed.

    RUN/corpus/<number>/  passages.jsonl: the whole corpus, report.json: what was added to the one before

The newest counts; without it the one before does, and without any the run's own data.corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openbook.tracking.run_folder import read_json

FOLDER, PASSAGES, REPORT = "corpus", "passages.jsonl", "report.json"
_KEY = "data.corpus="


class Grown(NamedTuple):
    """One such corpus."""

    number: int
    folder: Path

    @property
    def passages(self) -> Path:
        return self.folder / PASSAGES

    @property
    def report(self) -> dict[str, Any]:
        return read_json(self.folder / REPORT)


def folder_of(run: Path, number: int) -> Path:
    return run / FOLDER / str(number)


def newest(run: Path) -> Grown | None:
    """The corpus that a run answers from; None where nothing was added to its own."""
    numbers = [int(one.parent.name) for one in (run / FOLDER).glob(f"*/{REPORT}") if one.parent.name.isdigit()]
    return Grown(max(numbers), folder_of(run, max(numbers))) if numbers else None


def answering_overrides(run: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Overrides with which a run's configuration names the corpus that it answers from, unless they name another."""
    grown = newest(run)
    named = any(one.startswith(_KEY) for one in overrides)
    return [*overrides] if named or grown is None else [*overrides, f"{_KEY}{grown.passages}"]


def newest_evaluation(run: Path) -> Path | None:
    """The folder of a run's newest evaluation over the corpus that it answers from; None where there is none, or where
    nothing was added. By its place in the run folder, which may have been moved."""
    grown = newest(run)
    place = f"{FOLDER}/{grown.number}/{PASSAGES}" if grown else ""
    numbers = sorted((int(one.name) for one in run.glob("evaluations/*") if one.name.isdigit()), reverse=True)
    for folder in (run / "evaluations" / str(number) for number in numbers if grown):
        overrides = read_json(folder / "summary.json").get("overrides", ())
        if any(one.startswith(_KEY) and Path(one.removeprefix(_KEY)).as_posix().endswith(place) for one in overrides):
            return folder
    return None
