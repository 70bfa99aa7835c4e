"""Checkpoints that are complete or absent, of which damage is seen, and that execute no code when loaded.

A checkpoint is a zip file of one entry a tensor, each with a CRC-32, which torch writes and does not look at when it
loads: a flipped bit or a page of zeros would load as other weights.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openbook.errors import OpenBookError
from openbook.utils.console import say

if TYPE_CHECKING:
    from torch import Tensor, nn


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors and plain values only, loaded without executing code."""
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise OpenBookError(
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set: checkpoints could execute code", action="Unset it."
        )
    path = Path(path)
    if not path.is_file():
        raise OpenBookError("no such checkpoint", where=path, action=_others(path))
    if found := damage(path):
        raise OpenBookError("the checkpoint is damaged", where=path, got=found, action=_others(path))
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise OpenBookError(
            "the checkpoint cannot be loaded", where=path, got=type(error).__name__, action=_others(path)
        ) from error


def damage(path: Path) -> str:
    """What is wrong with the bytes of a checkpoint; empty where they are those that were written. Read once for every
    state of the file."""
    state = path.stat()
    return _damage(path, state.st_size, state.st_mtime_ns)


@cache
def _damage(path: Path, size: int, written: int) -> str:
    try:
        with zipfile.ZipFile(path) as entries:
            first = entries.testzip()
        import torch

        torch._C.PyTorchFileReader(str(path))  # which is stricter with the archive's last record; nothing is unpickled
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        return str(error) or type(error).__name__
    return f"other bytes than were written in {first}" if first else ""


def older(last: Path) -> list[Path]:
    """The checkpoints before the last one that are kept, newest first: last-1.ckpt, last-2.ckpt and so on."""
    numbered = {path.stem.rpartition("-")[2]: path for path in last.parent.glob(f"{last.stem}-*{last.suffix}")}
    return [numbered[number] for number in sorted(filter(str.isdigit, numbered), key=int)]


def newest_sound(last: Path) -> Path:
    """The newest of the last checkpoints that is as it was written; damaged ones are named. `last` itself where there
    is none at all. OpenBookError where all are damaged."""
    there = [path for path in (last, *older(last)) if path.is_file()]
    found = {path: damage(path) for path in there}
    sound = next((path for path in there if not found[path]), None)
    if sound is None and there:
        raise OpenBookError(
            "every checkpoint of the run is damaged",
            where=last.parent,
            got="; ".join(f"{path.name}: {what}" for path, what in found.items()),
            action="Copy one back from where it is kept, or train again.",
        )
    for path in there[: there.index(sound)] if sound else ():
        say(f"warning: {path} is damaged ({found[path]}): {sound and sound.name} is used instead")
    return sound or last


def keep_last(last: Path, n: int) -> None:
    """Make room for a new last checkpoint: the one there stays as last-1.ckpt and so on, n with the new one. At no
    moment is there none."""
    kept = [last, *(last.with_name(f"{last.stem}-{number}{last.suffix}") for number in range(1, n))]
    for path in older(last):
        if path not in kept:
            path.unlink()
    for newer, path in reversed(list(pairwise(kept))) if last.is_file() else ():
        if newer == last:
            path.unlink(missing_ok=True)
            try:
                os.link(last, path)
            except OSError:  # a file system without links
                os.replace(last, path)
        elif newer.is_file():
            os.replace(newer, path)


def set_aside_damaged(last: Path, sound: Path) -> None:
    """Rename the checkpoints that are newer than the sound one, so that none of them takes its place."""
    for path in (last, *older(last)):
        if path == sound:
            break
        if path.is_file():
            path.rename(path.with_name(path.name + ".damaged"))


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
