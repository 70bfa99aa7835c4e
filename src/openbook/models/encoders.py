"""Question and passage encoder: a transformers model, a pooling, and nothing else."""

from __future__ import annotations

import copy
import hashlib
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, DPRContextEncoder, DPRQuestionEncoder

from openbook.errors import OpenBookError
from openbook.models.attention import use_implementation
from openbook.models.cast_weights import with_weights_cast
from openbook.models.pretrained import load_weights, loading, model_folder


class TextEncoder(nn.Module):
    """Token ids to one embedding. DPR (Karpukhin et al. 2020) pools the first token, MiniLM the mean."""

    def __init__(self, model: nn.Module, pooling: Literal["mean", "cls"], normalize: bool):
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.normalize = normalize
        model.pooler = None  # type: ignore[assignment]  # never used; under DDP a weight without gradient is an error

    @property
    def dim(self) -> int:
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @property
    def trains(self) -> bool:
        """Whether any of its weights learn; a frozen encoder needs no gradient, no dropout and no refresh."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def has_dropout(self) -> bool:
        """Whether dropout is at work: then embeddings are fit for learning and for nothing else."""
        return any(isinstance(part, nn.Dropout) and part.p > 0 and part.training for part in self.modules())

    def freeze_word_embeddings(self) -> None:
        """Take the table of word vectors out of training; positions and the rest of the model stay in."""
        self.model.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """ids, mask [n, length] -> embeddings [n, dim], fp32 under any autocast; of length 1 when normalize is set.
        Without a mask every id counts."""
        found = with_weights_cast(self.model, partial(self.model, input_ids=ids, attention_mask=mask))
        states = found.last_hidden_state.float()
        if self.pooling == "cls":
            pooled = states[:, 0]
        elif mask is None:
            pooled = states.mean(1)
        else:
            weights = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        return nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled

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
        """sha256 over weights and pooling: equal fingerprints give equal embeddings."""
        digest = hashlib.sha256(f"{self.pooling} {self.normalize}".encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load_encoder(folder: str, pooling: Literal["mean", "cls"], normalize: bool, dropout: float) -> TextEncoder:
    """An encoder from a transformers folder (safetensors only; nothing is executed from it) or a hub name.

    Of a DPR encoder the BERT inside is taken: with pooling "cls" and no normalisation it is what DPR computes.
    """
    path = model_folder(folder)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
    config.update({name: dropout for name in names if hasattr(config, name)})
    kinds: dict[str, Any] = {"DPRQuestionEncoder": DPRQuestionEncoder, "DPRContextEncoder": DPRContextEncoder}
    kind = kinds.get((getattr(config, "architectures", None) or [""])[0])
    model = load_weights(kind or AutoModel, "encoder", folder, "retriever", config, ignored="pooler")
    if config.is_encoder_decoder:
        model = model.get_encoder()
    if kind is not None:
        if config.projection_dim:
            raise OpenBookError(
                "a DPR encoder with a projection cannot be read",
                where=folder,
                got=f"projection_dim {config.projection_dim}",
                expected="0",
            )
        model = getattr(model, model.base_model_prefix).bert_model
    use_implementation(model)
    return TextEncoder(model, pooling, normalize)


def load_tokenizer(folder: str) -> Any:
    """The fast tokenizer beside a model."""
    with loading("tokenizer", folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(model_folder(folder), trust_remote_code=False)
        if len(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)) < 2:  # of a file it could not use
            raise ValueError("it has special tokens only")
        return tokenizer
