"""Lightning's strategy for a generator in parts beside encoders that are whole.

Not Lightning's ModelParallelStrategy: it averages no gradient of weights that are not in parts, so that each rank's
encoders would go their own way, and it writes and reads checkpoints past the checks of tracking/checkpoint.py. This is
DistributedDataParallel for what is whole. Checkpoints are those of a run whose generator is not in parts, and either
kind, on any number of ranks, goes on from the other's.
"""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from openbook.training.ranks.sharding import from_parts, hold_whole, into_parts, is_sharded, shard_layers
from openbook.training.ranks.strategy import Ranks


class ShardedGenerator(Ranks):
    """`module.generator` is parted when training starts: before it, and for every validation and test, ranks hold it
    whole."""

    sharded = False

    def setup(self, trainer: L.Trainer) -> None:
        module: Any = self.lightning_module
        if trainer.state.fn == TrainerFn.FITTING and not self.sharded:
            mesh = init_device_mesh(self.root_device.type, (self.world_size,))
            shard_layers(module.generator, mesh)  # layer by layer onto the device: there is never a whole one
            module.register_load_state_dict_pre_hook(_load_parts)
            self.sharded = True
        elif self.sharded and self.accelerator is not None:  # a test; DDPStrategy would send the parts to all ranks
            self.accelerator.setup(trainer)
            self.model_to_device()
            self.setup_precision_plugin()
            return
        super().setup(trainer)

    def _setup_model(self, model: nn.Module) -> Any:
        parts = [name for name, value in model.named_parameters() if is_sharded(value)]
        if not any(value.requires_grad and not is_sharded(value) for value in model.parameters()):
            return model  # nothing is trained that is whole
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, parts)
        return super()._setup_model(model)

    def _register_ddp_hooks(self) -> None:
        if isinstance(self.model, DistributedDataParallel):
            super()._register_ddp_hooks()

    def teardown(self) -> None:
        """As ModelParallelStrategy does: what is in parts stays on its device."""
        assert self.cluster_environment is not None and self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return from_parts(super().lightning_module_state_dict(), self.is_global_zero)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return from_parts(super().optimizer_state(optimizer), self.is_global_zero)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            trained = [value for group in optimizer.param_groups for value in group["params"]]
            for number, value in enumerate(trained):
                if number in saved["state"]:
                    state = saved["state"][number]
                    saved["state"][number] = into_parts(state, dict.fromkeys(state, value))
        super().load_optimizer_state_dict(checkpoint)

    def on_validation_start(self) -> None:
        self._hold_whole(True)

    def on_validation_end(self) -> None:
        self._hold_whole(False)

    def on_test_start(self) -> None:
        self._hold_whole(True)

    def on_test_end(self) -> None:
        self._hold_whole(False)

    def _hold_whole(self, whole: bool) -> None:
        module: Any = self.lightning_module
        if self.sharded:
            hold_whole(module.generator, whole)


def _load_parts(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """What `load_state_dict` is given, in parts where the module is."""
    hold_whole(module.generator, False)  # type: ignore[arg-type]
    state.update(into_parts(state, {prefix + name: value for name, value in module.named_parameters()}))
