"""`compare`: experiments times seeds. Finds the runs that are there, trains what is missing, makes one table of all."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from openbook.commands.child_process import StoppedError, run_command
from openbook.commands.compare_request import Request
from openbook.config.load import list_experiments
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.reporting.comparison_files import Sweep, write_docs, write_folder
from openbook.reporting.comparison_table import Row, measures, orderings, short_table, shown, sweep_table
from openbook.reporting.published import PAIRS
from openbook.tracking.run_search import FoundRun, Runs, total, unlike, without_effect
from openbook.utils.console import console, say

DOCS = Path("docs")
SWEPT = ("rag_token", "rag_sequence")
"""The objectives whose first experiment is tested with other numbers of passages, as in the paper's figure 3."""


@dataclass
class Job:
    """One experiment with one seed: the configuration wanted, and the run of it as soon as there is one."""

    word: str
    config: Config
    run: FoundRun | None = None

    @property
    def name(self) -> str:
        return f"{self.config.experiment} seed {self.config.seed}"

    @property
    def finished(self) -> bool:
        return self.run is not None and self.run.finished


@dataclass
class Progress:
    """Says which of how many is under way, how long it took so far, and when all should be over."""

    expected: list[float | None]
    started: float = field(default_factory=time.monotonic)
    done: int = 0

    def next(self, what: str) -> None:
        """Before each stage. The rest is expected to take what it was planned to, times how wrong plans were so far."""
        elapsed, left = time.monotonic() - self.started, total(self.expected[self.done :])
        planned = total(self.expected[: self.done])
        if left is not None and planned:
            left *= elapsed / planned
        self.done += 1
        end = f"expected end {datetime.now() + timedelta(seconds=left):%a %H:%M}" if left is not None else "end unknown"
        say(f"{self.done} of {len(self.expected)}: {what}; {duration(elapsed)} so far, {end}")


def compare(words: Sequence[str]) -> None:
    """Train what is missing, one run after another, and write and print the tables.

    An interrupted run of the same configuration is continued. A run that fails does not stop the others: the tables
    say what is missing, and an OpenBookError at the end says which failed. Nothing is trained on a dry run.
    """
    request = Request.read(words)
    runs = Runs(request.runs)
    jobs = [Job(word, config) for word, config in request.configs()]
    _find(jobs, jobs, runs)
    missing, asked = [job for job in jobs if not job.finished], _sweep_of(jobs, request.test_n_docs)
    _announce(request, jobs, missing, asked, runs)
    problems: list[str] = []
    if not request.dry_run:
        problems = _make(request, jobs, missing, asked, runs)
    rows, sweep = _rows(jobs), _swept(jobs, request.test_n_docs)
    _print(rows, sweep)
    if differing := unlike(job.run for job in jobs if job.run and job.finished):
        say(f"warning: the runs of this table come from {differing}")
    if not request.dry_run:
        folder = request.folder
        places = {
            row.experiment: {
                str(job.config.seed): str(job.run.path)
                for job in jobs
                if job.config.experiment == row.experiment and job.run is not None and job.finished
            }
            for row in rows
        }
        write_folder(folder, rows, sweep, request.command, places)
        say(f"tables and plots in {folder}")
        if request.docs:
            for path in write_docs(DOCS, rows, sweep, request.command, list(list_experiments())):
                say(f"wrote {path}")
    if problems:
        raise OpenBookError(
            f"{len(problems)} of {len(missing) + len(asked)} stages failed:\n  " + "\n  ".join(problems) + "\n",
            action="The same command tries only these again.",
        )


def _find(wanted: Sequence[Job], jobs: Sequence[Job], runs: Runs) -> None:
    """Give the wanted ones of all jobs their runs. What starts from another job's encoders is only found where it
    started from the very run that job has."""
    for job in _in_order(wanted):
        origin = _origin(job, jobs)
        if origin is None:
            job.run = runs.find(job.config)
        else:
            job.run = runs.find(job.config, origin.run.path) if origin.run and origin.finished else None


def _sweep_of(jobs: Sequence[Job], numbers: Sequence[int]) -> list[tuple[Job, int]]:
    """(job, passages at test) of every evaluation of the sweep that is not there yet."""
    return [
        (job, number)
        for job in _sweeping(jobs)
        for number in numbers
        if not (job.run and job.run.finished and job.run.evaluation([f"evaluate.n_docs={number}"]))
    ]


def _sweeping(jobs: Sequence[Job]) -> list[Job]:
    firsts = {
        next((job.config.experiment for job in jobs if job.config.objective == objective), "") for objective in SWEPT
    }
    return [job for job in jobs if job.config.experiment in firsts]


def _announce(
    request: Request, jobs: Sequence[Job], missing: Sequence[Job], asked: Sequence[tuple[Job, int]], runs: Runs
) -> None:
    say(
        f"{len(jobs)} runs wanted, {len(jobs) - len(missing)} finished, {len(missing)} to train, "
        f"{len(asked)} to test with other numbers of passages"
    )
    for path, why in runs.unreadable.items():
        say(f"  left out: {path} ({why})")
    for name in dict.fromkeys(job.config.experiment for job in jobs if job.word not in request.experiments):
        say(f"  {name}: added, others start from its encoders")
    for job in missing:
        how = f"continue {job.run.path} at step {job.run.summary.get('steps', 0)}" if job.run else "train"
        how = f"{job.run.path} seems to be under way" if job.run and job.run.perhaps_running else how
        say(f"  {job.name}: {how}, {duration(runs.seconds(job.config, job.run))}")
    for name in dict.fromkeys(job.name for job, _ in asked):
        numbers = [number for job, number in asked if job.name == name]
        say(f"  {name}: test with {', '.join(map(str, numbers))} passages")
    if missing or asked:
        say(
            f"together {duration(total(_expected(missing, asked, runs)))}"
            + (", nothing is done: dry run" if request.dry_run else "")
        )


