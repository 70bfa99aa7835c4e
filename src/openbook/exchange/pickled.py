"""Folders with pickled weights (pytorch_model.bin) as folders of safetensors. Nothing pickled is executed: torch loads
with weights_only=True, and nothing but tensors is taken."""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from openbook.errors import OpenBookError

# What is converted, and what becomes of the names.
NAMES = {"pytorch_model": "model", "adapter_model": "adapter_model"}
INDEX = ".bin.index.json"
_PICKLES = (b"PK\x03\x04", b"\x80")  # a zip as torch writes it, and a bare pickle
_NEVER = {".py", ".pkl", ".pickle", ".pt", ".pth", ".bin", ".msgpack", ".h5", ".ot", ".onnx", ".ckpt"}


def is_pickled(folder: Path) -> bool:
    """Whether a folder, or one in it, has weights as pickles."""
    return any(_safe_name(path.name) for path in folder.rglob("*.bin"))


def converted(source: Path, target: Path) -> list[str]:
    """Copy a model's folder with its weights as safetensors; returns the files that were left behind: code, optimizer
    states and weights of other frameworks. OpenBookError for pickles that hold more than tensors."""
    left = []
    for path in sorted(one for one in source.rglob("*") if one.is_file()):
        relative = path.relative_to(source)
        if any(part.startswith(".") for part in relative.parts):
            continue
        place = target / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        name = _safe_name(path.name)
        beside = path.with_name(name or path.name)
        if name and beside.is_file():
            continue  # both are there: the safe one is copied
        if name and path.name.endswith(INDEX):
            _write_index(path, place.with_name(name))
        elif name:
            save_file(read_pickled(path), place.with_name(name), metadata={"format": "pt"})
        elif path.suffix in _NEVER:
            left.append(str(relative))
        else:
            shutil.copyfile(path, place)
    return left


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state_dict, none of which shares memory with another."""
    with open(path, "rb") as file:
        begins = file.read(4)
    if not begins.startswith(_PICKLES):
        raise OpenBookError(
            "not a file of pickled weights",
            where=path,
            got=f"{path.stat().st_size:,} bytes that begin with {begins!r}",
            action="It is damaged, or a pointer of Git LFS in the file's place: `git lfs pull` fetches the file.",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: by what is in it, and by where it was cut off
        found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        said = found[1] if found else str(error).strip().split("\n", 1)[0].split(" In PyTorch", 1)[0]
        raise OpenBookError(
            "the pickled weights are damaged, or cannot be read without executing what is in them",
            where=path,
            got=f"{type(error).__name__}: {said[:200]}",
            expected="a state_dict of tensors",
            action="Copy the file again if it may have been cut off.",
        ) from error
    if not isinstance(content, dict):
        raise OpenBookError("not a state_dict of tensors", where=path, got=type(content).__name__)
    if others := [name for name, value in content.items() if not isinstance(value, Tensor)]:
        raise OpenBookError("not a state_dict of tensors", where=path, got=others[0])
    if others := [name for name, value in content.items() if value.layout != torch.strided]:
        raise OpenBookError("a tensor that safetensors cannot hold", where=path, got=f"{others[0]}, sparse")
    return {name: value.detach().clone().contiguous() for name, value in content.items()}


def _write_index(path: Path, place: Path) -> None:
    """The index of weights in several files, with the files' new names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["weight_map"] = {name: _safe_name(file) for name, file in content["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OpenBookError(
            "not an index of weights in several files",
            where=path,
            got=f"{type(error).__name__}: {error}",
            expected="JSON with weight_map, the file of each weight",
        ) from error
    place.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _safe_name(name: str) -> str:
    """The name of the safetensors file for a file of pickled weights or their index; empty for any other file."""
    end = INDEX if name.endswith(INDEX) else ".bin"
    if not name.endswith(end):
        return ""
    stem, _, number = name.removesuffix(end).partition("-")
    if stem not in NAMES:
        return ""
    return NAMES[stem] + (f"-{number}" if number else "") + end.replace(".bin", ".safetensors")
