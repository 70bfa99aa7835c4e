"""One trial of a wandb sweep, as its agents start it: `python -m openbook.commands.sweep.trial FOLDER EXPERIMENT
key=value ...`. Its run folder, in FOLDER, is known by sweep and trial: a trial that is given out again is resumed."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from openbook.tracking.loggers.identity import RUN_ID, SWEEP_ID


def folder_of(sweep: str, trial: str) -> str:
    """The name of a trial's run folder."""
    return f"{sweep}-{trial}"


def words_of(arguments: Sequence[str]) -> list[str]:
    """What `openbook` is called with."""
    runs, experiment, *words = arguments
    folder = Path(runs) / folder_of(os.environ[SWEEP_ID], os.environ[RUN_ID])
    if (folder / "config.yaml").is_file():
        return ["resume", str(folder)]
    return ["train", experiment, *words, f"run.dir={folder}"]


if __name__ == "__main__":  # in this process, which the agent knows and stops
    os.execv(sys.executable, [sys.executable, "-m", "openbook", *words_of(sys.argv[1:])])
