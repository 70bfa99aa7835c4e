"""Folders with pickled weights (pytorch_model.bin) as folders of safetensors. Nothing pickled is executed: torch loads
with weights_only=True, and nothing but tensors is taken."""

import json
import pickle
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from openbook.errors import OpenBookError

# What is converted, and what becomes of the names.
NAMES = {"pytorch_model": "model", "adapter_model": "adapter_model"}
INDEX = ".bin.index.json"
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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        said = str(error).strip().split("\n", 1)[0][:200]
        raise OpenBookError(
            "the pickled weights cannot be read without executing what is in them",
            where=path,
            got=said,
            expected="a state_dict of tensors",
        ) from error
    if not isinstance(content, dict):
        raise OpenBookError("not a state_dict of tensors", where=path, got=type(content).__name__)
    if others := [name for name, value in content.items() if not isinstance(value, Tensor)]:
        raise OpenBookError("not a state_dict of tensors", where=path, got=others[0])
    return {name: value.detach().clone().contiguous() for name, value in content.items()}


def _write_index(path: Path, place: Path) -> None:
    """The index of weights in several files, with the files' new names."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["weight_map"] = {name: _safe_name(file) for name, file in content["weight_map"].items()}
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
