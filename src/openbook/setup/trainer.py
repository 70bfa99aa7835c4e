"""Lightning's Trainer as configured by this project, for training and for testing."""

import hashlib
import logging
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from openbook.config.load import flat
from openbook.config.schema import Config
from openbook.tracking.checkpoint import WholeCheckpoints
from openbook.tracking.run_folder import RunFolder
from openbook.training.sharded_strategy import ShardedGenerator
from openbook.utils.hardware import accelerator, autocast_dtype


class Bar(TQDMProgressBar):
    """Lightning's progress bar without the version number."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}


def make_trainer(config: Config, callbacks: list[L.Callback], loggers: list[Logger]) -> L.Trainer:
    """Checkpoints come from openbook.callbacks.Checkpointing; the DataModule distributes the data over ranks."""
    settings = config.trainer
    on = accelerator(settings.accelerator)
    validates = bool(config.data.validation)
    trainer = L.Trainer(
        accelerator=on,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=_strategy(config) if settings.world_size > 1 else "auto",
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
    # Lightning's own handlers would swallow a signal outside of training, and on one rank alone hang the others.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _strategy(config: Config) -> DDPStrategy:
    """Of several ranks. The only buffers are frozen weights."""
    return (ShardedGenerator if config.generator.sharded else DDPStrategy)(broadcast_buffers=False)


def wandb_logger(config: Config, run: RunFolder) -> Logger:
    """The run id is a hash of the run folder, so that a resumed run continues its own curves."""
    from lightning.pytorch.loggers import WandbLogger

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
    """Silence warnings of Lightning and torch that do not apply to this project."""
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
