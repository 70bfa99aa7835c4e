"""`sweep`: one experiment with many settings, on this machine and without an account, or by wandb's agents."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from openbook.commands.comparison.compare import attempt, refuse_failures, train_job
from openbook.commands.comparison.jobs import Job, find_runs
from openbook.commands.comparison.request import Request
from openbook.commands.sweep.request import SweepFile, Trial
from openbook.commands.sweep.wandb_sweep import wandb_sweep
from openbook.errors import OpenBookError
from openbook.reporting.comparison_table import measures
from openbook.reporting.sweep_report import Tried, print_sweep, write_sweep
from openbook.tracking.curves import read_metrics
from openbook.tracking.search.run_search import Runs, total
from openbook.utils.console import duration, say, say_result


def sweep(parsed: Namespace) -> None:
    """EXPERIMENT SWEEP [key=value ...]: train what is missing of the sweep's trials one after another, then tabulate
    all of them. The same command continues a sweep: finished trials are left alone, an interrupted one is resumed. With
    the backend wandb the sweep is one of its server, and this process an agent of it (wandb_sweep.py)."""
    words = [word for word in parsed.words if "=" not in word]
    args = [word for word in parsed.words if "=" in word]
    if len(words) != 2:
        raise OpenBookError(
            "a sweep needs an experiment and a sweep", got=" ".join(words), action="openbook sweep rag_token refresh"
        )
    if not parsed.count.isdigit() or not parsed.seed.isdigit():
        raise OpenBookError("not a whole number", where="--count, --seed", got=f"{parsed.count}, {parsed.seed}")
    experiment, file = words[0], SweepFile.read(words[1])
    if parsed.backend == "wandb":
        wandb_sweep(
            experiment,
            file,
            args,
            Path(parsed.runs),
            sweep=parsed.sweep_id,
            count=int(parsed.count),
            dry_run=parsed.dry_run,
        )
        return
    if parsed.backend != "local":
        raise OpenBookError("unknown backend", where="--backend", got=parsed.backend, expected="local or wandb")
    if parsed.sweep_id:
        raise OpenBookError("local sweeps have no id", where="--sweep-id", got=parsed.sweep_id, expected="wandb's")
    trials = file.trials(int(parsed.count), int(parsed.seed))
    configs = file.configs(experiment, args, trials)
    runs = Runs(Path(parsed.runs))
    jobs = [Job(experiment, config) for config in configs]
    find_runs(jobs, jobs, runs)
    missing = [number for number, job in enumerate(jobs) if not job.finished]
    tell = say_result if parsed.dry_run else say
    tell(f"{len(jobs)} trials of {file.name}, {len(jobs) - len(missing)} finished, {len(missing)} to train")
    if file.early_terminate:
        tell("early_terminate is for wandb's agents: here every trial is trained to its end")
    for number in missing:
        tell(f"  {' '.join(trials[number])}")
    if parsed.dry_run:
        expected = total(runs.seconds(jobs[number].config, jobs[number].run) for number in missing)
        tell(f"in total {duration(expected)}; nothing is started: dry run")
        return
    problems = _train(experiment, args, trials, jobs, missing, runs)
    folder = runs.root / jobs[0].config.experiment / "sweeps" / file.name
    tried = [_tried(trial, job, file) for trial, job in zip(trials, jobs, strict=True)]
    print_sweep(tried, file.metric)
    given = f' ARGS="{" ".join(args)}"' if args else ""
    write_sweep(folder, tried, file.metric, f"make sweep EXP={experiment} SWEEP={words[1]}{given}")
    say_result(f"table and plot in {folder}")
    refuse_failures(problems, f"{len(missing)} trials")


def _train(
    experiment: str,
    args: Sequence[str],
    trials: Sequence[Trial],
    jobs: Sequence[Job],
    missing: Sequence[int],
    runs: Runs,
) -> list[str]:
    """One text for each trial that failed."""

    def training(trial: Trial, job: Job) -> Callable[[], None]:
        settings = tuple(word for word in (*args, *trial) if not word.startswith("seed="))
        return partial(train_job, Request((experiment,), (job.config.seed,), settings, runs=runs.root), job, jobs, runs)

    stages = [(" ".join(trials[number]), training(trials[number], jobs[number])) for number in missing]
    return attempt(stages, lambda stage, done: say(f"{done + 1} of {len(missing)}: {stage}"))


def _tried(trial: Trial, job: Job, file: SweepFile) -> Tried:
    settings = {key: value for key, _, value in (word.partition("=") for word in trial)}
    run = job.finished
    if run is None:
        return Tried(settings, None, {}, "")
    _, values = read_metrics(run.path / "metrics.csv").get(file.metric[0], ([], []))
    tested = measures(run.evaluation() or {}, run.summary.get("seconds", {}))
    return Tried(settings, values[-1] if values else None, tested, str(run.path))
