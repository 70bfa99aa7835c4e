"""A run folder as a comparison sees it: its configuration, its metrics, and whether a process is at work in it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openbook.config.schema import Config
from openbook.metrics.summary import HELD_OUT
from openbook.tracking import run_lock
from openbook.tracking.resuming import among
from openbook.tracking.run_folder import read_json
from openbook.utils.atomic import write_json
from openbook.utils.console import say
from openbook.utils.json_lines import read_json_lines

# Keys (or sections, ending with a dot) in which two runs may differ and still give the same metrics.
WITHOUT_EFFECT = (
    # what a run is called, and how its data are built
    *("experiment", "shows", "run.", "wandb.", "serve.", "data.cache", "data.build_processes", "data.verify"),
    "retriever.override_folder",  # how folders are read is in the other keys
    # where it is computed
    *("trainer.accelerator", "data.workers", "index.device", "index.gpu_temp_memory", "index.keep_vectors"),
    *("trainer.tokens_per_pass", "trainer.checkpointing", "retriever.tokens_per_backward", "trainer.keep_checkpoints"),
    *("trainer.timeout", "trainer.tensorboard"),
    # how closely it is monitored
    *("trainer.checkpoint_every", "trainer.log_every", "evaluate.batch_size"),
    *("evaluate.before_training", "evaluate.bootstrap"),
)
# Keys that decide which weights are tested, but where the last ones are whatever a validation says.
DECIDING = ("trainer.validate_every", "evaluate.validation_questions")
# A run without a final status whose files changed less than so many seconds ago may still be running.
RECENT = 600.0


def without_effect(key: str) -> bool:
    """Whether a configuration key has no influence on the metrics."""
    return among(key, WITHOUT_EFFECT)


@dataclass
class FoundRun:
    """A run folder with its configuration and summary. values: its identity, with defaults for keys it lacks."""

    path: Path
    config: Config
    values: dict[str, Any]
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def left_open(self) -> list[str] | None:
        """Keys that its configuration left to the data; None where it did not record them."""
        return self.summary.get("left_open")

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
        """A process is at work in it; of a run without a lock, as older ones are, that it is neither finished nor
        cleanly interrupted, and was written to recently."""
        unlocked = not (self.path / run_lock.NAME).exists()
        recent = unlocked and self.summary.get("status", "running") == "running" and self.age < RECENT
        return recent or bool(run_lock.holder(self.path))

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
        path = (tested[0] if tested else self.path) / "predictions.jsonl"
        try:
            predictions, bad = read_json_lines(path) if tested else ([], [])
            if bad:
                say(f"warning: {len(bad)} lines of {path} cannot be read, the first is line {bad[0]}: no paired test")
                return {}
            counted = [one for one in predictions if one["phrasing"] != HELD_OUT] or predictions
            return {one["id"]: float(one["exact_match"]) for one in counted}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            say(f"warning: {path} cannot be read ({error!r}): no paired test")
            return {}

    def made_by(self) -> Iterator[tuple[str, str]]:
        """What code and data its metrics come from: the name (`commit`, `corpus`, `test`) and its version, "" where it
        is not recorded."""
        yield "commit", str(read_json(self.path / "environment.json").get("commit", ""))
        for content in (self.summary, (self.tested() or (None, {}))[1]):
            yield from ((name, str(fingerprint)) for name, fingerprint in content.get("data", {}).items())


def changes_nothing(override: str, values: Mapping[str, Any]) -> bool:
    """Whether an override leaves the metrics of a run of these values (`identity_of`) unchanged."""
    key, _, text = override.partition("=")
    n_docs = values["evaluate.n_docs"] or values["retriever.n_docs"]
    same = {"evaluate.n_docs": str(n_docs), "data.corpus": values["data.corpus"]}
    return without_effect(key) or text == same.get(key)
