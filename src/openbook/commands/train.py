"""`train` and `resume`: from a configuration to a run folder with a trained model, its metrics and its report."""

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor

from openbook.callbacks import Checkpointing, CollapseWatch, SamplePredictions, Staleness
from openbook.commands.stages import Clock, Stages
from openbook.config.rules.combinations import monitored
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.retrieval.dense import DenseRetriever
from openbook.setup.prepare import NOTHING_OWN, OwnParts, prepare
from openbook.setup.resources.space import check_checkpoints, checkpoint_bytes, n_checkpoints
from openbook.setup.start_from import resolve_start, start_encoders
from openbook.setup.start_generator import resolve_generator, start_generator
from openbook.setup.trainer import check_loggers, end_ranks, make_loggers, make_trainer, together, wandb_run
from openbook.tracking.checkpoint import check_weights, read_checkpoint
from openbook.tracking.open_keys import left_open
from openbook.tracking.resuming import changed_keys, check_data, check_keys, keeping_the_batch
from openbook.tracking.run_folder import SHARED, RunFolder
from openbook.training.base_module import QuestionModule
from openbook.training.divergence import NAME as DIVERGED
from openbook.training.divergence import DivergedError, is_finite
from openbook.training.rag_module import RagModule
from openbook.training.ranks.strategy import OnceConnected
from openbook.utils.atomic import write_json
from openbook.utils.console import say, say_result
from openbook.utils.disk import DiskError
from openbook.utils.distributed import RankError, in_words
from openbook.utils.hardware import computing, rank_from_environment
from openbook.utils.signals import Stopped


def train(config: Config, own: OwnParts = NOTHING_OWN) -> Path:
    """Run an experiment from its start; returns the run folder."""
    own.check(config)
    run, opened = RunFolder.choose(config), left_open(config)
    if rank_from_environment():
        return _run(resolve_generator(resolve_start(config)), run, own, opened)
    run = run.claim()
    try:
        return _run(resolve_generator(resolve_start(config)), run, own, opened)
    finally:
        run.release()


def resume(folder: str | Path, overrides: Sequence[str] = (), own: OwnParts = NOTHING_OWN) -> Path:
    """Continue an interrupted run from its last checkpoint, step for step as if it had not stopped.

    A run that was interrupted before its first checkpoint starts again. Overrides are kept in the run's config.yaml,
    once all that they meet has been checked. Raises OpenBookError, and leaves the run as it is, where a key or a file
    of data differs that decides what is trained, or where another process is at work in the run. A finished run is
    left as it is.
    """
    run = RunFolder.existing(str(folder))
    if rank_from_environment():
        return _resume(run, overrides, own)
    run.lock()
    try:
        return _resume(run, overrides, own)
    finally:
        run.release()


def _resume(run: RunFolder, overrides: Sequence[str], own: OwnParts) -> Path:
    summary = run.read_summary()
    if summary.get("status") == "imported":
        raise OpenBookError(
            "an imported run has no optimizer's state to go on with",
            where=run.path,
            action=f"A new run with retriever.start_from={run.path} generator.start_from={run.path} trains it on.",
        )
    then = run.load_config([], training=False)
    overrides = keeping_the_batch(then, overrides)
    config = run.load_config(overrides)
    if any(word.startswith("trainer.max_steps=") for word in overrides):  # instead of the passes it was started with
        config = replace(config, trainer=replace(config.trainer, max_epochs=0.0))
    own.check(config, summary or None)
    if not run.newest.is_file():
        say(f"{run.path} has no checkpoint yet: starting from the beginning")
        return _run(config, run, own, _still_open(summary, changed_keys(then, config)))
    if run.summary.is_file() and not summary:
        say("lost with summary.json: the test before training, and by which files of data this run is known")
    changed = check_keys(then, config, summary.get("data", {}))
    steps, longer = summary.get("steps", 0), {"trainer.max_steps", "trainer.patience"} & set(changed)
    if summary.get("status") == "finished" and (steps >= config.trainer.max_steps or not longer):
        say_result(f"{run.path} is finished after {steps} steps: nothing was changed; trainer.max_steps=N trains on")
        return run.path
    done = read_checkpoint(run.newest)["global_step"]
    told = [f"{key} is {value!r} from here on, was {before!r}" for key, (before, value) in changed.items()]
    say("\n  ".join([f"resuming {run.path} from {run.newest.name}, step {done}", *told]))
    return _run(config, run, own, _still_open(summary, changed), resumed=True)


def _still_open(summary: Mapping[str, Any], changed: Collection[str]) -> list[str] | None:
    """What the run left to the data when it began and nobody has chosen since; None where it did not record that."""
    opened = summary.get("left_open")
    return None if opened is None else [key for key in opened if key not in changed]


