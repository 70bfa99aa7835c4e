"""SIGKILL at any moment, at numbered points of a refresh, and inside the saves of a checkpoint on another file system:
the run that is resumed ends with the weights, optimizer, callbacks, index and curves of the one that was left alone."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from itertools import chain, cycle, islice, zip_longest
from pathlib import Path

from benchmarks.faults.disk import file_system, mounts
from benchmarks.faults.small import small_system
from tests.commands.test_kills import COMMON, WAYS, killed, same

NAME = "kills"
MOMENTS, IN_REFRESH, IN_SAVE = 70, 24, 20  # 20 of the moments with two ranks
QUICK, FULL = 3, MOMENTS + IN_REFRESH + IN_SAVE

AFTER_STEP = "openbook.refresh.manager.RefreshManager", "after_step"
SAVE = "openbook.tracking.checkpoint_io.WholeCheckpoints", "save_checkpoint"
# Of which calls the points are numbered: those of one whole refresh.
STEPS = {"blocking": (3,), "amortized": (4, 5, 6, 7), "rolling": (3, 4, 5), "hot": (3, 4, 5)}
PLANT = """
import os, signal, sys
from pkgutil import resolve_name
owner, calls, point = resolve_name({owner!r}), [], 0
original = getattr(owner, {name!r})
def met(frame, event, argument):
    global point
    point += event in ("call", "c_call")
    if point == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
def counted(*arguments, **named):
    calls.append(1)
    if len(calls) in {which!r}:
        sys.setprofile(met)
    try:
        return original(*arguments, **named)
    finally:
        sys.setprofile(None)
setattr(owner, {name!r}, counted)
from openbook.__main__ import main
code = main({words!r})
print("points:", point)
sys.exit(code)
"""


def tries(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """One kill each, by turns at a moment, in a refresh, in a save."""
    ways = cycle([*WAYS, "two ranks"])
    moments = [
        (f"{way}, kill {number + 1}", partial(resumed, folder / f"{number}-{_named(way)}", way, number))
        for number, way in enumerate(islice(ways, MOMENTS))
    ]
    refreshes, saves = (
        [
            (f"{way}, point {number + 1} of {n} of a {what}", partial(at, folder, way, what, (number + 0.5) / n))
            for number in range(n)
            for way in among
        ]
        for what, among, n in (("refresh", tuple(STEPS), IN_REFRESH // len(STEPS)), ("save", ("blocking",), IN_SAVE))
    )
    turns = chain.from_iterable(zip_longest(moments, refreshes, saves))
    yield from islice((one for one in turns if one is not None), count)


def resumed(folder: Path, way: str, number: int) -> None:
    """Killed at a moment behind its first checkpoint."""
    folder.mkdir(parents=True)
    system, draw = small_system(folder.parent / "system"), random.Random(f"{way}{number}")
    run = folder / "run"
    was_running = killed(system.start("train", *_words(folder.parent, run, way)), run, draw.uniform(0, 0.6))
    done = system.command("resume", str(run))
    assert done.returncode == 0, done.stdout[-3000:]
    assert was_running, "it had ended before it could be killed"
    same(straight(folder.parent, way), run)


def at(folder: Path, way: str, what: str, share: float) -> None:
    """Killed at that share of the calls, of Python and C, that a refresh or the third save makes."""
    own = folder / f"{what}-{way}-{share:.3f}"
    elsewhere = what == "save" and mounts()
    with file_system(own / "disk", 64) if elsewhere else nullcontext(own) as place:
        place.mkdir(parents=True, exist_ok=True)
        run = place / "run"
        process = _planted(folder, run, way, what, max(1, round(share * points_of(folder, way, what))))
        said, _ = process.communicate(timeout=240)
        assert process.returncode == -9, (process.returncode, said[-3000:])
        done = small_system(folder / "system").command("resume", str(run))
        assert done.returncode == 0, done.stdout[-3000:]
        same(straight(folder, way), run)
        left = [path for path in run.rglob(".*") if path.name not in (".locks", ".lock")]
        assert not left, left


@cache
def straight(folder: Path, way: str) -> Path:
    """The run of that way that nothing happened to."""
    run = folder / f"straight-{_named(way)}" / "run"
    run.parent.mkdir(parents=True)
    done = small_system(folder / "system").command("train", *_words(folder, run, way))
    assert done.returncode == 0, done.stdout[-3000:]
    return run


@cache
def points_of(folder: Path, way: str, what: str) -> int:
    """How many calls a refresh or the third save of a run of that way makes."""
    run = folder / f"counted-{_named(way)}-{what}" / "run"
    run.parent.mkdir(parents=True)
    process = _planted(folder, run, way, what, -1)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    return int(said.rpartition("points:")[2])


def _planted(folder: Path, run: Path, way: str, what: str, point: int) -> subprocess.Popen[str]:
    """Started; it kills itself at the point."""
    (owner, name), which = (AFTER_STEP, STEPS[way]) if what == "refresh" else (SAVE, (3,))
    words = ["train", *_words(folder, run, way)]
    script = PLANT.format(owner=owner, name=name, at=point, which=which, words=words)
    return small_system(folder / "system").start_python(script, threads=1)


def _words(folder: Path, run: Path, way: str) -> list[str]:
    """Of the system in the folder."""
    return small_system(folder / "system").words(run, *COMMON, *WAYS[way], "evaluate.before_training=false")


def _named(way: str) -> str:
    return way.replace(" ", "-")


def by_stock_sampler(consumed: int = 5, n: int = 23, batch: int = 4) -> int:
    """How many of an epoch's examples come twice or never where a run stops in its middle and torch's own sampler
    starts again with the seed of the epoch: the negative control."""
    import torch
    from torch.utils.data import RandomSampler

    order = list(RandomSampler(range(n), generator=torch.Generator().manual_seed(0)))
    seen = order[: consumed * batch] + list(RandomSampler(range(n), generator=torch.Generator().manual_seed(0)))
    seen = seen[:n]
    return sum(seen.count(one) != 1 for one in range(n))
