"""What a run is found and compared by: its tags, and the numbers of its tests under flat names."""

from collections.abc import Mapping
from typing import Any

from openbook.config.schema import Config

NOT_SHOWN = ("intervals", "by_relation", "by_phrasing")  # of a test; report.html has them


def tags(config: Config) -> list[str]:
    """What runs of an experiment are told apart by."""
    return [
        config.objective,
        f"refresh:{config.refresh.mode}",
        f"n_docs:{config.retriever.n_docs}",
        f"seed:{config.seed}",
    ]


def numbers(prefix: str, summary: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a nested summary under prefix/name; groups and intervals are left out."""
    found: dict[str, float] = {}
    for name, value in summary.items():
        if isinstance(value, Mapping):
            found |= {} if name in NOT_SHOWN else numbers(f"{prefix}/{name}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}/{name}"] = value
    return found
