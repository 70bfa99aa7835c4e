"""metrics.csv as a Lightning logger that a resumed run continues, and checkpoints that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from openbook.errors import OpenBookError


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the target, syncs, renames: a kill at any moment leaves the old checkpoint or the new one.

    Lightning's own way stages in $TMPDIR; where that is another file system the move can be cut in the middle.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            with open(new, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        return read_checkpoint(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content; tensors and plain values only, nothing in it is executed."""
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


def _others(path: Path) -> str:
    """What to do instead: the newest other checkpoints of the folder."""
    found = sorted(path.parent.glob("*.ckpt"), key=lambda other: -other.stat().st_mtime)
    names = [other.name for other in found if other != path][:3]
    return f"Newest others there: {', '.join(names)}." if names else "There is no other checkpoint in that folder."
