"""Lightning's Trainer as configured by this project, for training and for testing."""

import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lightning as L
from huggingface_hub.utils import disable_progress_bars
from lightning.pytorch.loggers import Logger

from openbook.callbacks import Progress
from openbook.config.schema import Config
from openbook.setup.resources.out_of_memory import in_words_of_settings
from openbook.tracking.checkpoint_io import WholeCheckpoints
from openbook.tracking.loggers.tensorboard import TensorBoard
from openbook.tracking.loggers.wandb_run import WandbRun
from openbook.tracking.metrics_csv import MetricsCsv
from openbook.tracking.run_folder import RunFolder
from openbook.training.ranks.sharded_strategy import ShardedGenerator
from openbook.training.ranks.strategy import Ranks
from openbook.utils.console import is_quiet, say
from openbook.utils.distributed import RankError, now_in
from openbook.utils.hardware import accelerator, autocast_dtype
from openbook.utils.outside import check_installed, check_wandb, wandb_mode
from openbook.utils.rank_failure import named_on_all_ranks
from openbook.utils.signals import Stopped


@contextmanager
def together(config: Config, folder: Path) -> Iterator[None]:
    """What one rank of the configuration raises inside is named by all of them, and missing memory in a sentence.
    folder: of the run."""
    backend = "nccl" if accelerator(config.trainer.accelerator) == "gpu" else "gloo"
    now_in("set-up")
    ranks = named_on_all_ranks(config.trainer.world_size, config.trainer.timeout, folder, backend)
    with ranks, in_words_of_settings(config):
        yield


def end_ranks(trainers: Iterable[L.Trainer], error: Stopped | RankError) -> None:
    """End the ranks that this process has started: by the signal's like, or, where one of them failed, of themselves
    within some seconds, in which they say what they have met; one that is stopped or hangs is killed."""
    started = [process for one in trainers for process in getattr(one.strategy.launcher, "procs", ())]
    until = time.monotonic() + 8
    for process in started:
        if isinstance(error, Stopped):
            process.send_signal(signal.SIGTERM)
            continue
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        process.kill()


def make_trainer(config: Config, callbacks: list[L.Callback], loggers: list[Logger]) -> L.Trainer:
    """Checkpoints come from openbook.callbacks.Checkpointing; the DataModule distributes the data over ranks."""
    settings = config.trainer
    on = accelerator(settings.accelerator)
    validates = bool(config.data.validation)
    kind = ShardedGenerator if config.generator.sharded else Ranks
    trainer = L.Trainer(
        accelerator=on,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=kind(settings.timeout) if settings.world_size > 1 else "auto",
        precision="bf16-mixed" if autocast_dtype(settings.precision, on) else "32-true",
        max_steps=settings.max_steps,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=config.optim.clip or None,
        val_check_interval=settings.validate_every * settings.accumulate if validates else None,
        check_val_every_n_epoch=None,
        limit_val_batches=None if validates else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=settings.log_every,
        use_distributed_sampler=False,
        callbacks=[*callbacks, Progress()],
        logger=loggers,
        plugins=[WholeCheckpoints()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    # Lightning's own handlers would swallow a signal outside of training, and on one rank alone hang the others.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def check_loggers(config: Config) -> None:
    """Whether what shall show the curves is installed, and wandb has a key where it sends them."""
    check_wandb(config.wandb.mode)
    if config.trainer.tensorboard:
        check_installed("trainer.tensorboard", "tensorboard", "openbook[tensorboard]")


def make_loggers(config: Config, run: RunFolder, done: int, resumed: bool) -> list[Logger]:
    """metrics.csv, and what else shows the curves. done: steps of the checkpoint that a resumed run goes on from."""
    table = MetricsCsv(run.metrics, done)
    loggers: list[Logger] = [table]
    if config.trainer.tensorboard:
        loggers.append(TensorBoard(run.path, done))
    mode = wandb_mode(config.wandb.mode)
    if mode != "disabled":
        loggers.append(WandbRun(run.path, config, mode, table.rows, resumed))
    elif config.wandb.mode == "auto":
        say("wandb is not installed: the curves are in metrics.csv alone")
    return loggers


def wandb_run(trainers: Iterable[L.Trainer]) -> WandbRun | None:
    """wandb's run among the loggers of a trainer."""
    found = (logger for one in trainers for logger in one.loggers if isinstance(logger, WandbRun))
    return next(found, None)


def quiet() -> None:
    """Silence warnings of Lightning and torch that do not apply to this project, wandb's banners, and in a log the
    bars of downloads."""
    os.environ.setdefault("WANDB_SILENT", "true")
    if not sys.stderr.isatty() or is_quiet():
        disable_progress_bars()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    texts = (
        "does not have many workers",
        "The number of training batches",
        "You are using a CUDA device",
        "recommended to use `self.log",
        "LeafSpec",
        "is deprecated",
        "in eval mode at the start",
    )
    warnings.filterwarnings("ignore", message=f".*({'|'.join(texts)}).*")
