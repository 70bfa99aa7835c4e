"""`compare`: experiments times seeds. Finds existing runs, trains the missing ones and tabulates all of them."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial

from rich.box import SIMPLE
from rich.table import Column, Table

from openbook.commands.child_process import run_command
from openbook.commands.comparison.jobs import (
    Job,
    by_experiment,
    find_runs,
    in_order,
    jobs_of,
    missing_tests,
    origin_of,
    rows_of,
    sweep_of,
)
from openbook.commands.comparison.request import Request
from openbook.errors import OpenBookError
from openbook.reporting.comparison_files import write_folder
from openbook.reporting.comparison_table import Row, orderings, short_table, shown, sweep_table
from openbook.tracking.added_passages import newest
from openbook.tracking.search.found_run import without_effect
from openbook.tracking.search.run_search import Runs, total, unlike
from openbook.utils.console import console, duration, say, say_result
from openbook.utils.signals import Stopped


def compare(request: Request) -> None:
    """Train the missing runs one after another, then write and print the tables.

    An interrupted run of the same configuration is continued. A run that fails does not stop the others: the tables
    say what is missing, and an OpenBookError at the end says which failed. Nothing is trained on a dry run.
    """
    runs = Runs(request.runs)
    jobs = jobs_of(request, runs)
    missing, tests = [job for job in jobs if not job.finished], missing_tests(jobs, request.test_n_docs)
    _announce(request, jobs, missing, tests, runs)
    problems = [] if request.dry_run else _make(request, jobs, missing, tests, runs)
    rows, sweep = rows_of(jobs), sweep_of(jobs, request.test_n_docs)
    _print(rows, sweep)
    if differing := unlike(job.finished for job in jobs if job.finished):
        say(f"warning: the runs of this table come from {differing}")
    if not request.dry_run:
        paths = {
            name: {str(job.config.seed): str(job.finished.path) for job in group if job.finished}
            for name, group in by_experiment(jobs).items()
        }
        write_folder(request.folder, rows, sweep, request.command, paths)
        say_result(f"tables and plots in {request.folder}")
    refuse_failures(problems, f"{len(missing) + len(tests)} stages")


def _announce(
    request: Request, jobs: Sequence[Job], missing: Sequence[Job], tests: Sequence[tuple[Job, int]], runs: Runs
) -> None:
    tell = say_result if request.dry_run else say  # which is all that a dry run is for
    tell(
        f"{len(jobs)} runs requested, {len(jobs) - len(missing)} finished, {len(missing)} to train, "
        f"{len(tests)} to test with other numbers of passages"
    )
    for path, reason in runs.unreadable.items():
        tell(f"  ignored: {path} ({reason})")
    for name in dict.fromkeys(job.config.experiment for job in jobs if job.word not in request.experiments):
        tell(f"  {name}: added, others start from its encoders")
    for job in missing:
        action = f"continue {job.run.path} at step {job.run.summary.get('steps', 0)}" if job.run else "train"
        action = f"{job.run.path} seems to be running" if job.run and job.run.perhaps_running else action
        tell(f"  {job.name}: {action}, {duration(runs.seconds(job.config, job.run))}")
    for name in dict.fromkeys(job.name for job, _ in tests):
        tell(f"  {name}: test with {', '.join(str(number) for job, number in tests if job.name == name)} passages")
    if missing or tests:
        tell(
            f"in total {duration(total(_expected(missing, tests, runs)))}"
            f"{'; nothing is started: dry run' if request.dry_run else ''}"
        )


def _expected(missing: Sequence[Job], tests: Sequence[tuple[Job, int]], runs: Runs) -> list[float | None]:
    return [
        *(runs.seconds(job.config, job.run) for job in missing),
        *(runs.test_seconds(job.config) for job, _ in tests),
    ]


def _make(
    request: Request, jobs: Sequence[Job], missing: Sequence[Job], tests: Sequence[tuple[Job, int]], runs: Runs
) -> list[str]:
    """Train and test what is missing; returns one text per failure."""
    started = time.monotonic()
    missing = list(in_order(missing))
    expected = _expected(missing, tests, runs)
    local = [word for word in request.args if without_effect(word.partition("=")[0]) and not word.startswith("run.")]
    stages = [
        *((f"train {job.name}", partial(train_job, request, job, jobs, runs)) for job in missing),
        *((f"test {job.name} with {number} passages", partial(_test, job, number, local)) for job, number in tests),
    ]
    return attempt(stages, lambda stage, done: _say_progress(stage, done, expected, time.monotonic() - started))


def attempt(stages: Sequence[tuple[str, Callable[[], None]]], tell: Callable[[str, int], None]) -> list[str]:
    """Every stage (its name, what makes it), after tell(name, stages done); one text for each that fails, which does
    not stop the others."""
    problems = []
    for done, (stage, make) in enumerate(stages):
        tell(stage, done)
        try:
            make()
        except OpenBookError as error:
            say_result(f"failed: {stage}: {error}")
            problems.append(f"{stage}: {error}")
        except Stopped:
            say("repeat the same command to continue")
            raise
    return problems


def refuse_failures(problems: Sequence[str], tried: str) -> None:
    """OpenBookError where stages have failed. tried: all of them, like "6 trials"."""
    if problems:
        raise OpenBookError(
            f"{len(problems)} of {tried} failed:\n  " + "\n  ".join(problems) + "\n",
            action="Repeat the same command to retry only these.",
        )


def _say_progress(stage: str, done: int, expected: Sequence[float | None], elapsed: float) -> None:
    """Before each stage. expected: seconds per stage, None where unknown; those of what is left are scaled by how far
    off the estimates were so far."""
    left = total(expected[done:])
    planned = total(expected[:done])
    if left is not None and planned:
        left *= elapsed / planned
    end = f"expected end {datetime.now() + timedelta(seconds=left):%a %H:%M}" if left is not None else "end unknown"
    say(f"{done + 1} of {len(expected)}: {stage}; {duration(elapsed)} elapsed, {end}")


def train_job(request: Request, job: Job, jobs: Sequence[Job], runs: Runs) -> None:
    """Train or continue the job's run; OpenBookError where that does not end with a finished run."""
    origin = origin_of(job, jobs)
    if origin and not origin.finished:
        raise OpenBookError("there is no run to start from", where="retriever.start_from", got=origin.name)
    words = request.training(job.word, job.config, job.run, origin.run if origin else None)
    code = run_command(words)
    runs.forget(job.config.experiment)
    find_runs([job], jobs, runs)
    if not job.finished:
        if job.run is not None:
            job.run.mark_over()
        raise OpenBookError(
            f"`python -m openbook {shlex.join(words)}` "
            + (f"ended with code {code}" if code else "left no finished run of this configuration")
        )


