"""Finds the run folder that holds a run of a given configuration, finished or to be continued."""

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from openbook.config.load import flat, known_experiments
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.tracking.open_keys import agrees
from openbook.tracking.run_folder import RunFolder, read_json
from openbook.tracking.search.found_run import DECIDING, FoundRun, without_effect


def identity_of(config: Config) -> dict[str, Any]:
    """{key: value} of everything that determines a run's metrics; equal for two runs that should give the same.

    Ranks times batch size is one number: two ranks of 8 questions train like one of 16. A run that starts from another
    is identified by that run's experiment, not by its folder."""
    values = {key: value for key, value in flat(config).items() if not without_effect(key)}
    for key in ("trainer.devices", "trainer.nodes", "trainer.global_batch_size"):
        del values[key]
    values["trainer.batch_size"] = config.trainer.questions_per_pass
    if config.evaluate.checkpoint == "last" and not config.trainer.patience:  # no validation decides what is tested
        values |= dict.fromkeys(DECIDING)
    starts = ("retriever.start_from", "generator.start_from")
    values |= {key: _experiment_of(values.get(key, "")) for key in starts}
    return values


def _experiment_of(start: str) -> str:
    if not start:
        return ""
    folder, known = Path(start), known_experiments()
    with suppress(OpenBookError):
        if (folder / "config.yaml").is_file():
            return RunFolder(folder).load_config([], training=False).experiment
    gone = ["/".join(folder.parts[n:-1]) for n in range(len(folder.parts) - 1)]  # a run that was there
    return next((name for name in [start, *gone] if name in known), folder.parent.name if gone else start)


def unlike(runs: Iterable[FoundRun]) -> str:
    """Differences between runs that are not in their configuration: '2 commits (1a2b3c4d, 5e6f7a8b), 2 corpora (...)'.
    What a run did not record counts as equal; empty where there is no difference."""
    plural = {"commit": "commits", "corpus": "corpora", "test": "files of test questions"}
    plural |= {"train": "files of training questions", "validation": "files of validation questions"}
    values: dict[str, set[str]] = {name: set() for name in plural}
    for name, version in chain.from_iterable(run.made_by() for run in runs):
        values.setdefault(name, set()).add(version)
    short = {name: sorted(one[:8] + "+" * one.endswith("+") for one in known - {""}) for name, known in values.items()}
    return ", ".join(
        f"{len(known)} {plural.get(name, name)} ({', '.join(known)})" for name, known in short.items() if len(known) > 1
    )


@dataclass
class Runs:
    """All runs under a folder of `<experiment>/<name>/`, read once per experiment until `forget` is called."""

    root: Path
    unreadable: dict[Path, str] = field(default_factory=dict, init=False)
    _read: dict[str, list[FoundRun]] = field(default_factory=dict, init=False)

    def of(self, experiment: str) -> list[FoundRun]:
        """The runs of an experiment, newest first, without those that cannot be read, which go into `unreadable`."""
        if experiment not in self._read:
            files = sorted((self.root / experiment).glob("*/config.yaml"), key=lambda file: -file.stat().st_mtime)
            self._read[experiment] = [run for file in files if (run := self._one(file))]
        return self._read[experiment]

    def forget(self, experiment: str) -> None:
        """Read the experiment's runs again the next time, because one was trained."""
        self._read.pop(experiment, None)

    def find(self, config: Config, origin: Path | None = None) -> FoundRun | None:
        """The newest finished run of this configuration, else the unfinished one with the most steps.

        origin: the run whose encoders it must have started from, identified by experiment and name, so that runs may be
        moved together; None: any.
        """
        values = identity_of(config)
        same = [
            run
            for run in self.of(config.experiment)
            if agrees(run.values, values, run.left_open)
            and (origin is None or Path(run.config.retriever.start_from).parts[-2:] == origin.parts[-2:])
        ]
        return max(
            same, key=lambda run: (run.finished, 0 if run.finished else run.summary.get("steps", 0)), default=None
        )

    def seconds(self, config: Config, found: FoundRun | None = None) -> float | None:
        """Expected seconds of the run, or of what is left of `found`: the median over similar finished runs, with
        training and refreshing in proportion to the steps; None where there are none, or where the steps are left to
        the data."""
        if not config.trainer.max_steps:
            return None
        done = found.summary.get("steps", 0) if found else 0
        questions = (config.trainer.max_steps - done) * _questions_per_step(config)
        times = [_training_seconds(run, questions) for run in self._like(config)]
        return median(times) if times else None

    def test_seconds(self, config: Config) -> float | None:
        """Expected seconds of a test alone: setting up, encoding the corpus once, answering."""
        times = [_test_seconds(run) for run in self._like(config)]
        return median(times) if times else None

    def _like(self, config: Config) -> list[FoundRun]:
        """Finished runs of the same experiment with the same number of steps, else of the same experiment, else any."""
        own = [run for run in self.of(config.experiment) if run.finished]
        like = [run for run in own if _size(run.config) == _size(config)]
        others = (run for folder in sorted(self.root.glob("*/")) for run in self.of(folder.name) if run.finished)
        return [run for run in like or own or list(others) if run.summary.get("seconds")]

    def _one(self, file: Path) -> FoundRun | None:
        try:
            config = RunFolder(file.parent).load_config([], training=False)
            return FoundRun(file.parent, config, identity_of(config), read_json(file.parent / "summary.json"))
        except (OpenBookError, OSError) as error:
            self.unreadable[file.parent] = str(error)
            return None


def _size(config: Config) -> tuple[int, int]:
    return config.trainer.max_steps, _questions_per_step(config)


def _questions_per_step(config: Config) -> int:
    return config.trainer.questions_per_pass * config.trainer.accumulate


def _training_seconds(run: FoundRun, questions: int) -> float:
    seconds = run.summary["seconds"]
    fraction = questions / math.prod(_size(run.config))
    training = seconds.get("train", 0.0) + seconds.get("refresh", 0.0)
    return float(seconds.get("setup", 0.0) + seconds.get("evaluate", 0.0) + training * fraction)


def _test_seconds(run: FoundRun) -> float:
    seconds = run.summary["seconds"]
    tests = 2 if run.summary.get("before_training") else 1
    encoded = max(run.summary.get("index", {}).get("generation", 1), 1)
    return float(seconds.get("setup", 0) + seconds.get("evaluate", 0) / tests + seconds.get("refresh", 0) / encoded)


def total(seconds: Iterable[float | None]) -> float | None:
    """The sum, or None if one of them is unknown."""
    values = list(seconds)
    return None if None in values else float(sum(value for value in values if value is not None))
