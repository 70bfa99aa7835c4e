"""Linear layers after an encoder's pooling: sentence-transformers' Dense, DPR's projection, or a new one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openbook.errors import OpenBookError
from openbook.models.pretrained import folder_file, folder_json

# By sentence-transformers' names for them, which are paths of Python classes: looked up here and never imported.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid)
}


class Linear(nn.Module):
    """activation(W x + b), [n, in] -> [n, out]; in fp32 under any autocast and whatever type the weights are cast to,
    for it is the last that happens to an embedding and costs next to nothing."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: str = "Identity"):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias) if bias is not None else None
        self.activation = ACTIVATIONS[activation]()

    @staticmethod
    def of(linear: nn.Linear) -> Linear:
        """torch's layer as this one."""
        return Linear(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())

    def forward(self, pooled: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(pooled.device.type, enabled=False):
            return self.activation(nn.functional.linear(pooled.float(), self.weight.float(), bias))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}"


def read_dense(name: str, path: str, key: str = "retriever") -> Linear:
    """The Dense module of a sentence-transformers folder (or hub name) in its folder `path`. Raises OpenBookError where
    it is not activation(W x + b) of a known activation, or its weights are not there as safetensors."""
    config = folder_json(name, f"{path}/config.json") or {}
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    other = config.get("module_input_name", "sentence_embedding"), config.get("module_output_name")
    embedding = ("sentence_embedding", None)
    if activation not in ACTIVATIONS or config.get("use_residual") or any(one not in embedding for one in other):
        raise OpenBookError(
            "the encoder's Dense module cannot be computed here",
            where=key,
            got=f"{name}/{path}: {activation}{', with a residual' if config.get('use_residual') else ''}",
            expected=f"one of {', '.join(ACTIVATIONS)} of a linear layer on the embedding",
        )
    file = folder_file(name, f"{path}/model.safetensors")
    try:
        weights = load_file(file) if file else {}
    except SafetensorError as error:
        raise OpenBookError("damaged weights", where=key, got=f"{file}: {error}") from error
    if set(weights) != {"linear.weight"} | ({"linear.bias"} if config.get("bias", True) else set()):
        raise OpenBookError(
            "the encoder's Dense module lacks its weights",
            where=key,
            got=f"{name}/{path} with {', '.join(sorted(weights)) or 'no model.safetensors'}",
            expected="linear.weight and the bias that its config.json states",
            action="Save the model with a sentence-transformers of today: pickled weights are not loaded.",
        )
    bias = weights.get("linear.bias")
    return Linear(weights["linear.weight"].float(), None if bias is None else bias.float(), activation)


def write_dense(layer: Linear, folder: Path) -> None:
    """The layer as `read_dense` and sentence-transformers' Dense read it."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = type(layer.activation)
    config = {
        "in_features": layer.weight.shape[1],
        "out_features": layer.weight.shape[0],
        "bias": layer.bias is not None,
        "activation_function": f"{kind.__module__}.{kind.__name__}",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    weights = {f"linear.{name}": value.detach().cpu().contiguous() for name, value in layer.named_parameters()}
    save_file(weights, folder / "model.safetensors")


def new_projection(inputs: int, outputs: int, seed: int) -> Linear:
    """Orthogonal, the same for a seed and a shape, and scaled so that lengths and inner products are kept on average;
    exactly where outputs >= inputs. Two encoders of one dim begin with the same one."""
    weight = torch.empty(outputs, inputs)
    nn.init.orthogonal_(
        weight, gain=max(1.0, math.sqrt(inputs / outputs)), generator=torch.Generator().manual_seed(seed)
    )
    return Linear(weight)
