"""What the terminal hears: messages, results, and of every long stage how far it is: a bar on a terminal, in a log a
line now and then."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from openbook.utils.hardware import rank_from_environment

QUIET = "OPENBOOK_QUIET"  # in the environment, so that ranks and child processes are quiet as well
# Of a log: seconds to the first line of a stage, and between lines: a share of the time since the start.
_FIRST, _EVERY, _SHARE, _AT_MOST = 4.0, 10.0, 0.4, 600.0

console = Console(stderr=False, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line to the user, from rank 0 only; where it shall be quiet, only if it is a `warning:`."""
    if not is_quiet() or text.startswith("warning:"):
        say_result(text)


def say_result(text: str) -> None:
    """What the command was started for, which is said in any case, from rank 0 only."""
    if rank_from_environment() == 0:
        console.print(text, markup=False)


def is_quiet() -> bool:
    """Whether only warnings, errors and results are told."""
    return os.environ.get(QUIET, "") not in ("", "0")


@contextmanager
def hushed(quiet: bool) -> Iterator[None]:
    """Only warnings, errors and results inside, also from the processes that are started inside."""
    before = os.environ.get(QUIET)
    if quiet:
        os.environ[QUIET] = "1"
    try:
        yield
    finally:
        if quiet:
            os.environ.pop(QUIET)
            os.environ |= {} if before is None else {QUIET: before}


def duration(seconds: float | None) -> str:
    """For people: '2.3 s', '45 s', '7 min', '3.5 h', and 'unknown time' for None."""
    if seconds is None:
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Pace:
    """When a log hears of progress. Lines come ever more seldom, in proportion to the time since the first stage, so
    that their number grows with its logarithm, until they are ten minutes apart."""

    def __init__(self) -> None:
        self.origin: float | None = None
        self.last = 0.0  # when any stage had a line
        self.inside = 0  # stages under way
        self.known: set[str] = set()  # labels that had a line

    def due(self, label: str, now: float) -> float:
        """When a stage that starts now has its first line: after four seconds, or, where it comes again inside of
        another one (as a validation does), by the pace of the other lines."""
        self.origin = now if self.origin is None else self.origin
        again = self.inside > 0 and label in self.known
        return max(now + _FIRST, self.next(now)) if again else now + _FIRST

    def next(self, now: float) -> float:
        """When the next line is due."""
        return self.last + min(max(_EVERY, _SHARE * (now - (self.origin or now))), _AT_MOST)


class Stage:
    """One long stage. Call it with (done, total), often; a total of 0 is one that is not known. note: more of it, made
    only where it is shown, like ", loss 1.23"."""

    def __init__(self, label: str, unit: str, done: int = 0):
        self.label, self.unit = label, unit
        self.started = time.perf_counter()
        self.since = self.done = done  # done before it began here, which says nothing of the rate

    def __call__(self, done: int, total: int, note: Callable[[], str] = str) -> None:
        self.done = done

    def close(self) -> None:
        """Called once, at its end."""


class _Line(Stage):
    """In a log."""

    def __init__(self, label: str, unit: str, done: int, pace: Pace):
        super().__init__(label, unit, done)
        self.pace, self._first = pace, pace.due(label, self.started)
        self._told = False
        pace.inside += 1

    def __call__(self, done: int, total: int, note: Callable[[], str] = str) -> None:
        self.done, now = done, time.perf_counter()
        if now > (self.pace.next(now) if self._told else self._first):
            self._told, self.pace.last = True, now
            self.pace.known.add(self.label)
            rate = (done - self.since) / (now - self.started)
            of = f" of {total:,}" if total else ""
            left = f", {duration((total - done) / rate)} left" if rate and total > done else ""
            speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            say(f"{self.label}: {done:,}{of} {self.unit} ({speed}/s{left}){note()}")

    def close(self) -> None:
        self.pace.inside -= 1


class _Bar(Stage):
    """On a terminal: one of the bars at its foot, where stages inside of others stand below these."""

    shown: Progress | None = None

    def __init__(self, label: str, unit: str, done: int):
        super().__init__(label, unit, done)
        if _Bar.shown is None:
            left, count = TimeLeft(compact=True), MofNCompleteColumn()
            columns = (TextColumn("{task.description}"), BarColumn(20), count, TextColumn("{task.fields[unit]}"))
            more = TextColumn("{task.fields[note]}")
            _Bar.shown = Progress(
                *columns, TimeElapsedColumn(), left, more, console=console, transient=True, refresh_per_second=4
            )
            _Bar.shown.start()
        self.bars: Progress = _Bar.shown
        self.task: TaskID = self.bars.add_task(label, total=None, unit=unit, note="")
        self._noted = 0.0

    def __call__(self, done: int, total: int, note: Callable[[], str] = str) -> None:
        self.done, now = done, time.perf_counter()
        self.bars.update(self.task, completed=done, total=total or None)
        if now > self._noted + 0.5:  # a loss on a GPU is waited for
            self._noted = now
            self.bars.update(self.task, note=note().removeprefix(", "))

    def close(self) -> None:
        self.bars.remove_task(self.task)
        self.bars.refresh()
        if not self.bars.tasks:
            self.bars.stop()
            _Bar.shown = None


_pace = Pace()


def stage(label: str, unit: str, done: int = 0) -> Stage:
    """A stage that its caller closes; `progress` closes it itself. done: how much of it was done before."""
    if rank_from_environment() != 0 or is_quiet():
        return Stage(label, unit, done)
    return _Bar(label, unit, done) if sys.stdout.isatty() else _Line(label, unit, done, _pace)


@contextmanager
def progress(label: str, unit: str, brief: bool = False, told: bool = False) -> Iterator[Stage]:
    """Gives a function (done, total) to call often; a total of 0 is one that is not known.

    label: like "encoding the corpus"; unit: like "passages"; brief: usually done before there is anything to say, and
    then says nothing; told: the caller says at the end what came of it. A log gets its first line within 5 seconds and
    then ever fewer, each with the rate and the time left.
    """
    one = stage(label, unit)
    try:
        yield one
    finally:
        one.close()
    took = time.perf_counter() - one.started
    if one.done and not told and not (brief and took < _FIRST):  # nothing was done where a cache had it
        say(f"{label}: {one.done:,} {unit} in {took:.1f} s")
