"""What a generator's folder says of itself: whether it is decoder-only, and what its answers end with."""

from typing import Any

from transformers import GenerationConfig

from openbook.config.models import MINILM
from openbook.models.pretrained import model_config, model_facts, model_folder


def eos_ids(name: str) -> tuple[int, ...]:
    """The tokens that a generator's config.json or generation_config.json says its answers end with."""
    try:
        said: list[Any] = [GenerationConfig.from_pretrained(model_folder(name)).eos_token_id]
    except OSError:  # there is none
        said = []
    said.append(getattr(model_config(name), "eos_token_id", None))
    flat = [one for eos in said for one in (eos if isinstance(eos, list) else [eos]) if one is not None]
    return tuple(dict.fromkeys(flat))


def is_decoder_only(name: str) -> bool:
    """Whether a generator's folder or hub name holds a causal language model."""
    facts = model_facts(name)
    if name == MINILM or facts.get("model_type") == "minilm_reader":
        return False
    if not facts:
        facts = model_config(name).to_dict()
    kinds = facts.get("architectures") or []
    return not facts.get("is_encoder_decoder") and any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds)
