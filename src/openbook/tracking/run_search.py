"""Finds the run folder that holds a run of a given configuration, finished or to be continued."""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from openbook.config.load import flat, known_experiments
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.metrics.summary import HELD_OUT
from openbook.tracking.open_keys import agrees
from openbook.tracking.resuming import among
from openbook.tracking.run_folder import RunFolder, read_json
from openbook.utils.atomic import write_json
from openbook.utils.json_lines import lines_of

# Keys (or sections, ending with a dot) in which two runs may differ and still give the same metrics.
WITHOUT_EFFECT = (
    # what a run is called
    *("experiment", "shows", "run.", "wandb.", "data.cache"),
    "retriever.override_folder",  # how folders are read is in the other keys
    # where it is computed
    *("trainer.accelerator", "data.workers", "index.device", "index.gpu_temp_memory", "index.keep_vectors"),
    *("trainer.tokens_per_pass", "trainer.checkpointing", "retriever.tokens_per_backward", "trainer.keep_checkpoints"),
    # how closely it is monitored
    *("trainer.validate_every", "trainer.checkpoint_every", "trainer.log_every", "evaluate.batch_size"),
    *("evaluate.validation_questions", "evaluate.before_training", "evaluate.bootstrap"),
)
# A run without a final status whose files changed less than so many seconds ago may still be running.
RECENT = 600.0


def without_effect(key: str) -> bool:
    """Whether a configuration key has no influence on the metrics."""
    return among(key, WITHOUT_EFFECT)


def identity_of(config: Config) -> dict[str, Any]:
    """{key: value} of everything that determines a run's metrics; equal for two runs that should give the same.

    Ranks times batch size is one number: two ranks of 8 questions train like one of 16. A run that starts from another
    run's encoders is identified by that run's experiment, not by its folder.
    """
    values = {key: value for key, value in flat(config).items() if not without_effect(key)}
    values["trainer.batch_size"] *= values.pop("trainer.devices") * values.pop("trainer.nodes")
    values["retriever.start_from"] = _experiment_of(values.get("retriever.start_from", ""))
    return values


def _experiment_of(start: str) -> str:
    folder, known = Path(start), known_experiments()
    with suppress(OpenBookError):
        if start and (folder / "config.yaml").is_file():
            return RunFolder(folder).load_config([], training=False).experiment
    gone = ["/".join(folder.parts[n:-1]) for n in range(len(folder.parts) - 1)]  # a run that was there
    return next((name for name in [start, *gone] if name in known), folder.parent.name if gone else start)


@dataclass
class FoundRun:
    """A run folder with its configuration and summary. values: its identity, with defaults for keys it lacks."""

    path: Path
    config: Config
    values: dict[str, Any]
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it completed, including the test."""
        return self.summary.get("status") == "finished"

    @property
    def age(self) -> float:
        """Seconds since the last write to the folder."""
        files = [self.path, *self.path.glob("*"), *self.path.glob("checkpoints/*")]
        return time.time() - max(file.stat().st_mtime for file in files if file.exists())

    def mark_over(self) -> None:
        """Record that its process ended early without recording that itself."""
        if self.summary.get("status", "running") == "running":
            self.summary = {**self.summary, "status": "interrupted"}
            write_json(self.path / "summary.json", self.summary)

    @property
    def perhaps_running(self) -> bool:
        """Neither finished nor cleanly interrupted, and written to recently."""
        return self.summary.get("status", "running") == "running" and self.age < RECENT

    def evaluation(self, overrides: Sequence[str] = ()) -> dict[str, Any] | None:
        """The test metrics of `tested` with these overrides; None where there are none."""
        tested = self.tested(overrides)
        return dict(tested[1]["test"]) if tested else None

    def tested(self, overrides: Sequence[str] = ()) -> tuple[Path, dict[str, Any]] | None:
        """(folder, summary) of the newest evaluation with exactly these overrides (except those without effect), or of
        the run itself if the overrides change nothing; None where there is none with metrics."""
        requested = self._effective(overrides)
        for number in sorted((int(p.name) for p in self.path.glob("evaluations/*") if p.name.isdigit()), reverse=True):
            folder = self.path / "evaluations" / str(number)
            content = read_json(folder / "summary.json")
            if self._effective(content.get("overrides", ["?"])) == requested and content.get("test"):
                return folder, content
        return (self.path, self.summary) if self.summary.get("test") and not requested else None

    def _effective(self, overrides: Sequence[str]) -> set[str]:
        return {override for override in overrides if not changes_nothing(override, self.values)}

    def matches(self) -> dict[str, float]:
        """{question id: exact match} behind the metrics of `evaluation`, without questions in unseen phrasings unless
        there are no others; {} where predictions.jsonl is missing or does not have them."""
        tested = self.tested()
        try:
            predictions = list(map(json.loads, lines_of(tested[0] / "predictions.jsonl") if tested else []))
            counted = [one for one in predictions if one["phrasing"] != HELD_OUT] or predictions
            return {one["id"]: float(one["exact_match"]) for one in counted}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def made_by(self) -> Iterator[tuple[str, str]]:
        """What code and data its metrics come from: the name (`commit`, `corpus`, `test`) and its version, "" where it
        is not recorded."""
        yield "commit", str(read_json(self.path / "environment.json").get("commit", ""))
        for content in (self.summary, (self.tested() or (None, {}))[1]):
            yield from ((name, str(fingerprint)) for name, fingerprint in content.get("data", {}).items())


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


def changes_nothing(override: str, values: Mapping[str, Any]) -> bool:
    """Whether an override leaves the metrics of a run of these values (`identity_of`) unchanged."""
    key, _, text = override.partition("=")
    n_docs = values["evaluate.n_docs"] or values["retriever.n_docs"]
    same = {"evaluate.n_docs": str(n_docs), "data.corpus": values["data.corpus"]}
    return without_effect(key) or text == same.get(key)


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
            if agrees(run.values, values)
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
    return config.trainer.batch_size * config.trainer.accumulate * config.trainer.world_size


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
