"""`train` and `resume`: from a configuration to a run folder with a trained model, its figures and its report."""

from __future__ import annotations

import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger

from openbook import build
from openbook.callbacks import IndexRefresh, Provenance, Staleness, StopOnSignal, Throughput
from openbook.config import Config
from openbook.distributed import from_rank_zero
from openbook.experiment import flat
from openbook.hardware import accelerator, autocast_dtype, rank_from_environment, set_threads
from openbook.logs import MetricsCsv, WholeCheckpoints, read_checkpoint
from openbook.mips import use_threads
from openbook.module import RagModule
from openbook.preflight import check, check_corpus
from openbook.progress import console, say
from openbook.report import results_table, write_report
from openbook.runs import RunFolder, write_json

DISCLOSURE = (
    "Before joint training the reader was warmed up for {steps} steps on gold passages of training questions; "
    "joint training itself saw no gold passage."
)


class Bar(TQDMProgressBar):
    """Lightning's bar without the run's name in every line."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in shown.items() if name != "v_num"}


class Clock:
    """Seconds per stage, for summary.json. Stages do not overlap; what a refresh takes is known by its callback."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self._last = self.started

    def lap(self, stage: str) -> None:
        """Everything since the last lap belongs to this stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def rounded(self, refresh: float) -> dict[str, float]:
        named = {"setup": 0.0, "train": 0.0, "evaluate": 0.0} | self.seconds
        named = {"total": time.perf_counter() - self.started, **named, "refresh": refresh}
        return {stage: round(seconds, 2) for stage, seconds in named.items()}


def train(config: Config) -> Path:
    """Run an experiment from its start; returns the run folder."""
    check(config)
    run = RunFolder.choose(config)
    if rank_from_environment() == 0:
        run.check_new()
    return _run(config, run, resumed=False)


def resume(folder: str, overrides: list[str]) -> Path:
    """Continue an interrupted run from its last checkpoint, step for step as if it had not stopped."""
    run = RunFolder.existing(folder)
    config = run.load_config(overrides)
    check(config)
    read_checkpoint(run.last)
    say(f"resuming {run.path} from {run.last.name}")
    return _run(config, run, resumed=True)


def _run(config: Config, run: RunFolder, resumed: bool) -> Path:
    clock = Clock()
    on = accelerator(config.trainer.accelerator)
    use_threads(set_threads(config.trainer.devices))
    L.seed_everything(config.seed, verbose=False)
    ready = build.parts(config)
    check_corpus(config, ready.corpus)
    questions = build.data(config, ready)
    questions.setup()  # all files are checked before the first model is loaded
    if rank_from_environment() == 0 and not resumed:
        run.create(config)
    autocast = autocast_dtype(config.trainer.precision, on)
    module = build.module(config, ready, build.reader(config, on, autocast))
    refresh = None
    if module.retriever is not None:
        refresh = build.index_refresh(config, ready, questions, autocast)
    stop = StopOnSignal(run.checkpoints)
    trainer = _trainer(config, run, refresh, stop, read_checkpoint(run.last)["global_step"] if resumed else 0)
    say(f"run folder {run.path}; {ready.corpus.n_passages:,} passages; on {on}, {trainer.precision}")
    clock.lap("setup")

    before: dict[str, Any] = {}
    if resumed and run.summary.is_file():
        before = json.loads(run.summary.read_text(encoding="utf-8")).get("before_training", {})
    elif ready.files.test and config.evaluate.before_training:
        before = _test(trainer, module, questions, "test split before training")
        clock.lap("evaluate")
    _write_summary(run, config, module, refresh, trainer, clock, before, {}, "running")

    refreshed = refresh.seconds if refresh else 0.0
    trainer.fit(module, questions, ckpt_path=run.last if resumed else None, weights_only=True)
    clock.lap("train")
    if refresh:
        clock.seconds["train"] -= refresh.seconds - refreshed
    stopped = stop.received
    if from_rank_zero(stopped is not None):
        _write_summary(run, config, module, refresh, trainer, clock, before, {}, "interrupted")
        say(f"`make resume RUN={run.path}` continues the run")
        raise SystemExit(128 + (stopped or 15))

    after: dict[str, Any] = {}
    if ready.files.test:
        after = _test(trainer, module, questions, "test split after training")
        _write_predictions(run, module)
        clock.lap("evaluate")
    _write_summary(run, config, module, refresh, trainer, clock, before, after, "finished")
    _close(run)
    return run.path


def _trainer(
    config: Config, run: RunFolder, refresh: IndexRefresh | None, stop: StopOnSignal, resumed_step: int
) -> L.Trainer:
    """Callbacks in the order they must run in: measure the step, then refresh, then save what both left."""
    settings = config.trainer
    on = accelerator(settings.accelerator)
    autocast = autocast_dtype(settings.precision, on)
    retrieving = [Staleness(refresh), refresh] if refresh else []
    callbacks: list[L.Callback] = [
        Throughput(), *retrieving, Provenance(run.path), LearningRateMonitor("step"), stop,
        ModelCheckpoint(run.checkpoints, filename="last", every_n_train_steps=settings.checkpoint_every,
                        enable_version_counter=False, save_top_k=1),
        Bar(refresh_rate=1),
    ]  # fmt: skip
    loggers: list[Logger] = [MetricsCsv(run.metrics, resumed_step)]
    if config.wandb.mode != "disabled":
        loggers.append(_wandb(config, run))
    return L.Trainer(
        accelerator=on, devices=settings.devices, num_nodes=settings.nodes,
        strategy="ddp" if settings.devices * settings.nodes > 1 else "auto",
        precision="bf16-mixed" if autocast else "32-true",
        max_steps=settings.max_steps, accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=config.optim.clip or None,
        val_check_interval=settings.validate_every * settings.accumulate if config.data.validation else None,
        check_val_every_n_epoch=None, limit_val_batches=None if config.data.validation else 0,
        num_sanity_val_steps=0, log_every_n_steps=settings.log_every, use_distributed_sampler=False,
        callbacks=callbacks, logger=loggers, plugins=[WholeCheckpoints()],
        enable_model_summary=False, default_root_dir=run.path,
    )  # fmt: skip


def _wandb(config: Config, run: RunFolder) -> WandbLogger:
    logger = WandbLogger(project=config.wandb.project, name=f"{config.experiment}/{run.path.name}",
                         save_dir=run.path, offline=config.wandb.mode == "offline", id=run.path.name)  # fmt: skip
    logger.log_hyperparams(flat(config))
    return logger


def _test(trainer: L.Trainer, module: RagModule, questions: L.LightningDataModule, what: str) -> dict[str, Any]:
    say(what)
    trainer.test(module, questions, verbose=False)
    return dict(module.summary)


def _write_predictions(run: RunFolder, module: RagModule) -> None:
    if module.global_rank == 0:
        lines = [json.dumps(prediction.to_json(), ensure_ascii=False) + "\n" for prediction in module.predictions]
        run.predictions.write_text("".join(lines), encoding="utf-8")


def _write_summary(
    run: RunFolder, config: Config, module: RagModule, refresh: IndexRefresh | None, trainer: L.Trainer, clock: Clock,
    before: dict[str, Any], after: dict[str, Any], status: str,
) -> None:  # fmt: skip
    if not trainer.is_global_zero:
        return
    snapshot = module.retriever.snapshot if module.retriever else None
    write_json(run.summary, {
        "experiment": config.experiment,
        "status": status,
        "steps": trainer.global_step,
        "seed": config.seed,
        "n_docs": module.eval_n_docs,
        "seconds": clock.rounded(refresh.seconds if refresh else 0.0),
        "test": after,
        "before_training": before,
        "index": {"generation": snapshot.generation, "n_passages": snapshot.n_passages, "factory": snapshot.factory}
        if snapshot else {},
        "disclosures": [DISCLOSURE.format(steps=config.warmup.steps)] if config.warmup.steps else [],
    })  # fmt: skip


def _close(run: RunFolder) -> None:
    """The last thing on the terminal: the table, and the files that matter."""
    if rank_from_environment() != 0:
        return
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    if summary["test"]:
        console.print(results_table(summary))
    report = write_report(run.path)
    for label, path in (("report", report), ("figures", run.summary), ("predictions", run.predictions),
                        ("curves", run.metrics), ("checkpoint", run.last)):  # fmt: skip
        if path.exists():
            say(f"{label:>12}  {path}")


def quiet() -> None:
    """Silence advice that does not apply to what this project does."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for text in ("does not have many workers", "The number of training batches", "You are using a CUDA device",
                 "recommended to use `self.log", "LeafSpec", "is deprecated"):  # fmt: skip
        warnings.filterwarnings("ignore", message=f".*{text}.*")
