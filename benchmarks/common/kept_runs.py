"""Runs that a benchmark trains once and finds again: of the same settings, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openbook.commands.child_process import run_command
from openbook.config.load import flat, load_experiment
from openbook.errors import OpenBookError
from openbook.tracking.open_keys import agrees
from openbook.tracking.run_folder import RunFolder
from openbook.tracking.search.found_run import without_effect


def trained(path: Path, experiment: str, overrides: Sequence[str]) -> RunFolder:
    """The finished run in this folder, trained now unless it is there. OpenBookError where a run of other settings lies
    there, SystemExit with the code of a training that failed."""
    run, words = RunFolder(path), [*overrides, f"run.dir={path}"]
    if run.read_summary().get("status") == "finished":
        _check_same(run, experiment, words)
    elif code := run_command(["train", experiment, *words]):
        raise SystemExit(code)
    return run


def _check_same(run: RunFolder, experiment: str, overrides: Sequence[str]) -> None:
    theirs, mine = (flat(one) for one in (run.load_config([], training=False), load_experiment(experiment, overrides)))
    opened = run.read_summary().get("left_open")
    other = [
        key for key in mine if not without_effect(key) and not agrees({key: theirs[key]}, {key: mine[key]}, opened)
    ]
    if other:
        raise OpenBookError(
            "a run of other settings lies there",
            where=run.path,
            got=f"{other[0]} {theirs[other[0]]!r}",
            expected=repr(mine[other[0]]),
            action="Move it away.",
        )
