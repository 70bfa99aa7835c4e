"""What an encoder's folder states of how its embeddings are made: sentence-transformers' files, or DPR's config.json.

modules.json                         Transformer, Pooling, then Dense modules, then perhaps Normalize
1_Pooling/config.json                which token states become the embedding
config_sentence_transformers.json    prompts, truncate_dim; passage_layout where the folder was written here
sentence_bert_config.json            max_seq_length, do_lower_case
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, BertConfig, BertModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from openbook.config.models import MINILM
from openbook.errors import OpenBookError
from openbook.models.pretrained import folder_json, model_facts

# What sentence-transformers calls the poolings that are read here, and where it looks for a passage's prompt.
POOLINGS = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "lasttoken": "last"}
PASSAGE_PROMPTS = ("document", "passage", "corpus")


@dataclass(frozen=True)
class EncoderFolder:
    """How the embeddings of a folder are made. pooling: "cls", "mean" or "last", or the folder's own word for one that
    is not known here. dense: folders of the linear layers after the pooling. dim: of an embedding, all of it; None
    where config.json does not say. truncate: the first numbers of it that are used, 0 for all. prompts: by name.
    max_tokens: that the encoder was made for, where it is stated. trained_layout: of title and text, where the folder
    was written here."""

    kind: str
    pooling: str
    normalize: bool
    dense: tuple[str, ...] = ()
    dim: int | None = None
    truncate: int = 0
    prompts: Mapping[str, str] | None = None
    max_tokens: int | None = None
    packaged: bool = False
    trained_layout: str = ""

    @property
    def states(self) -> bool:
        """Whether pooling and normalisation are the folder's own statement and not a rule for what states nothing."""
        return self.kind in ("sentence-transformers", "DPR")

    @property
    def layout(self) -> str:
        """How it is given a title and a text: as one text, which is what sentence-transformers trains with; the
        packaged MiniLM as a pair, by which it is measured throughout this project. Of a folder that was written here it
        is what the encoder was trained with."""
        if self.trained_layout:
            return self.trained_layout
        one_text = self.kind in ("sentence-transformers", "decoder") and not self.packaged
        return "joined" if one_text else "pair"

    def prompt(self, names: tuple[str, ...]) -> str:
        """The first of these prompts that is not empty: sentence-transformers adds an empty "document" to all."""
        return next((self.prompts[name] for name in names if name in (self.prompts or {})), "")  # type: ignore[index]


def read_folder(name: str, key: str = "retriever") -> EncoderFolder:
    """What the folder (or hub name) at a config key states. Raises OpenBookError for what cannot be computed here."""
    facts = model_facts(name) or folder_json(name, "config.json") or {}
    modules = folder_json(name, "modules.json")
    if modules is None:
        return _without_modules(facts)
    kinds = [str(one.get("type", "")).rsplit(".", 1)[-1] for one in modules]
    after = kinds[2:-1] if kinds[-1:] == ["Normalize"] else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(after) - {"Dense"}:
        raise OpenBookError(
            "the encoder has modules that cannot be computed here",
            where=key,
            got=f"{name}: {', '.join(kinds)}",
            expected="Transformer, Pooling, any number of Dense, and perhaps Normalize at the end",
        )
    pooling = folder_json(name, f"{modules[1].get('path', '')}/config.json") or {}
    if not pooling.get("include_prompt", True):
        raise OpenBookError(
            "a pooling that leaves the prompt's tokens out cannot be computed here", where=key, got=name
        )
    dense = tuple(str(one.get("path", "")) for one, kind in zip(modules, kinds, strict=True) if kind == "Dense")
    settings = folder_json(name, "config_sentence_transformers.json") or {}
    out = (folder_json(name, f"{dense[-1]}/config.json") or {}).get("out_features") if dense else _hidden(facts)
    return EncoderFolder(
        "sentence-transformers",
        _pooling(pooling),
        kinds[-1] == "Normalize",
        dense,
        out,
        int(settings.get("truncate_dim") or 0),
        {key: text for key, text in (settings.get("prompts") or {}).items() if text},
        _transformer(name, modules).get("max_seq_length") or _longest(folder_json(name, "tokenizer_config.json")),
        name == MINILM,
        next((one for one in ("pair", "joined", "separated") if one == settings.get("passage_layout")), ""),
    )