def _run(config: Config, run: RunFolder, own: OwnParts, opened: list[str] | None, resumed: bool = False) -> Path:
    trainers: list[L.Trainer] = []
    try:
        with together(config, run.path):
            _stages(config, run, own, opened, resumed, trainers)(resumed)
    except BaseException as error:
        if isinstance(error, (Stopped, RankError)):
            end_ranks(trainers, error)
        _leave(run, error, trainers)
        tracked = wandb_run(trainers)
        if not (tracked and tracked.close(error)):
            raise
    else:
        if tracked := wandb_run(trainers):
            tracked.close(None)
    finally:
        os.environ.pop(SHARED, None)
    return run.path


def _leave(run: RunFolder, error: BaseException, trainers: list[L.Trainer]) -> None:
    """What a run that ends by an error leaves behind: the batch that made it diverge, and a status that says that it
    has ended: interrupted where the same may go on, failed where it would fail again."""
    module = trainers[0].lightning_module if trainers else None
    if isinstance(module, QuestionModule) and isinstance(error, Exception):
        with suppress(DiskError, RuntimeError):  # of a GPU or disk that has failed the error itself is to be heard of
            _write_divergence(run, module, error)
    with suppress(DiskError):
        if rank_from_environment() == 0 and (summary := run.read_summary()).get("status") == "running":
            goes_on = isinstance(error, (Stopped, RankError, DiskError, KeyboardInterrupt))
            told = {"status": "interrupted"} if goes_on else {"status": "failed", "error": in_words(error)}
            write_json(run.summary, summary | told)
    if isinstance(error, (Stopped, RankError, DiskError)) and rank_from_environment() == 0 and run.config.is_file():
        say(f"`make resume RUN={run.path}` continues the run")


def _write_divergence(run: RunFolder, module: QuestionModule, error: Exception) -> None:
    """diverged.json, of another rank than the first only where its own batch gave no number: diverged-1.json."""
    number = rank_from_environment()
    if (not isinstance(error, DivergedError) and is_finite(module)) or (number and not module.trail.is_hit()):
        return
    path = run.path / (f"{Path(DIVERGED).stem}-{number}.json" if number else DIVERGED)
    write_json(path, module.divergence())
    say_result(f"{path} has the last batches: ids, scores and norms")


def _stages(
    config: Config,
    run: RunFolder,
    own: OwnParts,
    opened: list[str] | None,
    resumed: bool,
    trainers: list[L.Trainer],
) -> Stages:
    """What is left once all is set up. trainers: where the one that is made is left, for it may have started ranks."""
    clock = Clock()
    check_loggers(config)
    prepared = prepare(config, own=own)  # the last of the checks: from here on the run folder is filled
    config = prepared.config
    if resumed:
        check_data(run.read_summary().get("data", {}), prepared.fingerprints)
    elif rank_from_environment() == 0:
        run.create(config)
    module = prepared.module()
    if resumed:
        check_weights(module, run.newest)
    else:
        if config.retriever.start_from and prepared.is_dense:
            start_encoders(config, cast(DenseRetriever, module.retriever))
        if config.generator.start_from and isinstance(module, RagModule):
            start_generator(config, module.generator)
    n_passages = prepared.parts.corpus.n_passages
    if prepared.is_dense:
        clock.refresh = prepared.refresh()
        if rank_from_environment() == 0:
            write_json(run.plan, prepared.plan(module, clock.refresh, run.path))
    elif rank_from_environment() == 0:
        check_checkpoints(n_checkpoints(config) * checkpoint_bytes(module), run.path)
    if not resumed:  # it may take minutes: what does not fit has been refused
        clock.warmup = prepared.warm_up(module)
    checkpointing = Checkpointing(
        run.last,
        config.trainer.checkpoint_every,
        keep=config.trainer.keep_checkpoints,
        monitor=monitored(config),
        patience=config.trainer.patience,
        validate_every=config.trainer.validate_every if config.data.validation else 0,
    )
    callbacks = _callbacks(config, run, n_passages, clock)
    done = read_checkpoint(run.newest)["global_step"] if resumed else 0
    loggers = make_loggers(config, run, done, resumed)
    connected = OnceConnected()
    trainer = make_trainer(config, [connected, *callbacks, *own.callbacks, checkpointing], loggers)
    trainers.append(trainer)
    how = f"on {prepared.on}, {trainer.precision}, {computing()}"
    say(f"run folder {run.path}; {n_passages:,} passages; {how}")
    clock.lap("setup")
    return Stages(run, prepared, module, trainer, clock, checkpointing, connected, opened, done)


def _callbacks(config: Config, run: RunFolder, n_passages: int, clock: Clock) -> list[L.Callback]:
    """In the order they must run in: measure the step, then refresh; what saves both comes last."""
    watching: list[L.Callback] = []
    refresh = clock.refresh
    if refresh and config.objective != "dpr":  # where nothing is marginalised there is nothing of it to watch
        watching = [Staleness(refresh.manager), CollapseWatch(n_passages, action=config.retriever.on_collapse)]
    refreshing: list[L.Callback] = [refresh] if refresh else []
    return [clock.throughput, *watching, *refreshing, SamplePredictions(run.path), LearningRateMonitor("step")]
