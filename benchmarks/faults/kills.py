"""SIGKILL at any moment, again and again: the run that is resumed ends with the weights, optimizer and curves of the
one that was left alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice, product
from pathlib import Path

from benchmarks.faults.small import small_system
from tests.commands.test_kills import COMMON, WAYS, killed, same

NAME = "kills"
QUICK, FULL = 2, 70


def tries(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """One kill each, behind another checkpoint and moment."""
    for number, way in islice(product(range(count), WAYS), count):
        yield f"{way}, kill {number + 1}", partial(resumed, folder / f"{number}-{way}".replace(" ", "-"), way, number)


def resumed(folder: Path, way: str, number: int) -> None:
    folder.mkdir(parents=True)
    system, draw = small_system(folder.parent / "system"), random.Random(f"{way}{number}")
    run = folder / "run"
    command = ("train", *system.words(run, *COMMON, *WAYS[way], "evaluate.before_training=false"))
    was_running = killed(system.start(*command), run, draw.uniform(0, 0.6))
    done = system.command("resume", str(run))
    assert done.returncode == 0, done.stdout[-3000:]
    assert was_running, "it had ended before it could be killed"
    same(straight(folder.parent, way), run)


@cache
def straight(folder: Path, way: str) -> Path:
    """The run of that way that nothing happened to."""
    run = folder / f"straight-{way}".replace(" ", "-") / "run"
    run.parent.mkdir(parents=True)
    system = small_system(folder / "system")
    done = system.command("train", *system.words(run, *COMMON, *WAYS[way], "evaluate.before_training=false"))
    assert done.returncode == 0, done.stdout[-3000:]
    return run


def by_stock_sampler(consumed: int = 5, n: int = 23, batch: int = 4) -> int:
    """How many of an epoch's examples come twice or never where a run stops in its middle and torch's own sampler
    starts again with the seed of the epoch: the negative control."""
    import torch
    from torch.utils.data import RandomSampler

    order = list(RandomSampler(range(n), generator=torch.Generator().manual_seed(0)))
    seen = order[: consumed * batch] + list(RandomSampler(range(n), generator=torch.Generator().manual_seed(0)))
    seen = seen[:n]
    return sum(seen.count(one) != 1 for one in range(n))
