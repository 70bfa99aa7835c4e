"""Lightning's Trainer as this project uses it, for training and for tests alone."""

from __future__ import annotations

import hashlib
import logging
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy

from openbook.config.load import flat
from openbook.config.schema import Config
from openbook.tracking.checkpoint import WholeCheckpoints
from openbook.tracking.run_folder import RunFolder
from openbook.utils.hardware import accelerator, autocast_dtype


class Bar(TQDMProgressBar):
    """Lightning's bar without the run's name in every line."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in shown.items() if name != "v_num"}


def make_trainer(config: Config, callbacks: list[L.Callback], loggers: list[Logger]) -> L.Trainer:
    """Checkpoints come from openbook.callbacks.Checkpointing, the sharing of data over ranks from the DataModule."""
    settings = config.trainer
    on = accelerator(settings.accelerator)
    several = settings.world_size > 1
    validates = bool(config.data.validation)
    return L.Trainer(
        accelerator=on,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=DDPStrategy(broadcast_buffers=False) if several else "auto",  # the only buffers are frozen weights
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
        callbacks=[*callbacks, Bar()],
        logger=loggers,
        plugins=[WholeCheckpoints()],
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def wandb_logger(config: Config, run: RunFolder) -> WandbLogger:
    """The id is the run folder's: a resumed run appends to its own curves, and no other run does."""
    identity = hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:12]
    logger = WandbLogger(
        project=config.wandb.project,
        name=f"{config.experiment}/{run.path.name}",
        id=identity,
        save_dir=run.path,
        offline=config.wandb.mode == "offline",
    )
    logger.log_hyperparams(flat(config))
    return logger


def quiet() -> None:
    """Silence advice that does not apply to what this project does."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for text in (
        "does not have many workers",
        "The number of training batches",
        "You are using a CUDA device",
        "recommended to use `self.log",
        "LeafSpec",
        "is deprecated",
        "in eval mode at the start",
    ):
        warnings.filterwarnings("ignore", message=f".*{text}.*")
