"""Question and passage encoder: a transformers model, a pooling, and the linear layers that follow it."""

from __future__ import annotations

import copy
import hashlib
import inspect
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from tokenizers import normalizers
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    DPRContextEncoder,
    DPRQuestionEncoder,
)

from openbook.errors import OpenBookError
from openbook.models.attention import use_implementation
from openbook.models.encoder_folder import POOLINGS, is_dpr, lower_cases, read_folder, standalone, write_modules
from openbook.models.linear import Linear, new_projection, read_dense, write_dense
from openbook.models.lora import merged
from openbook.models.passes import packed
from openbook.models.passes.cast_weights import with_weights_cast
from openbook.models.pretrained import (
    OFFSET_POSITIONS,
    drops_out,
    load_weights,
    loading,
    model_config,
    model_folder,
    set_dropout,
)


class TextEncoder(nn.Module):
    """Token ids to one embedding. DPR (Karpukhin et al. 2020) pools the first token, MiniLM the mean, Qwen3-Embedding
    the last.

    pooling: "cls", "mean" or "last". head: linear layers after it. dim: the first numbers of the embedding that are
    used (Matryoshka, Kusupati et al. 2022), 0 for all; with normalize they are made to length 1 again. pads_left:
    masks hide the start of a row.
    """

    def __init__(
        self,
        model: nn.Module,
        pooling: str,
        normalize: bool,
        *,
        head: list[Linear] | None = None,
        dim: int = 0,
        pads_left: bool = False,
    ):
        super().__init__()
        if pooling not in POOLINGS.values():
            raise OpenBookError("not a pooling that is known here", got=pooling, expected="cls, mean or last")
        self.model, self.head = model, nn.Sequential(*(head or []))
        self.pooling, self.normalize, self.dimensions, self.pads_left = pooling, normalize, dim, pads_left
        model.pooler = None  # type: ignore[assignment]  # never used; under DDP a weight without gradient is an error
        # Learned positions count from the first token that is read. RoBERTa's kin see to it by themselves.
        config: Any = model.config if pads_left else None
        takes = "position_ids" in inspect.signature(model.forward).parameters
        self._positions = pads_left and takes and config.model_type not in OFFSET_POSITIONS

    @property
    def dim(self) -> int:
        """Of an embedding."""
        return self.dimensions or self.width

    @property
    def width(self) -> int:
        """Of an embedding before its first numbers are taken."""
        hidden = int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        widths: list[Any] = [part.weight.shape[0] for part in self.head]  # type: ignore[index]
        return [hidden, *widths][-1]

    @property
    def trains(self) -> bool:
        """Whether any of its weights learn; a frozen encoder needs no gradient, no dropout and no refresh."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def has_dropout(self) -> bool:
        """Whether dropout is at work: then embeddings are fit for learning and for nothing else."""
        return drops_out(self)

    def freeze_word_embeddings(self) -> None:
        """Take the table of word vectors out of training; positions and the rest of the model stay in."""
        self.model.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]

    def forward(self, ids: Tensor, mask: Tensor | None, lengths: np.ndarray | None = None) -> Tensor:
        """ids, mask [n, length] -> embeddings [n, dim], fp32 under any autocast; of length 1 when normalize is set.
        Without a mask every id counts. lengths [n]: of sequences that stand one behind the other in ids [total], where
        the model packs (models/passes/packed)."""
        if lengths is not None:
            return self._made(packed.pooled(self.model, ids, lengths, self.pooling))
        more = {}
        if self._positions and mask is not None:
            more["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
        found = with_weights_cast(self.model, partial(self.model, input_ids=ids, attention_mask=mask, **more))
        return self._made(self._pooled(found.last_hidden_state.float(), mask))

    def _made(self, pooled: Tensor) -> Tensor:
        pooled = self.head(pooled)
        if self.dimensions:
            pooled = pooled[:, : self.dimensions]
        return nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled

    def _pooled(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """states [n, length, dim] -> [n, dim]"""
        if self.pooling == "mean":
            if mask is None:
                return states.mean(1)
            weights = mask.unsqueeze(-1).to(states.dtype)
            return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        first = self.pooling == "cls"
        if mask is None or first != self.pads_left:  # the side without padding
            return states[:, 0 if first else -1]
        tokens = mask.sum(1)
        place = states.shape[1] - tokens if first else tokens - 1
        return states[torch.arange(len(states), device=states.device), place]

    @property
    def packs(self) -> bool:
        """Whether `forward` takes sequences without padding here and now."""
        return not self.pads_left and packed.packs(self.model)

    def copied_state(self) -> dict[str, Tensor] | None:
        """The weights as they are, on the CPU; None where they are frozen, for they stay what they are."""
        if not self.trains:
            return None
        return {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}

    def with_state(self, state: dict[str, Tensor] | None) -> TextEncoder:
        """A copy with the weights of `copied_state`; the encoder itself where that was None."""
        if state is None:
            return self
        encoder = copy.deepcopy(self)
        encoder.load_state_dict(state)
        return encoder

    def fingerprint(self) -> str:
        """sha256 over weights and all else that decides an embedding: equal fingerprints give equal embeddings."""
        more = [str(self.dimensions)] if self.dimensions else []
        more += [str(part) for part in self.head]
        digest = hashlib.sha256(" ".join([f"{self.pooling} {self.normalize}", *more]).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load_encoder(
    folder: str,
    pooling: str | None,
    normalize: bool | None,
    dropout: float,
    *,
    dim: int = 0,
    projection: int = 0,
    seed: int = 0,
    pads_left: bool = False,
    dense: bool = True,
) -> TextEncoder:
    """An encoder from a transformers or sentence-transformers folder (safetensors only; nothing is executed from it) or
    a hub name. pooling, normalize: None as the folder states. projection: dim of a new linear layer, made by the seed.
    dense: whether the folder's Dense modules are applied.

    Of a DPR encoder the BERT inside is taken, and its projection where it has one: with pooling "cls" and no
    normalisation that is what DPR computes.
    """
    stated = read_folder(folder)
    config = model_config(folder, "retriever")
    set_dropout(config, dropout)
    config.use_cache = False  # a decoder would keep keys and values for tokens that never come
    head = []
    if is_dpr(config.to_dict()):
        sort: Any = {"DPRQuestionEncoder": DPRQuestionEncoder}.get(config.architectures[0], DPRContextEncoder)
        dpr = load_weights(sort, "encoder", folder, "retriever", config, ignored="pooler")
        inner = getattr(dpr, dpr.base_model_prefix)
        model, head = inner.bert_model, [Linear.of(inner.encode_proj)] if config.projection_dim else []
    else:
        name = (config.architectures or [""])[0]
        half = name if name.endswith("EncoderModel") and hasattr(transformers, name) else ""  # T5's encoder alone
        kind: Any = getattr(transformers, half) if half else AutoModel
        model = load_weights(kind, "encoder", folder, "retriever", config, ignored="pooler")
        model = model.get_encoder() if config.is_encoder_decoder or half else model
        head = [read_dense(folder, path) for path in stated.dense if dense]
    if projection:
        head.append(new_projection(head[-1].weight.shape[0] if head else config.hidden_size, projection, seed))
    use_implementation(model)
    normalize = stated.normalize if normalize is None else normalize
    return TextEncoder(model, pooling or stated.pooling, normalize, head=head, dim=dim, pads_left=pads_left)


def save_encoder(encoder: TextEncoder, tokenizer: Any, folder: Path, prompts: dict[str, str], layout: str) -> None:
    """A folder from which `load_encoder` and `load_tokenizer` make the same embeddings, in the files of
    sentence-transformers; adapters are merged into the weights. prompts: "query" and "document". Raises OpenBookError
    for a model that has no folder of its own (BART's encoder), and where what was written is read otherwise."""
    model = merged(encoder.model)
    standalone(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    dense = [f"{at}_Dense" for at in range(2, 2 + len(encoder.head))]
    for layer, path in zip(encoder.head, dense, strict=True):
        write_dense(layer, folder / path)  # type: ignore[arg-type]
    normalizer = tokenizer.backend_tokenizer.normalizer
    write_modules(
        folder,
        encoder.pooling,
        encoder.normalize,
        dense,
        prompts=prompts,
        dim=encoder.dimensions,
        layout=layout,
        lower_case=bool(normalizer) and normalizer.normalize_str("A") == "a",
    )
    again = load_encoder(str(folder), None, None, 0.0, dim=read_folder(str(folder)).truncate)
    kept = TextEncoder(
        model,
        encoder.pooling,
        encoder.normalize,
        head=cast("list[Linear]", list(encoder.head)),
        dim=encoder.dimensions,
    )
    if again.fingerprint() != kept.fingerprint():
        raise OpenBookError("the encoder was written and is not read back as it was", where=folder)


def load_tokenizer(folder: str, lower_case: bool = True) -> Any:
    """The fast tokenizer beside a model; with lower_case in lower case where a sentence-transformers folder asks for
    that beside it."""
    with loading("tokenizer", folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(model_folder(folder), trust_remote_code=False)
        if len(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)) < 2:  # of a file it could not use
            raise ValueError("it has special tokens only")
        if lower_case and lower_cases(folder):
            backend = tokenizer.backend_tokenizer
            if not backend.normalizer or backend.normalizer.normalize_str("A") != "a":
                rest = [backend.normalizer] if backend.normalizer else []
                backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
        return tokenizer
