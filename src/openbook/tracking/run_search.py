"""Finding runs again: which run folder holds a run of this configuration, finished or to be continued."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from openbook.config.load import flat, load_resolved
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.metrics.summary import HELD_OUT
from openbook.tracking.run_folder import read_json
from openbook.utils.atomic import write_json

NAMES_ONLY = ("experiment", "shows", "run.", "wandb.", "data.cache")
PLACES_ONLY = (
    "trainer.accelerator",
    "data.workers",
    "index.device",
    "index.gpu_temp_memory",
    "index.keep_vectors",
    "trainer.tokens_per_pass",
    "trainer.checkpointing",
    "retriever.tokens_per_backward",
)
WATCHES_ONLY = (
    "trainer.validate_every",
    "trainer.checkpoint_every",
    "trainer.log_every",
    "evaluate.batch_size",
    "evaluate.validation_questions",
    "evaluate.before_training",
    "evaluate.bootstrap",
)
WITHOUT_EFFECT = (*NAMES_ONLY, *PLACES_ONLY, *WATCHES_ONLY)
"""Keys (or sections, with a dot) by which two runs may differ and still give the same figures: what they are called,
where they are computed, how closely they are watched."""
STILL_WARM = 600.0
"""A run that is not said to be over and whose files changed so many seconds ago may be running right now."""


def without_effect(key: str) -> bool:
    """Whether a key of the configuration leaves the figures as they are."""
    return any(key == other or (other.endswith(".") and key.startswith(other)) for other in WITHOUT_EFFECT)


def identity_of(config: Config) -> dict[str, Any]:
    """{key: value} of everything that decides a run's figures; equal for two runs that should give the same.

    Ranks times batch is one number: two ranks of 8 questions train as one of 16. A run that starts from another run's
    encoders is known by that run's experiment, whichever of its folders it was.
    """
    values = {key: value for key, value in flat(config).items() if not without_effect(key)}
    ranks = values.pop("trainer.devices") * values.pop("trainer.nodes")
    values["trainer.batch_size"] *= ranks
    values["retriever.start_from"] = _experiment_of(values.get("retriever.start_from", ""))
    return values


def _experiment_of(start: str) -> str:
    folder = Path(start)
    if not start or not (folder / "config.yaml").is_file():  # a name, or the folder of a run that is gone
        return folder.parent.name if len(folder.parts) > 1 else start
    try:
        return load_resolved(folder / "config.yaml", training=False).experiment
    except OpenBookError:
        return folder.parent.name


@dataclass
class FoundRun:
    """A run folder with what it says of itself; values: its identity, defaults filled in for keys it does not know."""

    path: Path
    config: Config
    values: dict[str, Any]
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it came to its end, the test included."""
        return self.summary.get("status") == "finished"

    @property
    def age(self) -> float:
        """Seconds since something in the folder was last written."""
        files = [self.path, *self.path.glob("*"), *self.path.glob("checkpoints/*")]
        return time.time() - max(file.stat().st_mtime for file in files if file.exists())

    def mark_over(self) -> None:
        """Its process is known to have ended before its time, and could not say so itself."""
        if self.summary.get("status", "running") == "running":
            self.summary = {**self.summary, "status": "interrupted"}
            write_json(self.path / "summary.json", self.summary)

    @property
    def perhaps_running(self) -> bool:
        """Not over, not interrupted in order, and written to a moment ago."""
        return self.summary.get("status", "running") == "running" and self.age < STILL_WARM

    def evaluation(self, overrides: Sequence[str] = ()) -> dict[str, Any] | None:
        """The test figures of `tested` with these overrides; None where there are none."""
        found = self.tested(overrides)
        return dict(found[1]["test"]) if found else None

    def tested(self, overrides: Sequence[str] = ()) -> tuple[Path, dict[str, Any]] | None:
        """(folder, summary) of the newest evaluation with exactly these overrides (those without effect aside), or of
        the run itself where the overrides change nothing; None where there is none with figures."""
        wanted = {override for override in overrides if not changes_nothing(override, self.values)}
        for number in sorted((int(p.name) for p in self.path.glob("evaluations/*") if p.name.isdigit()), reverse=True):
            folder = self.path / "evaluations" / str(number)
            content = read_json(folder / "summary.json")
            given = {text for text in content.get("overrides", ["?"]) if not changes_nothing(text, self.values)}
            if given == wanted and content.get("test"):
                return folder, content
        return (self.path, self.summary) if self.summary.get("test") and not wanted else None

    def matches(self) -> dict[str, float]:
        """{question id: exact match} behind the figures of `evaluation`, questions in held-out phrasings aside unless
        there are no others; {} where predictions.jsonl is missing or does not say."""
        found = self.tested()
        try:
            lines = (found[0] / "predictions.jsonl").read_text(encoding="utf-8").splitlines() if found else []
            asked = [json.loads(line) for line in lines]
            counted = [one for one in asked if one["phrasing"] != HELD_OUT] or asked
            return {one["id"]: float(one["exact_match"]) for one in counted}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    @property
    def made_by(self) -> dict[str, set[str]]:
        """What code and which data its figures come from, as far as the folder says: `commit`, `corpus`, `test`."""
        made = {"commit": {str(read_json(self.path / "environment.json").get("commit", ""))}}
        for content in (self.summary, (self.tested() or (None, {}))[1]):
            for name, fingerprint in content.get("data", {}).items():
                made.setdefault(name, set()).add(str(fingerprint))
        return {name: known for name, values in made.items() if (known := values - {""})}