def _expected(missing: Sequence[Job], asked: Sequence[tuple[Job, int]], runs: Runs) -> list[float | None]:
    return [
        *(runs.seconds(job.config, job.run) for job in missing),
        *(runs.test_seconds(job.config) for job, _ in asked),
    ]


def _make(
    request: Request, jobs: Sequence[Job], missing: Sequence[Job], asked: Sequence[tuple[Job, int]], runs: Runs
) -> list[str]:
    """Train and test what is missing; returns what failed, one text each."""
    problems: list[str] = []
    missing = list(_in_order(missing))
    progress = Progress(_expected(missing, asked, runs))
    here = [word for word in request.args if without_effect(word.partition("=")[0]) and not word.startswith("run.")]

    def attempt(what: str, make: Callable[[], None]) -> None:
        progress.next(what)
        try:
            make()
        except OpenBookError as error:
            say(f"failed: {what}: {error}")
            problems.append(f"{what}: {error}")

    try:
        for job in missing:
            attempt(f"train {job.name}", partial(_train, request, job, jobs, runs))
        for job, number in asked:
            attempt(f"test {job.name} with {number} passages", partial(_test, job, number, here))
    except StoppedError as stopped:
        say(f"stopped by {stopped}; the same command continues where this one was")
        raise SystemExit(128 + stopped.number) from stopped
    return problems


def _train(request: Request, job: Job, jobs: Sequence[Job], runs: Runs) -> None:
    """Train or continue the job's run; raises OpenBookError where that does not end with a finished run."""
    origin = _origin(job, jobs)
    if origin and not origin.finished:
        raise OpenBookError("there is no run to start from", where="retriever.start_from", got=origin.name)
    words = request.training(job.word, job.config, job.run, origin.run if origin else None)
    code = run_command(words)
    runs.forget(job.config.experiment)
    _find([job], jobs, runs)
    if job.finished:
        return
    if job.run is not None:
        job.run.mark_over()
    how = f"ended with code {code}" if code else "left no finished run of this configuration"
    raise OpenBookError(f"`python -m openbook {shlex.join(words)}` {how}")


def _test(job: Job, number: int, here: Sequence[str]) -> None:
    """Answer the test questions with so many passages; raises OpenBookError where no figures come of it."""
    if job.run is None or not job.run.finished:
        raise OpenBookError("there is no finished run to test")
    words = ["evaluate", str(job.run.path), f"evaluate.n_docs={number}", *here]
    code = run_command(words)
    if code or not job.run.evaluation([f"evaluate.n_docs={number}"]):
        raise OpenBookError(f"`python -m openbook {shlex.join(words)}` ended with code {code}")


def _in_order(missing: Sequence[Job]) -> Iterator[Job]:
    """As given, but runs that start from another experiment's encoders after those of that experiment."""
    left = list(missing)
    while left:
        names = {job.config.experiment for job in left}
        ready = [job for job in left if job.config.retriever.start_from not in names - {job.config.experiment}]
        chosen = (ready or left)[0]
        left.remove(chosen)
        yield chosen


def _origin(job: Job, jobs: Sequence[Job]) -> Job | None:
    """The job, of the same seed and among these, whose encoders this one starts from."""
    name = job.config.retriever.start_from
    return next(
        (other for other in jobs if other.config.experiment == name and other.config.seed == job.config.seed), None
    )


def _rows(jobs: Sequence[Job]) -> list[Row]:
    rows: dict[str, Row] = {}
    judged = {name for pair in PAIRS for name in (pair.ahead, pair.behind)}
    for job in jobs:
        row = rows.setdefault(job.config.experiment, Row(job.config.experiment))
        if job.run is None or not job.run.finished:
            row.missing.append(job.config.seed)
        else:
            row.by_seed[job.config.seed] = measures(job.run.evaluation() or {}, job.run.summary.get("seconds", {}))
            if row.experiment in judged:
                row.matches[job.config.seed] = job.run.matches()
    return list(rows.values())


def _swept(jobs: Sequence[Job], numbers: Sequence[int]) -> Sweep:
    sweep: dict[str, dict[int, Row]] = {}
    for job in _sweeping(jobs) if numbers else ():
        by_number = sweep.setdefault(job.config.experiment, {})
        for number in numbers:
            row = by_number.setdefault(number, Row(job.config.experiment))
            test = job.run.evaluation([f"evaluate.n_docs={number}"]) if job.run and job.run.finished else None
            if test is None:
                row.missing.append(job.config.seed)
            else:
                row.by_seed[job.config.seed] = measures(test)
    return sweep


def _print(rows: Sequence[Row], sweep: Sweep) -> None:
    for lines in (short_table(rows), sweep_table(sweep) if sweep else []):
        if lines:
            drawn = Table(*lines[0], box=SIMPLE, pad_edge=False)
            drawn.columns[0].no_wrap = True
            for line in lines[1:]:
                drawn.add_row(*(cell.replace("`", "") for cell in line))
            console.print(drawn, soft_wrap=False)
    for pair, ahead, behind, verdict, difference in orderings(rows):
        ours = f"{shown(ahead, 'exact_match')} against {shown(behind, 'exact_match')}"
        ours += ", paired {:+.3f} ({:+.3f} to {:+.3f})".format(*difference) if difference else ""
        say(f"{verdict}: {pair.what}, {ours}; the paper {pair.published()[0]} against {pair.published()[1]}")


def duration(seconds: float | None) -> str:
    """'time unknown', '45 s', '7 min', '3.5 h'."""
    if seconds is None:
        return "time unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
