"""`train` and `resume`: from a configuration to a run folder with a trained model, its figures and its report."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import Logger

from openbook.callbacks import Checkpointing, CollapseWatch, IndexRefresh, SamplePredictions, Staleness, Throughput
from openbook.config.checks import has_index
from openbook.config.schema import Config
from openbook.reporting.report import results_table, write_report
from openbook.retrieval.bm25 import BM25Retriever
from openbook.setup import plan as planning
from openbook.setup.prepare import Prepared, prepare
from openbook.setup.start_from import resolve_start, start_encoders
from openbook.setup.trainer import make_trainer, wandb_logger
from openbook.tracking.checkpoint import read_checkpoint
from openbook.tracking.metrics_csv import MetricsCsv
from openbook.tracking.run_folder import SHARED, RunFolder
from openbook.training.dpr_module import DprModule
from openbook.training.rag_module import RagModule
from openbook.utils.atomic import write_json
from openbook.utils.console import console, say
from openbook.utils.distributed import from_rank_zero
from openbook.utils.hardware import computing, rank_from_environment

WARMED_UP = (
    "Before joint training the reader was warmed up for {steps} steps on gold passages of training questions; "
    "joint training itself saw no gold passage."
)
GOLD_PASSAGES = "The encoders were trained on gold passages of training questions; no generator had a part in it."
STARTED_FROM = "The encoders started as the run {run} left them."
HELD_OUT_APART = (
    "The headline counts questions in the phrasings of the training templates, about entries never trained on; "
    "questions in held-out phrasings are reported apart."
)


@dataclass
class Clock:
    """Seconds per stage, for summary.json. Refreshing is a stage of its own, taken out of the one it happened in."""

    refresh: IndexRefresh | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"setup": 0.0, "train": 0.0, "evaluate": 0.0})
    started: float = field(default_factory=time.perf_counter)

    @property
    def refreshing(self) -> float:
        return self.refresh.manager.seconds if self.refresh else 0.0

    def lap(self, stage: str) -> None:
        """Everything since the last lap belongs to this stage."""
        passed = time.perf_counter() - self.started - self.refreshing - sum(self.seconds.values())
        self.seconds[stage] += passed

    def rounded(self) -> dict[str, float]:
        total = {"total": time.perf_counter() - self.started}
        return {name: round(value, 2) for name, value in (total | self.seconds | {"refresh": self.refreshing}).items()}


def train(config: Config) -> Path:
    """Run an experiment from its start; returns the run folder."""
    run = RunFolder.choose(config)
    if rank_from_environment() == 0:
        run.check_new()
    return _run(resolve_start(config), run, resumed=False)


def resume(folder: str, overrides: list[str]) -> Path:
    """Continue an interrupted run from its last checkpoint, step for step as if it had not stopped.

    A run that was interrupted before its first checkpoint starts again. Overrides are kept in the run's config.yaml.
    """
    run = RunFolder.existing(folder)
    config = run.load_config(overrides)
    if list(run.checkpoints.glob("*.ckpt")):
        read_checkpoint(run.last)
        say(f"resuming {run.path} from {run.last.name}")
        return _run(config, run, resumed=True)
    say(f"{run.path} has no checkpoint yet: starting from the beginning")
    return _run(config, run, resumed=False)


def _run(config: Config, run: RunFolder, resumed: bool) -> Path:
    clock = Clock()
    prepared = prepare(config)  # the last of the checks: from here on the run folder exists and models are loaded
    if rank_from_environment() == 0:
        run.create(config)
    try:
        module = prepared.module()
        if config.retriever.start_from and not resumed and module.dense_retriever is not None:
            start_encoders(config, module.dense_retriever)
        corpus = prepared.parts.corpus
        if has_index(config):
            clock.refresh = prepared.refresh()
            if rank_from_environment() == 0:
                write_json(run.plan, planning.as_json(prepared.plan(module, clock.refresh)))
        checkpointing = Checkpointing(run.last, config.trainer.checkpoint_every)
        callbacks = _callbacks(config, run, corpus.n_passages, clock.refresh, checkpointing)
        trainer = make_trainer(config, callbacks, _loggers(config, run, resumed))
        how = f"on {prepared.on}, {trainer.precision}, {computing()}"
        say(f"run folder {run.path}; {corpus.n_passages:,} passages; {how}")
        clock.lap("setup")
        return _stages(config, run, resumed, clock, trainer, module, prepared, checkpointing)
    finally:
        os.environ.pop(SHARED, None)


def _stages(
    config: Config,
    run: RunFolder,
    resumed: bool,
    clock: Clock,
    trainer: L.Trainer,
    module: RagModule | DprModule,
    prepared: Prepared,
    checkpointing: Checkpointing,
) -> Path:
    """Test, train, test; summary.json is whole after each."""
    questions, data = prepared.questions, prepared.fingerprints()
    before: dict[str, Any] = run.read_summary().get("before_training", {}) if resumed else {}
    if config.data.test and config.evaluate.before_training and not resumed:
        before = _test(trainer, module, questions, "test split before training")
        clock.lap("evaluate")
    _write_summary(run, config, module, trainer, clock, data, before, {}, "running")

    trainer.fit(module, questions, ckpt_path=run.last if resumed else None, weights_only=True)
    clock.lap("train")
    if from_rank_zero(checkpointing.received is not None):
        _write_summary(run, config, module, trainer, clock, data, before, {}, "interrupted")
        say(f"`make resume RUN={run.path}` continues the run")
        if trainer.is_global_zero:  # another rank that ends with a code would have this one killed
            raise SystemExit(128 + (checkpointing.received or 15))
        return run.path

    after: dict[str, Any] = {}
    if config.data.test:
        after = _test(trainer, module, questions, "test split after training")
        if trainer.is_global_zero:
            run.write_predictions(run.path, [prediction.to_json() for prediction in module.predictions])
        clock.lap("evaluate")
    _write_summary(run, config, module, trainer, clock, data, before, after, "finished")
    if trainer.is_global_zero:
        _close(run)
    return run.path


def _callbacks(
    config: Config, run: RunFolder, n_passages: int, refresh: IndexRefresh | None, checkpointing: Checkpointing
) -> list[L.Callback]:
    """In the order they must run in: measure the step, then refresh, then save what both left."""
    watch = CollapseWatch(n_passages, action=config.retriever.on_collapse)
    retrieving: list[L.Callback] = [Staleness(refresh.manager), watch, refresh] if refresh else []
    if refresh and config.objective == "dpr":  # nothing is marginalised, so there is nothing of it to watch
        retrieving = [refresh]
    return [Throughput(), *retrieving, SamplePredictions(run.path), LearningRateMonitor("step"), checkpointing]


def _loggers(config: Config, run: RunFolder, resumed: bool) -> list[Logger]:
    loggers: list[Logger] = [MetricsCsv(run.metrics, read_checkpoint(run.last)["global_step"] if resumed else 0)]
    if config.wandb.mode != "disabled":
        loggers.append(wandb_logger(config, run))
    return loggers


def _test(
    trainer: L.Trainer, module: RagModule | DprModule, questions: L.LightningDataModule, what: str
) -> dict[str, Any]:
    say(what)
    trainer.test(module, questions, verbose=False, weights_only=True)
    return dict(module.summary)


def _write_summary(
    run: RunFolder,
    config: Config,
    module: RagModule | DprModule,
    trainer: L.Trainer,
    clock: Clock,
    data: dict[str, str],
    before: dict[str, Any],
    after: dict[str, Any],
    status: str,
) -> None:
    if not trainer.is_global_zero:
        return
    disclosures = [WARMED_UP.format(steps=config.warmup.steps)] if config.warmup.steps else []
    if config.objective == "dpr":
        disclosures.append(GOLD_PASSAGES)
    if config.retriever.start_from and module.dense_retriever is not None:
        disclosures.append(STARTED_FROM.format(run=config.retriever.start_from))
    if "held_out" in after.get("by_phrasing", {}):
        disclosures.append(HELD_OUT_APART)
    index: dict[str, Any] = {}
    if isinstance(module, RagModule) and isinstance(module.retriever, BM25Retriever):
        index = {"generation": 0, "n_passages": module.answering.corpus.n_passages, "factory": "BM25"}
    elif (dense := module.dense_retriever) is not None and (snapshot := dense.snapshot):
        index = {"generation": snapshot.generation, "n_passages": snapshot.n_passages, "factory": snapshot.factory}
    write_json(
        run.summary,
        {
            "experiment": config.experiment,
            "status": status,
            "steps": trainer.global_step,
            "seed": config.seed,
            "n_docs": config.evaluate.n_docs or config.retriever.n_docs,
            "seconds": clock.rounded(),
            "test": after,
            "before_training": before,
            "data": data,
            "index": index,
            "disclosures": disclosures,
        },
    )


def _close(run: RunFolder) -> None:
    """The last thing on the terminal: the table, and the files that matter."""
    summary = run.read_summary()
    if summary["test"]:
        console.print(results_table(summary))
    report = write_report(run.path)
    for label, path in (
        ("report", report),
        ("figures", run.summary),
        ("predictions", run.predictions),
        ("curves", run.metrics),
        ("checkpoint", run.last),
    ):
        if path.exists():
            say(f"{label:>12}  {path}")
