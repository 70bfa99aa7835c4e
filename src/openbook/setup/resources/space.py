"""The disk that a run's checkpoints take, with an index or without one."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from openbook.config.rules.combinations import monitored
from openbook.config.schema import Config
from openbook.utils.disk import Need, check_space, size_of


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def checkpoint_bytes(module: nn.Module) -> int:
    """Of one checkpoint: the weights, and the optimizer's two moments of those that train. What the index adds is in
    its plan."""
    trained = bytes_of(value for value in module.parameters() if value.requires_grad)
    return bytes_of(module.state_dict().values()) + 2 * trained


def n_checkpoints(config: Config) -> int:
    """Those on the disk at a time: the last ones, the best, and the one that is being written beside those that it does
    not replace yet."""
    kept = config.trainer.keep_checkpoints
    return kept + 2 if monitored(config) else max(kept, 2)


def check_checkpoints(n_bytes: int, run: Path) -> None:
    """OpenBookError where the run folder's disk has no room for its checkpoints. Those of a run that is resumed are
    replaced: they count as room."""
    left = n_bytes - size_of(run / "checkpoints")
    check_space([Need(run, left, "checkpoints (trainer.keep_checkpoints)", "run.dir")] if left > 0 else [])
