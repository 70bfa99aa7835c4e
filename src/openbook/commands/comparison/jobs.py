"""The runs of a comparison: which there are, which start from which, which are still to be trained or tested."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openbook.commands.comparison.request import Request
from openbook.config.schema import Config
from openbook.reporting.comparison_table import Row, measures
from openbook.reporting.published import PAIRS
from openbook.tracking.search.found_run import FoundRun
from openbook.tracking.search.run_search import Runs

# The objectives whose first experiment is also tested with other numbers of passages, as in the paper's figure 3.
SWEPT = ("rag_token", "rag_sequence")


@dataclass
class Job:
    """One experiment with one seed: its configuration, and its run as soon as there is one."""

    word: str
    config: Config
    run: FoundRun | None = None

    @property
    def name(self) -> str:
        return f"{self.config.experiment} seed {self.config.seed}"

    @property
    def finished(self) -> FoundRun | None:
        """The run if it is finished."""
        return self.run if self.run and self.run.finished else None

    def tested(self, number: int) -> dict[str, Any] | None:
        """The metrics of the test with so many passages per question, if there are any."""
        return self.finished.evaluation([f"evaluate.n_docs={number}"]) if self.finished else None


def jobs_of(request: Request, runs: Runs) -> list[Job]:
    """Every job of the request with the run found for it."""
    jobs = [Job(word, config) for word, config in request.configs()]
    find_runs(jobs, jobs, runs)
    return jobs


def find_runs(searched: Sequence[Job], jobs: Sequence[Job], runs: Runs) -> None:
    """Look up the runs of the searched jobs. A job that starts from another job's encoders only accepts a run that
    started from exactly that job's run."""
    for job in in_order(searched):
        origin = origin_of(job, jobs)
        start = origin.finished.path if origin and origin.finished else None
        job.run = runs.find(job.config, start) if start or not origin else None


def in_order(jobs: Sequence[Job]) -> Iterator[Job]:
    """As given, but runs that start from another experiment's encoders after the runs of that experiment."""
    left = list(jobs)
    while left:
        names = {job.config.experiment for job in left}
        chosen = next(
            (job for job in left if job.config.retriever.start_from not in names - {job.config.experiment}), left[0]
        )
        left.remove(chosen)
        yield chosen


def origin_of(job: Job, jobs: Sequence[Job]) -> Job | None:
    """The job of the same seed whose encoders this one starts from."""
    origin = job.config.retriever.start_from, job.config.seed
    return next((other for other in jobs if (other.config.experiment, other.config.seed) == origin), None)


def missing_tests(jobs: Sequence[Job], numbers: Sequence[int]) -> list[tuple[Job, int]]:
    """(job, passages per question) of every evaluation of the sweep that does not exist yet."""
    return [(job, number) for job in _swept_jobs(jobs) for number in numbers if not job.tested(number)]


def _swept_jobs(jobs: Sequence[Job]) -> list[Job]:
    firsts = {
        next((job.config.experiment for job in jobs if job.config.objective == objective), "") for objective in SWEPT
    }
    return [job for job in jobs if job.config.experiment in firsts]


def by_experiment(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """The jobs of each experiment, in the order of its first one."""
    names = dict.fromkeys(job.config.experiment for job in jobs)
    return {name: [job for job in jobs if job.config.experiment == name] for name in names}


def rows_of(jobs: Sequence[Job]) -> list[Row]:
    """One row per experiment with the metrics of its finished runs."""
    rows = []
    judged = {name for pair in PAIRS for name in (pair.ahead, pair.behind)}
    for name, group in by_experiment(jobs).items():
        runs = {job.config.seed: job.finished for job in group if job.finished}
        by_seed = {seed: measures(run.evaluation() or {}, run.summary.get("seconds", {})) for seed, run in runs.items()}
        missing = [job.config.seed for job in group if not job.finished]
        rows.append(Row(name, by_seed, missing, {seed: run.matches() for seed, run in runs.items() if name in judged}))
    return rows


def sweep_of(jobs: Sequence[Job], numbers: Sequence[int]) -> Mapping[str, Mapping[int, Row]]:
    """{experiment: {passages per question at test: row}}."""
    swept = by_experiment(_swept_jobs(jobs) if numbers else ())
    return {name: {number: _tested_row(name, group, number) for number in numbers} for name, group in swept.items()}


def _tested_row(name: str, jobs: Sequence[Job], number: int) -> Row:
    """One experiment's metrics at the test with so many passages."""
    tests = {job.config.seed: job.tested(number) for job in jobs}
    found = {seed: measures(test) for seed, test in tests.items() if test}
    return Row(name, found, [seed for seed in tests if seed not in found])
