"""What openbook.plan predicts before a run, against what the run then took.

    python -m benchmarks.index.plan [--out FILE] [--quick]

Time and disk on the main job: the plan as `train` makes it, then the index is built, an interval between refreshes is
trained through, and a checkpoint is saved. RAM on synthetic vectors, each case in a process of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.common.figures import Value, finish, median, options
from benchmarks.common.system import System, now, system, train
from benchmarks.index.memory import Case, measured
from openbook.index.vector_store import VectorStore
from openbook.setup.resources.plan import plan_of, timed

Pair = tuple[float, float]
"""Predicted and measured."""

RAM_CASES = (
    ("Flat", "blocking"),
    ("Flat", "amortized"),
    ("Flat", "rolling"),
    ("SQfp16", "blocking"),
    ("IVF256,SQ8", "blocking"),
)


def time_and_disk(quick: bool, every: int) -> dict[str, Pair]:
    """One interval of a run whose refreshes block training; one set of vectors and one checkpoint are kept."""
    on = system(quick, f"refresh.every={every}", "index.keep_vectors=1")
    batch = next(iter(on.questions.train_dataloader()))
    plan = timed(plan_of(on.config, on.manager, on.module), on.config, on.manager, on.module, batch)
    with tempfile.TemporaryDirectory() as folder:
        building = seconds_to_build(on, Path(folder) / "vectors")
        steps = train(on, every)
        on.module.trainer.save_checkpoint(Path(folder) / "last.ckpt", weights_only=False)
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    training = median([step.training for step in steps[1:]])  # the first step starts Lightning up
    refreshing = steps[-1].manager
    return {
        "first_index_seconds": (plan.refresh_seconds, building),
        "refresh_seconds": (plan.refresh_seconds, refreshing),
        "step_seconds": (plan.step_seconds, training),
        "share": (plan.share or 0.0, refreshing / (refreshing + every * training)),
        "disk_bytes": (float(plan.disk), float(disk)),
    }


def seconds_to_build(on: System, store: Path) -> float:
    """The first index, its vectors written to the folder."""
    on.manager.store = VectorStore(store, 1)
    started = now()
    on.manager.ensure(on.retriever, 0)
    return now() - started


def ram(n: int) -> dict[str, Pair]:
    """Bytes at the swap, beside models and libraries."""
    found = {}
    for factory, mode in RAM_CASES:
        case = measured(Case(factory, mode, n))
        found[f"ram.{factory}.{mode}"] = (float(case.planned), float(case.peak))
    return found


def main() -> None:
    asked = options(__doc__).parse_args()
    pairs = time_and_disk(True, 4) if asked.quick else time_and_disk(False, 20)
    pairs |= ram(30_000 if asked.quick else 300_000)
    errors = {name: abs(guess - truth) / truth for name, (guess, truth) in pairs.items()}
    found: dict[str, Value] = {}
    for name, (guess, truth) in pairs.items():
        found |= {f"plan.{name}.predicted": guess, f"plan.{name}.measured": truth, f"plan.{name}.error": errors[name]}
    finish(asked, found | {"plan.worst_error": max(errors.values())})


if __name__ == "__main__":
    main()
