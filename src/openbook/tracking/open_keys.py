"""Settings that a configuration may leave to the data or to an encoder's folder, and the value that says so
(setup/settle.py and setup/encoders.py choose)."""

from collections.abc import Mapping
from typing import Any

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


def agrees(settled: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether {key: value} of a run is what a configuration asks for, where that leaves values to the data."""
    return settled.keys() == asked.keys() and all(
        settled[key] == value or (key in OPEN and value == OPEN[key]) for key, value in asked.items()
    )