def unlike(runs: Iterable[FoundRun]) -> str:
    """In what these runs differ that no key of theirs says: '2 commits (1a2b3c4d, 5e6f7a8b), 2 corpora (...)'. What a
    run does not know of itself counts as equal; empty where there is no difference."""
    plural = {"commit": "commits", "corpus": "corpora", "test": "files of test questions"}
    values: dict[str, set[str]] = {name: set() for name in plural}
    for run in runs:
        for name, known in run.made_by.items():
            values.setdefault(name, set()).update(known)
    return ", ".join(
        f"{len(found)} {plural.get(name, name)} ({', '.join(sorted(_short(one) for one in found))})"
        for name, found in values.items()
        if len(found) > 1
    )


def _short(value: str) -> str:
    return value[:8] + "+" * value.endswith("+")


def changes_nothing(override: str, values: Mapping[str, Any]) -> bool:
    """Whether an override leaves the figures of a run of these values (`identity_of`) as they are."""
    key, _, text = override.partition("=")
    if key == "evaluate.n_docs" and text == str(values["evaluate.n_docs"] or values["retriever.n_docs"]):
        return True
    return without_effect(key)


class Runs:
    """All runs under a folder of `<experiment>/<name>/`, read once per experiment until `forget` is called."""

    def __init__(self, root: Path):
        self.root = root
        self.unreadable: dict[Path, str] = {}
        self._read: dict[str, list[FoundRun]] = {}

    def of(self, experiment: str) -> list[FoundRun]:
        """The runs of an experiment, newest first. One that cannot be read is left out and kept in `unreadable`."""
        if experiment not in self._read:
            files = sorted((self.root / experiment).glob("*/config.yaml"), key=lambda file: -file.stat().st_mtime)
            self._read[experiment] = [run for file in files if (run := self._one(file)) is not None]
        return self._read[experiment]

    def forget(self, experiment: str) -> None:
        """Read the experiment's runs again the next time: one was trained."""
        self._read.pop(experiment, None)

    def find(self, wanted: Config, origin: Path | None = None) -> FoundRun | None:
        """The newest finished run of this configuration, else the unfinished one that got furthest.

        origin: the run whose encoders it must have started from, known by its experiment and its name, so that runs may
        be moved together; None: any.
        """
        values = identity_of(wanted)
        same = [run for run in self.of(wanted.experiment) if run.values == values]
        if origin is not None:
            same = [run for run in same if Path(run.config.retriever.start_from).parts[-2:] == origin.parts[-2:]]
        over = [run for run in same if run.finished]
        return over[0] if over else max(same, key=lambda run: run.summary.get("steps", 0), default=None)

    def seconds(self, wanted: Config, found: FoundRun | None = None) -> float | None:
        """How long the run would take, or what is left of `found`; None where nothing comparable has finished.

        The median over finished runs like it, training and refreshing in proportion to the steps.
        """
        done = found.summary.get("steps", 0) if found else 0
        questions = (wanted.trainer.max_steps - done) * _questions_per_step(wanted)
        times = [_training_seconds(run, questions) for run in self._like(wanted)]
        return median(times) if times else None

    def test_seconds(self, wanted: Config) -> float | None:
        """How long a test alone takes: setting up, encoding the corpus once, answering."""
        times = [_test_seconds(run) for run in self._like(wanted)]
        return median(times) if times else None

    def _like(self, wanted: Config) -> list[FoundRun]:
        """Finished runs of the same experiment at the same number of steps, else of the same experiment, else any."""
        steps, batch = wanted.trainer.max_steps, _questions_per_step(wanted)
        own = [run for run in self.of(wanted.experiment) if run.finished]
        like = [r for r in own if (r.config.trainer.max_steps, _questions_per_step(r.config)) == (steps, batch)]
        others = (run for folder in sorted(self.root.glob("*/")) for run in self.of(folder.name) if run.finished)
        return [run for run in like or own or list(others) if run.summary.get("seconds")]

    def _one(self, file: Path) -> FoundRun | None:
        try:
            config = load_resolved(file, training=False)
            values = identity_of(config)
        except (OpenBookError, OSError) as error:
            self.unreadable[file.parent] = str(error)
            return None
        return FoundRun(file.parent, config, values, read_json(file.parent / "summary.json"))


def _questions_per_step(config: Config) -> int:
    return config.trainer.batch_size * config.trainer.accumulate * config.trainer.world_size


def _training_seconds(run: FoundRun, questions: int) -> float:
    seconds = run.summary["seconds"]
    share = questions / (run.config.trainer.max_steps * _questions_per_step(run.config))
    training = seconds.get("train", 0.0) + seconds.get("refresh", 0.0)
    return float(seconds.get("setup", 0.0) + seconds.get("evaluate", 0.0) + training * share)


def _test_seconds(run: FoundRun) -> float:
    seconds = run.summary["seconds"]
    tests = 2 if run.summary.get("before_training") else 1
    encoded = max(run.summary.get("index", {}).get("generation", 1), 1)
    return float(seconds.get("setup", 0) + seconds.get("evaluate", 0) / tests + seconds.get("refresh", 0) / encoded)


def total(seconds: Iterable[float | None]) -> float | None:
    """The sum, or None where one of them is not known."""
    known = list(seconds)
    return None if None in known else float(sum(value for value in known if value is not None))
