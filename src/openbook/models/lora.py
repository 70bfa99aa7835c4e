"""Low-rank adapters (LoRA; Hu et al. 2021) through peft, on generators and encoders.

    W x  becomes  W x + alpha / rank * B A x        A [rank, in] random, B [out, rank] 0, W frozen

Adapters are all that is trained and all that a state_dict of the model holds, beside one number that stands for the
weights under them: so checkpoints, copies for a refresh and what a resumed run loads are adapters alone, and adapters
of other weights are refused. A fingerprint over the state_dict covers the weights by that number.
"""

import copy
import hashlib
import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from openbook.config.models import LoraConfig
from openbook.errors import OpenBookError
from openbook.utils.console import say

ALL = "all-linear"
BASE = "base_fingerprint"  # the buffer that stands for the frozen weights and alpha / rank: a sha256, as 32 numbers


def add_adapters(model: Any, settings: LoraConfig, where: str, seed: int) -> None:
    """Freeze a transformers model and put adapters into its linear layers; nothing where the rank is 0. where: the key
    of the settings. seed: of their first weights. OpenBookError where a target is no layer of the model."""
    if not settings.rank:
        return
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    targets = [name.strip() for name in settings.targets.split(",") if name.strip()]
    names = [name for name, part in model.named_modules() if hasattr(part, "weight") and name]
    unmatched = [one for one in targets if one != ALL and not any(f".{name}".endswith(f".{one}") for name in names)]
    if unmatched:
        layers = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
        linear = sorted({name.rsplit(".", 1)[-1] for name in layers})
        raise OpenBookError(
            "the model has no such layer",
            where=f"{where}.targets",
            got=", ".join(unmatched),
            expected=f"{ALL}, or some of {', '.join(linear)}",
        )
    fingerprint = _fingerprint(model)
    alpha: Any = settings.alpha or 2 * settings.rank  # peft says int, and takes any number
    config = PeftConfig(
        r=settings.rank,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules=ALL if ALL in targets else targets,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and any(head is part for part, _ in _adapted(model)):
        raise OpenBookError(
            "the vocabulary head cannot have an adapter",
            where=f"{where}.targets",
            got=settings.targets,
            expected="layers below the head, whose weight the loss reads as it is",
        )
    scaled = hashlib.sha256(bytes(fingerprint.tolist()) + f"{alpha / settings.rank}".encode()).digest()
    model.register_buffer(BASE, torch.tensor(list(scaled), dtype=torch.uint8))
    model._weights_alone = fingerprint  # what checkpoints of before have as BASE
    model.register_state_dict_post_hook(_adapters_alone)
    model.register_load_state_dict_pre_hook(_with_base)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    whole = sum(value.numel() for value in model.parameters())
    say(
        f"{where}: {trained:,} of {whole:,} weights are trained, adapters of rank {settings.rank} on "
        f"{len(_adapted(model))} layers"
    )


def quantization(kind: str) -> BitsAndBytesConfig | None:
    """transformers' settings for weights under adapters by generator.quantize: 8 bits (Dettmers et al. 2022), or 4 bits
    of NF4 that are multiplied in bf16 (Dettmers et al. 2023, QLoRA)."""
    if kind == "none":
        return None
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it would tell of its types in every pass
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def has_adapters(model: nn.Module) -> bool:
    return hasattr(model, BASE)


def merged(model: Any) -> Any:
    """A copy of the model with its adapters added to the weights under them, as any transformers model is; the model
    itself where it has none."""
    if not has_adapters(model):
        return model
    if getattr(model, "is_quantized", False):
        raise OpenBookError(
            "adapters cannot be merged into quantised weights without loss",
            where="generator.quantize",
            expected="weights that were loaded whole",
            action="Load the run with generator.quantize=none, which answers a little differently.",
        )
    whole = copy.deepcopy(model)
    whole._state_dict_hooks.clear()
    whole._load_state_dict_pre_hooks.clear()
    delattr(whole, BASE)
    if any(value.dtype == torch.bfloat16 for value in whole.parameters()):
        whole.float()  # weights that were held in bf16 would round what adapters add to them
    for part, name in _adapted(whole):
        part.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        setattr(whole.get_submodule(parent), own, part.get_base_layer())
    whole.requires_grad_(True)
    return whole


def _adapted(model: nn.Module) -> list[tuple[Any, str]]:
    from peft.tuners.lora import LoraLayer

    return [(part, name) for name, part in model.named_modules() if isinstance(part, LoraLayer)]


def _is_adapter(name: str) -> bool:
    return ".lora_" in name or name == BASE


def _adapters_alone(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """What `state_dict` of a model with adapters leaves out."""
    for name in [name for name in state if name.startswith(prefix) and not _is_adapter(name.removeprefix(prefix))]:
        del state[name]


def _with_base(module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """What `load_state_dict` is given: the adapters, and the model's own weights under them."""
    kept = state.get(prefix + BASE)
    known = (getattr(module, BASE).cpu(), module._weights_alone)
    if kept is not None and not any(torch.equal(kept.cpu(), one) for one in known):
        raise OpenBookError(
            "the adapters belong to other weights than those of the model's folder, or to another alpha",
            where=getattr(module.config, "_name_or_path", "") or type(module).__name__,
            got=f"weights {_short(getattr(module, BASE))}",
            expected=f"weights {_short(kept)}, by which the adapters were trained",
            action="Put the folder back as it was when the run was started, and lora.alpha and lora.rank.",
        )
    for path, part in module.named_modules(remove_duplicate=False):
        for name, value in (part._parameters | part._buffers).items():
            whole = f"{path}.{name}" if path else name
            if value is not None and name not in part._non_persistent_buffers_set and not _is_adapter(whole):
                state[prefix + whole] = value.detach()


def _fingerprint(model: nn.Module) -> Tensor:
    """sha256 [32] over names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _short(fingerprint: Tensor) -> str:
    return bytes(fingerprint.tolist()).hex()[:12]