def write_modules(
    folder: Path,
    pooling: str,
    normalize: bool,
    dense: Sequence[str],
    *,
    prompts: Mapping[str, str],
    dim: int,
    layout: str,
    lower_case: bool,
) -> None:
    """The files beside an encoder's weights that `read_folder` reads, as sentence-transformers names them. dense:
    folders of the linear layers. prompts: "query" and "document". dim: the first numbers that are used, 0 for all.
    layout: of title and text, which sentence-transformers does not know: to it a passage is one text."""
    named = [("Transformer", ""), ("Pooling", "1_Pooling"), *(("Dense", path) for path in dense)]
    if normalize:
        named.append(("Normalize", f"{len(named)}_Normalize"))
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (kind, path) in enumerate(named)
    ]
    mode = {"last": "lasttoken"}.get(pooling, pooling)
    hidden = _hidden(folder_json(str(folder), "config.json") or {})
    sizes = {"word_embedding_dimension": hidden} if hidden else {}
    contents: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": {**sizes, "pooling_mode": mode, "include_prompt": True},
        "sentence_bert_config.json": {"do_lower_case": lower_case},
        "config_sentence_transformers.json": {
            "prompts": dict(prompts),
            "truncate_dim": dim or None,
            "passage_layout": layout,
        },
    }
    for _, path in named:
        (folder / path).mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        (folder / file).write_text(json.dumps(content, indent=2), encoding="utf-8")


def standalone(model: Any) -> Any:
    """The model as one of transformers' classes that AutoModel loads: T5's stack within T5EncoderModel, the BERT of a
    DPR as a BertModel."""
    config, name = model.config, type(model).__name__
    half = getattr(transformers, name.removesuffix("Stack") + "EncoderModel", None) if name.endswith("Stack") else None
    if half is not None:
        with torch.device("meta"):  # every weight of it is the stack's
            whole: Any = half(config)
        whole.encoder.load_state_dict(model.state_dict(), assign=True)
        whole.shared = whole.encoder.get_input_embeddings()
        return whole
    if config.model_type == "dpr":
        known = set(BertConfig().to_dict()) - {"model_type", "architectures", "transformers_version"}
        with torch.device("meta"):
            whole = BertModel(
                BertConfig(**{key: value for key, value in config.to_dict().items() if key in known}),
                add_pooling_layer=False,
            )
        whole.load_state_dict(model.state_dict(), assign=True)
        return whole
    own = AutoModel._model_mapping.get(type(config), None)
    if type(model) not in (own if isinstance(own, tuple) else (own,)):
        raise OpenBookError(
            "the encoder cannot be saved as a folder of its own",
            where=type(model).__name__,
            got=f"a part of {getattr(own, '__name__', config.model_type)}",
            expected="a model that transformers' AutoModel loads by itself",
        )
    return model


def lower_cases(name: str) -> bool:
    """Whether a sentence-transformers folder asks for lower case beside what its tokenizer does."""
    modules = folder_json(name, "modules.json")
    return bool(_transformer(name, modules).get("do_lower_case")) if modules else False


def is_dpr(facts: Mapping[str, Any]) -> bool:
    """By config.json, whether the model is one of DPR's two encoders."""
    return (facts.get("architectures") or [""])[0] in ("DPRQuestionEncoder", "DPRContextEncoder")


def _without_modules(facts: Mapping[str, Any]) -> EncoderFolder:
    if is_dpr(facts):
        return EncoderFolder("DPR", "cls", False, dim=facts.get("projection_dim") or _hidden(facts))
    kind = facts.get("model_type", "")
    decoder = (
        kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and not facts.get("is_encoder_decoder")
        and facts.get("is_causal", True)
    )
    return EncoderFolder("decoder" if decoder else "plain", "last" if decoder else "mean", True, dim=_hidden(facts))


def _transformer(name: str, modules: list[dict[str, Any]]) -> dict[str, Any]:
    """sentence_bert_config.json, which stands beside the weights."""
    return folder_json(name, f"{modules[0].get('path', '')}/sentence_bert_config.json".lstrip("/")) or {}


def _longest(tokenizer: dict[str, Any] | None) -> int | None:
    """Where newer folders state it; a tokenizer without a limit says so by a huge number."""
    most = (tokenizer or {}).get("model_max_length")
    return int(most) if most and most < 1e9 else None


def _pooling(config: Mapping[str, Any]) -> str:
    """Older folders have a flag for each mode, newer ones name it; several are concatenated."""
    prefix = "pooling_mode_"
    modes = config.get("pooling_mode") or [
        key.removeprefix(prefix) for key, on in config.items() if key.startswith(prefix) and on
    ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    return " and ".join(POOLINGS.get(mode, mode) for mode in modes) or "mean"


def _hidden(facts: Mapping[str, Any]) -> int | None:
    """The dim of token states; T5 and BART call it d_model, GPT-2 n_embd, DistilBERT dim."""
    return next((int(facts[key]) for key in ("hidden_size", "d_model", "n_embd", "dim") if facts.get(key)), None)
