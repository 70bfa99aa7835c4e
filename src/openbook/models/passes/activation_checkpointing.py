"""Less memory for one more forward pass: activations are made again in the backward pass instead of being kept.

Per pass of passages (`recomputed`), this is gradient caching (Gao et al. 2021, "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup"): embeddings first, the loss on them, and then each pass once more with its
gradient. Per layer (`checkpoint_layers`), it is gradient checkpointing (Chen et al. 2016, "Training Deep Nets with
Sublinear Memory Cost"). Either way the same operations run twice on the same numbers and with the same random state,
dropout included, so that gradients are bit for bit those of the plain way (but for a decoder's cross-attention, which
models/attention may compute in another, equally exact way where layers are not checkpointed).
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from openbook.errors import OpenBookError


def recomputed(function: Callable[..., Any], *inputs: Any) -> Any:
    """function(*inputs), of whose work only the results are kept; the backward pass calls it once more.

    What stays in memory of several such calls is their inputs and results, and while gradients flow the activations
    of one call: the backward pass goes through them one after another, the last one first. Gradients of a weight meet
    before they reach it, so that hooks on it, DistributedDataParallel's too, fire once. Calls may hold other such
    calls.
    """
    return checkpoint(function, *inputs, use_reentrant=False)


def checkpoint_layers(model: nn.Module) -> None:
    """From now on keep only the inputs of model's layers while it trains: the small reader's, or a transformers
    model's, wherever it lies inside. Raises OpenBookError for an architecture whose layers cannot."""
    if hasattr(model, "checkpointing"):
        model.checkpointing = True  # type: ignore[assignment]
        return
    layers: list[Any] = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        raise OpenBookError(
            "the model's layers cannot be checkpointed",
            where="trainer.checkpointing",
            got=type(getattr(model, "model", model)).__name__,
            expected="an architecture for which transformers has it",
            action="Set trainer.checkpointing=false.",
        )
    for layer in layers:
        # Not by the model's own method: it would also ask for gradients of frozen word embeddings, and warn of caches.
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = recomputed


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformers model, none of which lies inside another."""
    found: list[nn.Module] = []

    def collect(part: nn.Module) -> None:
        for child in part.children():
            found.append(child) if isinstance(child, GradientCheckpointingLayer) else collect(child)

    collect(model)
    return found
