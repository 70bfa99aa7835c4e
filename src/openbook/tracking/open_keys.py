"""Settings that a configuration may leave to the data or to an encoder's folder, and the value that says so
(setup/settle.py and setup/encoders.py choose)."""

from collections.abc import Collection, Mapping
from typing import Any

from openbook.config.checks import value_of
from openbook.config.schema import Config

OPEN: Mapping[str, Any] = {
    "data.max_passage_tokens": 0,
    "data.max_context_tokens": 0,
    **dict.fromkeys(("retriever.pooling", "retriever.normalize", "retriever.passage_layout"), "auto"),
    **dict.fromkeys(("retriever.question_prefix", "retriever.passage_prefix"), "auto"),
    "retriever.dim": 0,
    "retriever.temperature": 0.0,
    "retriever.teacher": "auto",
    "refresh.every": "auto",
    "warmup.steps": -1,
    "warmup.spans": -1.0,
    "optim.lr": 0.0,
    "optim.lr_generator": 0.0,
    "trainer.max_steps": 0,
    "trainer.validate_every": 0,
    "trainer.checkpoint_every": 0,
    "evaluate.checkpoint": "auto",
}


# Those that an encoder's folder settles, always in the same way.
_OF_FOLDERS = frozenset(key for key in OPEN if key.startswith("retriever.")) - {
    "retriever.temperature",
    "retriever.teacher",
}


def left_open(config: Config) -> list[str]:
    """The keys that the configuration leaves open."""
    return [key for key, value in OPEN.items() if value_of(config, key) == value]


def agrees(settled: Mapping[str, Any], asked: Mapping[str, Any], opened: Collection[str] | None) -> bool:
    """Whether {key: value} of a run is what a configuration asks for, where that leaves values to the data.

    opened: the keys that the run left open too: a value that somebody chose is not what the data would have. None where
    it did not record them, as older runs: then only what a folder settles may be open. A settled None matches anything:
    it had no effect."""
    known = _OF_FOLDERS if opened is None else opened
    return settled.keys() == asked.keys() and all(
        settled[key] in (value, None) or (key in known and value == OPEN[key]) for key, value in asked.items()
    )
