"""Encoders as DPR's (Karpukhin et al. 2020), the only kind that transformers' RAG asks questions with.

    DPR(x) = W BERT(x)[CLS] + b        or the state itself, without a projection

Scores of DPR have no temperature: a question encoder that is divided by it gives the same doc_scores.
"""

from typing import Any

import torch
from torch import nn
from transformers import BertConfig, DPRConfig, DPRContextEncoder, DPRQuestionEncoder

from openbook.models.encoders import TextEncoder
from openbook.models.linear import Linear
from openbook.models.lora import merged


def why_not_dpr(encoder: TextEncoder) -> str:
    """What of the encoder DPR has no place for; empty where it is DPR's function."""
    model: Any = encoder.model
    if model.config.model_type not in ("bert", "dpr"):
        return f"it is a {model.config.model_type}, DPR a BERT"
    if encoder.pooling != "cls":
        return f"its pooling is {encoder.pooling}, DPR's cls"
    if encoder.normalize:
        return "its embeddings are of length 1, which DPR's are not"
    if len(encoder.head) > 1:
        return f"it has {len(encoder.head)} linear layers, DPR at most one"
    if any(not isinstance(part.activation, nn.Identity) for part in encoder.head):
        return "its linear layer has an activation, DPR's has none"
    return ""


def as_dpr(
    encoder: TextEncoder, kind: type[DPRQuestionEncoder] | type[DPRContextEncoder], scale: float = 1.0
) -> DPRQuestionEncoder | DPRContextEncoder:
    """The encoder as DPR's question or passage encoder, adapters merged, its embeddings times `scale`. The encoder is
    one that `why_not_dpr` has nothing against; a scale, or first numbers only, become a projection."""
    bert = merged(encoder.model)
    known = set(BertConfig().to_dict()) & set(DPRConfig().to_dict()) - {"model_type", "architectures", "_name_or_path"}
    sizes = {key: value for key, value in bert.config.to_dict().items() if key in known}
    weight, bias = _projection(encoder, scale)
    made: Any = kind(DPRConfig(**sizes, projection_dim=0 if weight is None else len(weight)))
    inner = getattr(made, made.base_model_prefix)
    inner.bert_model.load_state_dict(bert.state_dict())
    if weight is not None:
        with torch.no_grad():
            inner.encode_proj.weight.copy_(weight)
            inner.encode_proj.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return made.eval()


def _projection(encoder: TextEncoder, scale: float) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Weight [dim, hidden] and bias [dim] of the projection; None where there is none to make."""
    layers: list[Any] = list(encoder.head)
    hidden = int(encoder.model.config.hidden_size)  # type: ignore[union-attr, arg-type]
    if not layers and scale == 1 and not encoder.dimensions:
        return None, None
    layer = layers[0] if layers else Linear(torch.eye(hidden))
    rows = slice(0, encoder.dim)
    bias = None if layer.bias is None else scale * layer.bias.detach()[rows].cpu()
    return scale * layer.weight.detach()[rows].cpu(), bias
