"""LoRA adapters (Hu et al. 2021) as peft's folders, out of a model that was trained here and into one that will be.

adapter_config.json, adapter_model.safetensors     base_model.model.<layer>.lora_A.weight [rank, in], lora_B.weight
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from openbook.config.models import MINILM, LoraConfig
from openbook.errors import OpenBookError
from openbook.models.lora import ALL, has_adapters
from openbook.utils.console import say
from openbook.utils.outside import is_hub_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BEFORE, _NAME = "base_model.model.", ".default"  # what peft puts around the names of layers


# Keys of adapter_config.json that do not change what W + scale B A is; any other that says something is refused, for
# peft knows ever more of them.
_PLAIN = frozenset(
    """peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules
    exclude_modules lora_alpha lora_dropout fan_in_fan_out bias use_rslora layers_to_transform layers_pattern
    init_lora_weights eva_config megatron_core qalora_group_size runtime_config ensure_weight_tying""".split()
)
# How A and B began where W was left alone; pissa, olora and their like take from W what they put into A and B.
_STARTS = (True, False, "gaussian", "orthogonal", "eva")


def is_adapter_folder(name: str) -> bool:
    """Whether a folder holds adapters instead of a model."""
    return (Path(name) / CONFIG).is_file()


def read_adapter_config(folder: str, key: str) -> dict[str, Any]:
    """adapter_config.json of a folder at a config key. OpenBookError for adapters that are not plain LoRA, or whose
    weights are not safetensors."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OpenBookError("damaged JSON", where=path, got=error, action="Copy the file again.") from error
    kind = str(config.get("peft_type"))
    extras = [one for one, value in config.items() if value and one not in _PLAIN]
    extras += ["bias"] if config.get("bias", "none") != "none" else []
    start = config.get("init_lora_weights", True)
    extras += [f"init_lora_weights {start!r}"] if start not in _STARTS else []
    if kind != "LORA" or extras:
        raise OpenBookError(
            "adapters of a kind that is not read here",
            where=f"{key}: {path}",
            got=f"{kind} with {', '.join(extras)}" if extras else kind,
            expected="LORA, and nothing trained beside the adapters",
            action="Merge them with peft's merge_and_unload, and start from the model's folder.",
        )
    if not (Path(folder) / WEIGHTS).is_file():
        raise OpenBookError(
            "the adapters' weights are missing",
            where=f"{key}: {folder}",
            expected=WEIGHTS,
            action=f"`openbook import {folder} OUT` converts adapter_model.bin.",
        )
    return config


def base_of(folder: str, key: str, named: str) -> str:
    """The model under a folder's adapters, "" where it states none. named: in the configuration; it is taken where the
    folder states a path of another machine."""
    base = str(read_adapter_config(folder, key).get("base_model_name_or_path") or "")
    if base and named not in (MINILM, base) and not (is_hub_name(base) or Path(base).exists()):
        say(f"warning: the adapters of {folder} were trained over {base}, which is not here: {named} is taken for it")
        return named
    return base


def save_adapters(model: Any, settings: LoraConfig, base: str, folder: Path, task: str | None) -> None:
    """A model's adapters as peft's folder over `base`, the folder or hub name of the weights under them. task: peft's
    name of it (SEQ_2_SEQ_LM, CAUSAL_LM), None for encoders."""
    from peft import LoraConfig as PeftConfig

    targets = [name.strip() for name in settings.targets.split(",") if name.strip()]
    alpha: Any = settings.alpha or 2 * settings.rank
    PeftConfig(
        r=settings.rank,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules=sorted({name.split(".lora_")[0] for name in _adapters(model)}) if ALL in targets else targets,
        base_model_name_or_path=base,
        task_type=task,
        inference_mode=True,
    ).save_pretrained(str(folder))
    weights = {_BEFORE + name.replace(_NAME, ""): value for name, value in _adapters(model).items()}
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / WEIGHTS)


def load_adapters(model: Any, settings: LoraConfig, folder: str, key: str) -> None:
    """Adapters of a folder into a model: into its own where it has some of the same shape and scale, otherwise added to
    its weights. OpenBookError where they are other layers' or of other shapes."""
    config = read_adapter_config(folder, key)
    try:
        found = load_file(Path(folder) / WEIGHTS)
    except SafetensorError as error:
        raise OpenBookError("damaged weights", where=f"{folder}/{WEIGHTS}", got=error) from error
    theirs = {name.removeprefix(_BEFORE): value for name, value in found.items()}
    if config.get("use_rslora"):
        scale = config["lora_alpha"] / config["r"] ** 0.5
    else:
        scale = config["lora_alpha"] / config["r"]
    if has_adapters(model):
        _into_adapters(model, settings, theirs, scale, f"{key}: {folder}")
    else:
        _into_weights(model, theirs, scale, f"{key}: {folder}")


def _into_adapters(model: Any, settings: LoraConfig, theirs: dict[str, Tensor], scale: float, where: str) -> None:
    mine = {name.replace(_NAME, ""): value for name, value in _adapters(model).items()}
    own_scale = (settings.alpha or 2 * settings.rank) / settings.rank
    if own_scale != scale:
        raise OpenBookError(
            "the adapters to start from have another scale, alpha / rank", where=where, got=own_scale, expected=scale
        )
    wrong = [name for name in sorted({*mine, *theirs}) if _shape(mine.get(name)) != _shape(theirs.get(name))]
    if wrong:
        raise OpenBookError(
            "the adapters to start from are others",
            where=where,
            got=f"{len(wrong)} that differ, first {wrong[0]}: {_shape(mine.get(wrong[0]))}",
            expected=_shape(theirs.get(wrong[0])),
            action="Set lora.rank and lora.targets as in its adapter_config.json, or lora.rank=0 to merge them.",
        )
    with torch.no_grad():
        for name, value in mine.items():
            value.copy_(theirs[name])


def _into_weights(model: Any, theirs: dict[str, Tensor], scale: float, where: str) -> None:
    """W + scale B A, all of it checked before anything is added."""
    others = [name for name in sorted(theirs) if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if others:
        raise OpenBookError("weights beside the adapters", where=where, got=others[0], expected="lora_A and lora_B")
    layers = {name.rsplit(".lora_", 1)[0] for name in theirs}
    parts = dict(model.named_modules())
    changes: list[tuple[Tensor, Tensor]] = []
    for layer in sorted(layers):
        pair = [theirs.get(f"{layer}.lora_{side}.weight") for side in "BA"]
        part = parts.get(layer)
        weight = getattr(part, "weight", None)
        change = None if pair[0] is None or pair[1] is None else scale * (pair[0].double() @ pair[1].double())
        if change is not None and isinstance(part, Conv1D):  # GPT-2's, which keeps W transposed
            change = change.T
        if weight is None or change is None or weight.shape != change.shape:
            raise OpenBookError(
                "the adapters to start from are of another model",
                where=where,
                got=f"{layer}: {'no such layer' if weight is None else list(weight.shape)}",
                expected=f"a layer for lora_B {_shape(pair[0])} and lora_A {_shape(pair[1])}",
                action="Set the model's key to base_model_name_or_path of its adapter_config.json.",
            )
        changes.append((weight, change))
    with torch.no_grad():
        for weight, change in changes:
            weight.add_(change.to(weight))


def _adapters(model: Any) -> dict[str, Tensor]:
    """The adapters' own weights by name."""
    return {name: value for name, value in model.named_parameters() if ".lora_" in name}


def _shape(weight: Tensor | None) -> str:
    return "nothing" if weight is None else str(list(weight.shape))
