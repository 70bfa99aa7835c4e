"""A progress bar on a terminal, a line now and then in a log: every long stage says how far it is."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from openbook.utils.hardware import rank_from_environment

_FIRST, _EVERY = 4.0, 10.0  # seconds to the first line of a log, and between lines

console = Console(stderr=False, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line to the user, from rank 0 only."""
    if rank_from_environment() == 0:
        console.print(text, markup=False)


def duration(seconds: float | None) -> str:
    """For people: '2.3 s', '45 s', '7 min', '3.5 h', and 'unknown time' for None."""
    if seconds is None:
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def progress(label: str, unit: str, brief: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Gives a function (done, total) to call often; a total of 0 is one that is not known.

    label: like "encoding the corpus"; unit: like "passages"; brief: usually done before there is anything to say, and
    then says nothing. A log gets its first line within 5 seconds, then one every 10, with the rate and the time left.
    """
    if rank_from_environment() != 0:
        yield lambda done, total: None
        return
    started = time.perf_counter()
    last: tuple[int, int] = (0, 0)
    if sys.stdout.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(label, total=None)

            def show(done: int, total: int) -> None:
                nonlocal last
                last = (done, total)
                bar.update(task, completed=done, total=total or None)

            yield show
    else:
        due = started + _FIRST

        def write(done: int, total: int) -> None:
            nonlocal last, due
            last, now = (done, total), time.perf_counter()
            if now > due:
                due, rate = now + _EVERY, done / (now - started)
                of = f" of {total:,}" if total else ""
                left = f", {duration((total - done) / rate)} left" if rate and total > done else ""
                say(f"{label}: {done:,}{of} {unit} ({rate:,.0f}/s{left})")

        yield write
    took = time.perf_counter() - started
    if last[0] and not (brief and took < _FIRST):  # nothing was done where a cache had it
        say(f"{label}: {last[0]:,} {unit} in {took:.1f} s")
