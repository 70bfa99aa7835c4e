"""SIGTERM, SIGINT and SIGUSR1 in every phase of a run: the command ends with the signal's code and says so, no status
stays "running", and the run that is resumed gives the answers of the one that was left alone."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice, product
from pathlib import Path

import pytest

from benchmarks.faults.small import small_system, spoken
from tests.commands.test_signals import BEFORE_THE_FOLDER, PHASES, signalled

NAME = "signals"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
QUICK, FULL = 7, len(PHASES) * len(SIGNALS)


def tries(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each phase with one signal first, then with the others."""
    phases = list(PHASES)
    order = [(phase, SIGNALS[(at + turn) % 3]) for turn, (at, phase) in product(range(3), enumerate(phases))]
    for phase, number in islice(order, count):
        place = folder / f"{number.name}-{phase}".replace(" ", "-")
        yield f"{number.name} in {phase}", partial(stopped, place, phase, number)


def stopped(folder: Path, phase: str, number: signal.Signals) -> None:
    folder.mkdir(parents=True)
    run = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        signalled(patch, phase, number)
        code, said = spoken(["train", *small_system(folder.parent / "system").words(run)])
    assert code == 128 + number and f"stopped by {number.name}" in said, (code, said[-2000:])
    if phase in BEFORE_THE_FOLDER:
        assert not run.exists()
        return
    summary = run / "summary.json"
    assert not summary.exists() or json.loads(summary.read_text())["status"] != "running"
    code, said = spoken(["resume", str(run)])
    assert code == 0, said[-2000:]
    assert json.loads(summary.read_text())["status"] == "finished"
    assert (run / "predictions.jsonl").read_bytes() == straight(folder.parent)


@cache
def straight(folder: Path) -> bytes:
    """The answers of the run that nothing happened to."""
    (folder / "straight").mkdir(parents=True)
    run = folder / "straight" / "run"
    code, said = spoken(["train", *small_system(folder / "system").words(run)])
    assert code == 0, said[-2000:]
    return (run / "predictions.jsonl").read_bytes()
