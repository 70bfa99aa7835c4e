"""`train` and `resume`: from a configuration to a run folder with a trained model, its metrics and its report."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import Logger

from openbook.callbacks import Checkpointing, CollapseWatch, IndexRefresh, SamplePredictions, Staleness, Throughput
from openbook.commands.stages import Clock, Stages
from openbook.config.combinations import monitored
from openbook.config.schema import Config
from openbook.retrieval.dense import DenseRetriever
from openbook.setup.prepare import NOTHING_OWN, OwnParts, prepare
from openbook.setup.start_from import resolve_start, start_encoders
from openbook.setup.trainer import make_trainer, wandb_logger
from openbook.tracking.checkpoint import check_weights, read_checkpoint
from openbook.tracking.metrics_csv import MetricsCsv
from openbook.tracking.resuming import check_data, check_keys
from openbook.tracking.run_folder import SHARED, RunFolder
from openbook.utils.atomic import write_json
from openbook.utils.console import say
from openbook.utils.hardware import computing, rank_from_environment
from openbook.utils.signals import Stopped


def train(config: Config, own: OwnParts = NOTHING_OWN) -> Path:
    """Run an experiment from its start; returns the run folder."""
    own.check(config)
    run = RunFolder.choose(config)
    if rank_from_environment():
        return _run(resolve_start(config), run, own)
    run = run.claim()
    try:
        return _run(resolve_start(config), run, own)
    finally:
        run.release()


def resume(folder: str | Path, overrides: Sequence[str] = (), own: OwnParts = NOTHING_OWN) -> Path:
    """Continue an interrupted run from its last checkpoint, step for step as if it had not stopped.

    A run that was interrupted before its first checkpoint starts again. Overrides are kept in the run's config.yaml,
    once all that they meet has been checked. Raises OpenBookError, and leaves the run as it is, where a key or a file
    of data differs that decides what is trained. A finished run is left as it is.
    """
    run = RunFolder.existing(str(folder))
    config, summary = run.load_config(list(overrides)), run.read_summary()
    if any(word.startswith("trainer.max_steps=") for word in overrides):  # instead of the passes it was started with
        config = replace(config, trainer=replace(config.trainer, max_epochs=0.0))
    own.check(config, summary or None)
    if not run.newest.is_file():
        say(f"{run.path} has no checkpoint yet: starting from the beginning")
        return _run(config, run, own)
    changed = check_keys(run.load_config([], training=False), config, summary.get("data", {}))
    steps, longer = summary.get("steps", 0), {"trainer.max_steps", "trainer.patience"} & set(changed)
    if summary.get("status") == "finished" and (steps >= config.trainer.max_steps or not longer):
        say(f"{run.path} is finished after {steps} steps: nothing was changed; trainer.max_steps=N trains on")
        return run.path
    done = read_checkpoint(run.newest)["global_step"]
    told = [f"{key} is {value!r} from here on, was {before!r}" for key, (before, value) in changed.items()]
    say("\n  ".join([f"resuming {run.path} from {run.newest.name}, step {done}", *told]))
    return _run(config, run, own, resumed=True)


def _run(config: Config, run: RunFolder, own: OwnParts, resumed: bool = False) -> Path:
    clock = Clock()
    prepared = prepare(config, own=own)  # the last of the checks: from here on the run folder is filled
    config = prepared.config
    if resumed:
        check_data(run.read_summary().get("data", {}), prepared.fingerprints)
    elif rank_from_environment() == 0:
        run.create(config)
    trainer: L.Trainer | None = None
    try:
        module = prepared.module()
        if resumed:
            check_weights(module, run.newest)
        elif config.retriever.start_from and prepared.is_dense:
            start_encoders(config, cast(DenseRetriever, module.retriever))
        n_passages = prepared.parts.corpus.n_passages
        if prepared.is_dense:
            clock.refresh = prepared.refresh()
            if rank_from_environment() == 0:
                write_json(run.plan, prepared.plan(module, clock.refresh))
        checkpointing = Checkpointing(
            run.last,
            config.trainer.checkpoint_every,
            keep=config.trainer.keep_checkpoints,
            monitor=monitored(config),
            patience=config.trainer.patience,
            validate_every=config.trainer.validate_every if config.data.validation else 0,
        )
        callbacks = _callbacks(config, run, n_passages, clock.refresh)
        trainer = make_trainer(config, [*callbacks, *own.callbacks, checkpointing], _loggers(config, run, resumed))
        how = f"on {prepared.on}, {trainer.precision}, {computing()}"
        say(f"run folder {run.path}; {n_passages:,} passages; {how}")
        clock.lap("setup")
        if resumed and rank_from_environment() == 0:  # from here on the run is changed, and no longer finished
            write_json(run.summary, run.read_summary() | {"status": "running"})
            run.create(config)
        return Stages(run, prepared, module, trainer, clock, checkpointing)(resumed)
    except Stopped:
        if trainer is not None and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)  # the ranks that it has started
        if rank_from_environment() == 0:
            if (summary := run.read_summary()).get("status") == "running":
                write_json(run.summary, summary | {"status": "interrupted"})
            say(f"`make resume RUN={run.path}` continues the run")
        raise
    finally:
        os.environ.pop(SHARED, None)


def _callbacks(config: Config, run: RunFolder, n_passages: int, refresh: IndexRefresh | None) -> list[L.Callback]:
    """In the order they must run in: measure the step, then refresh; what saves both comes last."""
    watching: list[L.Callback] = []
    if refresh and config.objective != "dpr":  # where nothing is marginalised there is nothing of it to watch
        watching = [Staleness(refresh.manager), CollapseWatch(n_passages, action=config.retriever.on_collapse)]
    refreshing: list[L.Callback] = [refresh] if refresh else []
    return [Throughput(), *watching, *refreshing, SamplePredictions(run.path), LearningRateMonitor("step")]


def _loggers(config: Config, run: RunFolder, resumed: bool) -> list[Logger]:
    loggers: list[Logger] = [MetricsCsv(run.metrics, read_checkpoint(run.newest)["global_step"] if resumed else 0)]
    return loggers if config.wandb.mode == "disabled" else [*loggers, wandb_logger(config, run)]
