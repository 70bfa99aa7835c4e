"""The run folder: where it is and which files it holds."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from openbook.config.checks import NAMES, is_name
from openbook.config.load import load_resolved, to_yaml
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.tracking import run_lock
from openbook.tracking.checkpoint import damage, newest_sound, set_aside_damaged
from openbook.tracking.environment import describe
from openbook.utils.atomic import write_json, write_text
from openbook.utils.console import say
from openbook.utils.disk import writing
from openbook.utils.files.signed import check_text, signed_text
from openbook.utils.json_lines import why_unreadable, write_json_lines

RUNS = Path("runs")
# The environment variable by which the ranks that Lightning starts on a node learn the first one's run folder.
SHARED = "OPENBOOK_RUN_DIR"
RANKED = ("ranking", "judged")  # of a prediction: run.trec and qrels.trec have them


class RunFolder:
    """runs/<experiment>/<name>/ with config.yaml, environment.json, plan.json, metrics.csv, checkpoints/,
    predictions.jsonl, before_training.json, summary.json and report.html."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.metrics = self.path / "metrics.csv"
        self.predictions = self.path / "predictions.jsonl"
        self.summary = self.path / "summary.json"
        self.before = self.path / "before_training.json"
        self.config = self.path / "config.yaml"
        self.plan = self.path / "plan.json"
        self._lock: int | None = None
        self._made: list[Path] = []
        self.named_by_time = False

    @classmethod
    def choose(cls, config: Config) -> RunFolder:
        """The folder for a new run of this configuration, the same on all ranks; nothing is created."""
        if os.environ.get(SHARED):
            return cls(Path(os.environ[SHARED]))
        if config.run.dir:
            return cls(Path(config.run.dir))
        job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID", "")
        job = "" if job == "none" else job  # torchrun's value where it was given no id
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not (config.run.name or job):
            raise OpenBookError(
                "several ranks were started and each would choose its own run folder",
                where="run.name",
                action="Set run.name=NAME.",
            )
        name = config.run.name or (f"job-{job}" if job else "")
        path = RUNS / config.experiment / (name or time.strftime("%Y%m%d-%H%M%S"))
        if not is_name(name):
            raise OpenBookError(
                "a run name must not be a path",
                where="run.name",
                got=repr(name[:80]),
                expected=NAMES,
                action="run.dir=FOLDER puts a run elsewhere.",
            )
        run = cls(path)
        run.named_by_time = not name
        return run

    def claim(self) -> RunFolder:
        """This folder, reserved for one process that starts a run in it: of several that try at the same moment one
        succeeds. A folder named after the time gives way to the next free number behind its name.

        Raises OpenBookError where the folder holds a run or a process is at work in it.
        """
        run, number = self, 1
        while not run._claimed():
            if not self.named_by_time:
                self._refuse_if_live()
                raise OpenBookError(
                    "the run folder holds a run already",
                    where=self.path,
                    action=f"`make resume RUN={self.path}` continues a run; run.name=NAME or run.dir=FOLDER chooses "
                    "another folder.",
                )
            number += 1
            run = RunFolder(self.path.with_name(f"{self.path.name}-{number}"))
        return run

    def lock(self) -> None:
        """Reserve a run that exists, for the process that goes on with it. OpenBookError where one is at it already."""
        self._lock = run_lock.take(self.path)
        if self._lock is None:
            self._refuse_if_live("another process")

    def _refuse_if_live(self, at_least: str = "") -> None:
        if holder := run_lock.holder(self.path) or at_least:
            raise OpenBookError(
                "a run is at work in this folder",
                where=self.path,
                got=holder,
                expected="one writer at a time",
                action="Wait for its end or stop it; run.name=NAME or run.dir=FOLDER starts another run.",
            )

    def _claimed(self) -> bool:
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            with writing(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            self._lock = run_lock.take(self.path)
        except FileNotFoundError:  # another process has just taken its claim back
            return False
        if self._lock is None:
            return False
        self._made = made
        if self.config.exists() or self.summary.exists():
            self.release()
            return False
        return True

    def release(self) -> None:
        """Give the lock back, and remove the folders that were made for it as far as they are still empty."""
        if self._lock is not None:
            run_lock.give_back(self.path, self._lock)
            self._lock = None
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    def create(self, config: Config) -> None:
        """Fill the folder with config.yaml and environment.json; other ranks started from here on find it."""
        with writing(self.checkpoints):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        for left_over in self.checkpoints.glob(".*"):  # of a run that was killed while it saved
            left_over.unlink()
        set_aside_damaged(self.last, self.newest)
        os.environ[SHARED] = str(self.path)
        write_text(self.config, signed_text(to_yaml(config)))
        write_json(self.path / "environment.json", describe())

    @classmethod
    def existing(cls, path: str) -> RunFolder:
        """A run folder by its path, or by experiment for the newest run of it."""
        folder = cls(Path(path))
        if not folder.config.is_file():
            runs = sorted((RUNS / path).glob("*/config.yaml"), key=lambda file: -file.stat().st_mtime)
            if not runs:
                raise OpenBookError(
                    "not a run folder",
                    where=path,
                    got="no config.yaml in it",
                    expected="runs/<experiment>/<name>, or an experiment that has runs",
                )
            folder = cls(runs[0].parent)
        return folder

    @cached_property
    def newest(self) -> Path:
        """The newest of the last checkpoints that is not damaged, from which the run resumes; last.ckpt where there is
        none yet."""
        return newest_sound(self.last)

    def weights(self, config: Config) -> Path:
        """The checkpoint whose weights are the run's result: what its tests, and runs that start from it, use.
        OpenBookError where it is damaged."""
        if config.evaluate.checkpoint != "best":
            return self.newest
        if self.best.is_file() and (found := damage(self.best)):
            raise OpenBookError(
                "the best checkpoint is damaged",
                where=self.best,
                got=found,
                action="evaluate.checkpoint=last uses the last one.",
            )
        return self.best

    def load_config(self, overrides: list[str], training: bool = True) -> Config:
        """The configuration the run was started with, and overrides."""
        check_text(self.config)
        return load_resolved(self.config, overrides, training)

    def read_summary(self) -> dict[str, Any]:
        """The content of summary.json; {} where there is none yet."""
        return read_json(self.summary)

    @staticmethod
    def write_predictions(folder: Path, predictions: list[dict[str, Any]], name: str = "predictions.jsonl") -> None:
        """One JSON line per question; rankings have files of their own (trec.py)."""
        kept = ({key: value for key, value in one.items() if key not in RANKED} for one in predictions)
        write_json_lines(folder / name, kept)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is none. One that is there and cannot be read is named, and counts as
    missing."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        _name_once(path, why_unreadable(error))
        return {}
    if not isinstance(content, dict):
        _name_once(path, "it holds no object")
    return content if isinstance(content, dict) else {}


@cache
def _name_once(path: Path, why: str) -> None:
    say(f"warning: {path} cannot be read ({why}): it counts as missing")