def _test(job: Job, number: int, local: Sequence[str]) -> None:
    """Answer the test questions with so many passages each; OpenBookError where that gives no metrics."""
    if not job.finished:
        raise OpenBookError("there is no finished run to test")
    words = ["evaluate", str(job.finished.path), f"evaluate.n_docs={number}", *local]
    if newest(job.finished.path):  # the runs of a comparison answer from what they were trained over
        words.append(f"data.corpus={job.config.data.corpus}")
    code = run_command(words)
    if code or not job.tested(number):
        raise OpenBookError(f"`python -m openbook {shlex.join(words)}` ended with code {code}")


def _print(rows: Sequence[Row], sweep: Mapping[str, Mapping[int, Row]]) -> None:
    for header, *lines in filter(None, (short_table(rows), sweep_table(sweep) if sweep else [])):
        table = Table(Column(header[0], no_wrap=True), *header[1:], box=SIMPLE, pad_edge=False, show_edge=False)
        for line in lines:
            table.add_row(*(cell.replace("`", "") for cell in line))
        console.print(table, soft_wrap=False)
    for pair, ahead, behind, verdict, difference in orderings(rows):
        ours = f"{shown(ahead, 'exact_match')} against {shown(behind, 'exact_match')}"
        ours += ", paired {:+.3f} ({:+.3f} to {:+.3f})".format(*difference) if difference else ""
        say_result(f"{verdict}: {pair.what}, {ours}; the paper {pair.published()[0]} against {pair.published()[1]}")
