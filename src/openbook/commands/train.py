"""`train` and `resume`: from a configuration to a run folder with a trained model, its metrics and its report."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import Logger

from openbook.callbacks import Checkpointing, CollapseWatch, IndexRefresh, SamplePredictions, Staleness, Throughput
from openbook.config.schema import Config
from openbook.reporting.report import results_table, write_report
from openbook.retrieval.dense import DenseRetriever
from openbook.setup import plan as planning
from openbook.setup.prepare import NOTHING_OWN, OwnParts, Prepared, prepare
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
    "Before joint training the small reader was warmed up for {steps} steps on gold passages of training questions; "
    "joint training itself saw no gold passage."
)
GOLD_PASSAGES = "The encoders were trained on gold passages of training questions; no generator took part."
STARTED_FROM = "The encoders started from the run {run}."
HELD_OUT_APART = (
    "The headline metrics count questions in phrasings of the training templates, about entries never trained on; "
    "questions in unseen phrasings are reported separately."
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


def train(config: Config, own: OwnParts = NOTHING_OWN) -> Path:
    """Run an experiment from its start; returns the run folder."""
    run = RunFolder.choose(config)
    if rank_from_environment() == 0:
        run.check_new()
    own.check(config)
    return _run(resolve_start(config), run, own, resumed=False)


def resume(folder: str | Path, overrides: Sequence[str] = (), own: OwnParts = NOTHING_OWN) -> Path:
    """Continue an interrupted run from its last checkpoint, step for step as if it had not stopped.

    A run that was interrupted before its first checkpoint starts again. Overrides are kept in the run's config.yaml.
    """
    run = RunFolder.existing(str(folder))
    config = run.load_config(list(overrides))
    own.check(config, run.read_summary() or None)
    resumed = bool(list(run.checkpoints.glob("*.ckpt")))
    if resumed:
        read_checkpoint(run.last)
        say(f"resuming {run.path} from {run.last.name}")
    else:
        say(f"{run.path} has no checkpoint yet: starting from the beginning")
    return _run(config, run, own, resumed)


def _run(config: Config, run: RunFolder, own: OwnParts, resumed: bool) -> Path:
    clock = Clock()
    prepared = prepare(config, own=own)  # the last of the checks: from here on the run folder exists
    if rank_from_environment() == 0:
        run.create(config)
    try:
        module = prepared.module()
        if config.retriever.start_from and not resumed and prepared.is_dense:
            start_encoders(config, cast(DenseRetriever, module.retriever))
        n_passages = prepared.parts.corpus.n_passages
        if prepared.is_dense:
            clock.refresh = prepared.refresh()
            if rank_from_environment() == 0:
                write_json(run.plan, planning.as_json(prepared.plan(module, clock.refresh)))
        checkpointing = Checkpointing(run.last, config.trainer.checkpoint_every)
        callbacks = _callbacks(config, run, n_passages, clock.refresh)
        trainer = make_trainer(config, [*callbacks, *own.callbacks, checkpointing], _loggers(config, run, resumed))
        how = f"on {prepared.on}, {trainer.precision}, {computing()}"
        say(f"run folder {run.path}; {n_passages:,} passages; {how}")
        clock.lap("setup")
        return Stages(run, prepared, module, trainer, clock, checkpointing)(resumed)
    finally:
        os.environ.pop(SHARED, None)


@dataclass
class Stages:
    """Test, train, test; summary.json is complete after each."""

    run: RunFolder
    prepared: Prepared
    module: RagModule | DprModule
    trainer: L.Trainer
    clock: Clock
    checkpointing: Checkpointing
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)

    def __call__(self, resumed: bool) -> Path:
        run, trainer, config = self.run, self.trainer, self.prepared.config
        if resumed:
            self.before = run.read_summary().get("before_training", {})
        elif config.data.test and config.evaluate.before_training:
            self.before = self._test("test split before training")
        self._write_summary("running")

        trainer.fit(self.module, self.prepared.questions, ckpt_path=run.last if resumed else None, weights_only=True)
        self.clock.lap("train")
        if from_rank_zero(self.checkpointing.received is not None):
            self._write_summary("interrupted")
            say(f"`make resume RUN={run.path}` continues the run")
            if trainer.is_global_zero:  # another rank that ends with a code would have this one killed
                raise SystemExit(128 + (self.checkpointing.received or 15))
            return run.path

        if config.data.test:
            self.after = self._test("test split after training")
            if trainer.is_global_zero:
                run.write_predictions(run.path, [prediction.to_json() for prediction in self.module.predictions])
        self._write_summary("finished")
        if trainer.is_global_zero:
            _close(run)
        return run.path

    def _test(self, what: str) -> dict[str, Any]:
        say(what)
        self.trainer.test(self.module, self.prepared.questions, verbose=False, weights_only=True)
        self.clock.lap("evaluate")
        return dict(self.module.summary)

    def _write_summary(self, status: str) -> None:
        if not self.trainer.is_global_zero:
            return
        config, own = self.prepared.config, self.prepared.own.names
        start = config.retriever.start_from
        told = {
            WARMED_UP.format(steps=config.warmup.steps): config.warmup.steps > 0,
            GOLD_PASSAGES: config.objective == "dpr",
            STARTED_FROM.format(run=start): start and self.prepared.is_dense,
            HELD_OUT_APART: "held_out" in self.after.get("by_phrasing", {}),
        }
        summary = {
            "experiment": config.experiment,
            "status": status,
            "steps": self.trainer.global_step,
            "seed": config.seed,
            "n_docs": config.evaluate.n_docs or config.retriever.n_docs,
            "seconds": self.clock.rounded(),
            "test": self.after,
            "before_training": self.before,
            "data": self.prepared.fingerprints(),
            "index": self.module.retriever.index_facts(),
            "disclosures": [text for text, holds in told.items() if holds],
        }
        write_json(self.run.summary, summary | ({"own_parts": own} if own else {}))


def _callbacks(config: Config, run: RunFolder, n_passages: int, refresh: IndexRefresh | None) -> list[L.Callback]:
    """In the order they must run in: measure the step, then refresh; what saves both comes last."""
    watching: list[L.Callback] = []
    if refresh and config.objective != "dpr":  # where nothing is marginalised there is nothing of it to watch
        watching = [Staleness(refresh.manager), CollapseWatch(n_passages, action=config.retriever.on_collapse)]
    refreshing: list[L.Callback] = [refresh] if refresh else []
    return [Throughput(), *watching, *refreshing, SamplePredictions(run.path), LearningRateMonitor("step")]


def _loggers(config: Config, run: RunFolder, resumed: bool) -> list[Logger]:
    loggers: list[Logger] = [MetricsCsv(run.metrics, read_checkpoint(run.last)["global_step"] if resumed else 0)]
    return loggers if config.wandb.mode == "disabled" else [*loggers, wandb_logger(config, run)]


def _close(run: RunFolder) -> None:
    """The last thing on the terminal: the table, and the files that matter."""
    summary = run.read_summary()
    if summary["test"]:
        console.print(results_table(summary))
    report = write_report(run.path)
    for label, path in (
        ("report", report),
        ("metrics", run.summary),
        ("predictions", run.predictions),
        ("curves", run.metrics),
        ("checkpoint", run.last),
    ):
        if path.exists():
            say(f"{label:>12}  {path}")
