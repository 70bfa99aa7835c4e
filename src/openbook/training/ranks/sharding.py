"""A generator's layers in parts, one on each rank, beside encoders that every rank has whole (FSDP2: Zhao et al. 2023,
"PyTorch FSDP", and torch's fully_shard).

A rank keeps 1 / ranks of each layer's weights, gradients and optimizer state. For a layer's forward and backward pass
the parts are put together, and its gradient is averaged over the ranks while it is parted again. Embeddings and head
stay whole: the fused loss reads the head outside of any layer. What is whole is averaged by DistributedDataParallel,
which is told to leave the parts alone.

Putting together is something that all ranks do at the same time: they must run the layers equally often. In training
all contexts of a batch are one pass, on every rank; for answers, whose number of tokens nobody knows before, every rank
holds the whole generator until the evaluation is over.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from openbook.errors import OpenBookError
from openbook.models.passes.activation_checkpointing import layers_of
from openbook.utils.distributed import sum_over_ranks


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that is in parts, sharing its memory; any other tensor itself."""
    if not hasattr(tensor, "to_local"):
        return tensor
    with torch.no_grad():
        part: Tensor = tensor.to_local()
    return part


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def shard_layers(generator: Any, mesh: DeviceMesh) -> None:
    """Part the layers of a Seq2SeqGenerator or DecoderOnlyGenerator over the mesh, on whose device they then are; what
    is parted already stays. All ranks call this together, with the same weights. OpenBookError for a model without
    layers that are known as such, or with layers that share weights."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    model: Any = getattr(generator, "model", None)
    layers = [] if model is None else layers_of(model)
    if not layers:
        raise OpenBookError(
            "the model has no layers that could be in parts",
            where="generator.sharded",
            got=type(generator if model is None else model).__name__,
            expected="an architecture whose layers transformers can checkpoint",
            action="Set generator.sharded=false.",
        )
    if isinstance(layers[0], FSDPModule):
        return
    owners = [id(value) for layer in layers for value in layer.parameters()]
    outside = {id(value) for value in model.parameters()} - set(owners)
    if len(owners) != len(set(owners)) or not outside:
        raise OpenBookError(
            "the model's layers share weights with each other",
            where="generator.sharded",
            got=type(model).__name__,
            expected="layers of their own weights",
            action="Set generator.sharded=false.",
        )
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # Over the layers a root, by which the next layer's parts are put together while one computes.
    seq2seq = bool(getattr(model.config, "is_encoder_decoder", False))
    for root in (model.get_encoder(), model.get_decoder()) if seq2seq else (model.base_model,):
        whole = {value for value in root.parameters() if not is_sharded(value)}
        fully_shard(root, mesh=mesh, reshard_after_forward=True, ignored_params=whole)


def hold_whole(generator: nn.Module, whole: bool) -> None:
    """Put all layers together on every rank, or part them again."""
    with torch.inference_mode(False), torch.no_grad():  # memory that the next training step uses again
        for part in _parts(generator):
            part.set_reshard_after_forward(not whole, recurse=False)
            _ = part.unshard() if whole else part.reshard()


def into_parts(values: Mapping[str, Any], like: Mapping[str, Tensor]) -> dict[str, Any]:
    """values with this rank's parts of what is whole in `values` and in parts in `like`, by names."""
    from torch.distributed.tensor import distribute_tensor

    made = dict(values)
    for name, value in like.items():
        given = made.get(name)
        if is_sharded(value) and isinstance(given, Tensor) and not is_sharded(given) and given.shape == value.shape:
            mesh, placements = value.device_mesh, value.placements  # type: ignore[attr-defined]
            # Every rank has read the whole: each takes its own part, and nothing is sent.
            made[name] = distribute_tensor(given.to(mesh.device_type), mesh, placements, src_data_rank=None)
    return made


def from_parts(values: Any, keep: bool) -> Any:
    """Nested dictionaries with every tensor whole again, in RAM, on ranks that keep it. All ranks call this
    together."""
    if isinstance(values, Mapping):
        return {name: from_parts(value, keep) for name, value in values.items()}
    if not isinstance(values, Tensor) or not is_sharded(values):
        return values
    whole = values.detach().full_tensor()  # type: ignore[attr-defined]
    return whole.cpu() if keep else None


def clip_grad_norm(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """The norm of all gradients, which are scaled where it is above the limit; of parts, the squares of all ranks are
    added up."""
    trained = [value for value in parameters if value.grad is not None]
    gradients = [value.grad for value in trained if value.grad is not None]
    if not any(map(is_sharded, gradients)):
        return nn.utils.clip_grad_norm_(trained, limit)
    squares = [torch.zeros((), device=local(gradients[0]).device) for _ in range(2)]
    for gradient in gradients:
        squares[is_sharded(gradient)] += local(gradient).float().square().sum()
    norm = (squares[0] + sum_over_ranks(squares[1])).sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        local(gradient).mul_(scale)
    return norm


def _parts(generator: nn.Module) -> Iterator[Any]:
    from torch.distributed.fsdp import FSDPModule

    return (part for part in generator.modules() if isinstance(part, FSDPModule))
