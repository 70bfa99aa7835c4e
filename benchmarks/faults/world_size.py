"""A run goes on with another number of ranks, in the middle of an epoch and of a refresh: each example once per epoch,
in the global batches of the run that was left alone, and with its losses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from benchmarks.common.processes import ends_of
from benchmarks.faults.small import small_system, start_ranks
from openbook.data.sampler import GlobalBatchSampler

NAME = "another world size"
QUICK, FULL = 2, 9
N_TRAIN, BATCH = 23, 8
STOPS, ENDS = 4, 7  # steps: three to an epoch, so that it stops in the middle of the second; a refresh takes 3 to 6

# (devices, nodes) before and after.
CHANGES = {"2 to 1": ((2, 1), (1, 1)), "1 to 2": ((1, 1), (2, 1)), "4 to 3": ((2, 2), (1, 3))}
MODES = {
    "amortized": ("refresh.mode=amortized", "refresh.every=3", "refresh.spread=3"),
    "rolling": ("refresh.mode=rolling", "refresh.every=3"),
    "blocking": ("refresh.every=3",),
}
COMMON = ("optim.final_lr=1", "evaluate.before_training=false", "evaluate.bootstrap=0", "trainer.validate_every=3")
RECORD = """
import json
from openbook.training.rag_module import RagModule
step = RagModule.training_step
def recorded(self, batch, number):
    ids = [one.id for one, weight in zip(batch.examples, batch.weight.tolist()) if weight]
    with open({seen!r}, "a") as file:
        file.write(json.dumps([self.global_step, ids]) + "\\n")
    return step(self, batch, number)
RagModule.training_step = recorded
"""


def tries(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    order = [(mode, change) for mode in MODES for change in reversed(CHANGES)]
    for mode, change in islice(order, count):
        yield f"{change}, {mode}", partial(changed, folder / f"{mode}-{change.replace(' ', '-')}", mode, change)


def changed(folder: Path, mode: str, change: str) -> None:
    folder.mkdir(parents=True)
    seen, before, after = str(folder / "seen"), *CHANGES[change]
    share = BATCH // (before[0] * before[1])
    words = small_system(folder.parent / "system").words(
        folder / "run", *COMMON, *MODES[mode], f"trainer.batch_size={share}", *_ranks(before)
    )
    _run(before, ["train", *words, f"trainer.max_steps={STOPS}"], seen)
    _run(after, ["resume", str(folder / "run"), f"trainer.max_steps={ENDS}", *_ranks(after)], seen)

    batches: dict[int, list[str]] = {}
    for line in Path(seen).read_text().splitlines():
        step, ids = json.loads(line)
        batches.setdefault(step, []).extend(ids)
    found = [sorted(batches[step]) for step in sorted(batches)]
    assert found == expected()[:ENDS], found
    for epoch in (found[:3], found[3:6]):
        ids = [one for batch in epoch for one in batch]
        assert len(ids) == len(set(ids)) == N_TRAIN

    (folder / "alone").mkdir()
    alone = small_system(folder.parent / "system").words(folder / "alone" / "run", *COMMON, *MODES[mode])
    _run((1, 1), ["train", *alone, f"trainer.batch_size={BATCH}", f"trainer.max_steps={ENDS}"], str(folder / "rest"))
    losses, straight = _losses(folder / "run"), _losses(folder / "alone" / "run")
    assert len(losses) == len(straight) == ENDS
    assert all(abs(one - other) < 2e-3 * abs(other) for one, other in zip(losses, straight, strict=True)), (
        losses,
        straight,
    )


def expected() -> list[list[str]]:
    """The ids of each global batch, sorted, of the first three epochs: what one rank reads."""
    batches = []
    for epoch in range(3):
        for plan in GlobalBatchSampler(N_TRAIN, BATCH, consumed=epoch * N_TRAIN):
            batches.append(sorted(f"q{index}" for index in plan.indices if index is not None))
    return batches


def _ranks(places: tuple[int, int]) -> list[str]:
    return [f"trainer.devices={places[0]}", f"trainer.nodes={places[1]}"]


def _run(places: tuple[int, int], words: list[str], seen: str) -> None:
    ends = ends_of(start_ranks(places[0] * places[1], words, RECORD.format(seen=seen), per_node=places[0]), 400)
    assert all(code == 0 for code, _ in ends), "\n".join(said[-2500:] for _, said in ends)


def _losses(run: Path) -> list[float]:
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        return [float(row["train/nll"]) for row in csv.DictReader(file) if row["train/nll"]]
