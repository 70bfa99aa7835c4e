"""Checkpoints that are complete or absent, and that execute no code when loaded."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor, nn

from openbook.errors import OpenBookError
from openbook.utils.atomic import replacing


class WholeCheckpoints(TorchCheckpointIO):
    """Writes atomically: a kill at any moment leaves either the old checkpoint or the new one.

    Lightning stages in $TMPDIR; if that is another file system, the move can be interrupted halfway.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(path)) as new, open(new, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        return read_checkpoint(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors and plain values only, loaded without executing code."""
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise OpenBookError(
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: checkpoints could execute code", action="Unset it."
        )
    path = Path(path)
    if not path.is_file():
        raise OpenBookError("no such checkpoint", where=path, action=_others(path))
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise OpenBookError(
            "the checkpoint is damaged", where=path, got=type(error).__name__, action=_others(path)
        ) from error


def check_weights(module: nn.Module, path: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """OpenBookError where the checkpoint's weights (or those of them that are given) are not those of the module."""
    theirs = read_checkpoint(path)["state_dict"] if weights is None else weights
    mine = module.state_dict()
    shapes = [{name: list(value.shape) for name, value in side.items()} for side in (mine, theirs)]
    misfits = [name for name in sorted({*mine, *theirs}) if shapes[0].get(name) != shapes[1].get(name)]
    if misfits:
        name = misfits[0]
        raise OpenBookError(
            "the run's weights do not fit this configuration",
            where=path,
            got=f"{len(misfits)} that differ, the first {name}: {shapes[1].get(name, 'missing')}",
            expected=f"{shapes[0].get(name, 'no such weight')}, the models that the run has trained",
            action="Leave the keys of objective and models as they were.",
        )


def _others(path: Path) -> str:
    """The most recent other checkpoints of the folder."""
    others = sorted(set(path.parent.glob("*.ckpt")) - {path}, key=lambda other: -other.stat().st_mtime)
    names = [other.name for other in others[:3]]
    return f"Newest others there: {', '.join(names)}." if names else "There is no other checkpoint in that folder."
