"""How Lightning writes and reads this project's checkpoints."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from openbook.tracking.checkpoint import read_checkpoint
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
