"""A progress bar on a terminal, a line now and then in a log: every long stage says how far it is."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from openbook.utils.hardware import rank_from_environment

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
def progress(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function (done, total) to call often; a total of 0 is one that is not known.

    label: like "encoding the corpus"; unit: like "passages".
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
        spoken = started

        def write(done: int, total: int) -> None:
            nonlocal last, spoken
            last = (done, total)
            if time.perf_counter() - spoken > 10:
                spoken = time.perf_counter()
                of = f" of {total:,}" if total else ""
                say(f"{label}: {done:,}{of} {unit} ({done / (spoken - started):,.0f}/s)")

        yield write
    if last[0]:  # nothing was done where a cache had it
        say(f"{label}: {last[0]:,} {unit} in {time.perf_counter() - started:.1f} s")
