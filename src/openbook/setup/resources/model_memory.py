"""What models, optimizer and activations take on one card, and which cards that fits.

Weights, gradients and moments are counted, each in its own type, from the models as they are loaded: bf16, frozen
weights under adapters, weights in fewer bits, moments in 8 bits and layers in parts over the ranks are as they will be.
Activations are measured: what autograd keeps of one forward pass over a batch of the training questions. Not counted is
what is gone again at once: logits of a chunk, a layer that is computed again, workspace of the libraries.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openbook.config.models import MINILM
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.models.passes.activation_checkpointing import layers_of
from openbook.utils.host_memory import human

CARDS = (24, 40, 80)  # GiB
ROOM = 0.9  # of a card, which a run shall be planned with

# bitsandbytes: tensors of fewer numbers keep moments in 32 bits; others have two of 8 bits and, for each block of 256,
# two numbers in 32.
LEAST_8BIT, BLOCK = 4096, 256


@dataclass(frozen=True)
class PartMemory:
    """Bytes on one rank. whole: weights while the layers are put together for answers, where they are in parts."""

    name: str
    weights: int
    gradients: int
    moments: int
    whole: int


@dataclass(frozen=True)
class ModelMemory:
    """Bytes on one rank; activations are None where no step could be measured. index: of the index on the card."""

    parts: tuple[PartMemory, ...]
    activations: int | None
    index: int = 0

    @property
    def kept(self) -> int:
        """Weights and moments, which are there all the time."""
        return sum(part.weights + part.moments for part in self.parts)

    @property
    def certain(self) -> int:
        """What is there at once at every optimizer step, after activations are gone."""
        return self.kept + sum(part.gradients for part in self.parts) + self.index

    @property
    def training(self) -> int:
        """The most that it can be: of several forward passes, activations are beside all gradients."""
        return self.certain + (self.activations or 0)

    @property
    def evaluation(self) -> int:
        """Beside what is kept, the layers that are otherwise in parts; keys and values of answers are not counted."""
        return self.kept + sum(part.whole for part in self.parts) + self.index

    @property
    def total(self) -> int:
        return max(self.training, self.evaluation)

    def fits(self, gib: float) -> str:
        """Whether a card of so much memory holds it: "yes", "barely" (above ROOM of it), "no"."""
        room = gib * 2**30
        return "yes" if self.total <= ROOM * room else "barely" if self.total <= room else "no"


def memory_of(config: Config, module: nn.Module, activations: int | None, index: int = 0) -> ModelMemory:
    """module: a LightningModule of training/, with its models loaded and not yet in parts."""
    models = {"generator": getattr(module, "generator", None), "encoders": getattr(module, "retriever", None)}
    ranks = config.trainer.world_size if config.generator.sharded else 1
    return ModelMemory(
        tuple(_part(name, model, config.optim.name, ranks) for name, model in models.items() if model is not None),
        activations,
        index,
    )


def _part(name: str, model: Any, optimizer: str, ranks: int) -> PartMemory:
    layers = layers_of(model) if name == "generator" and ranks > 1 else []
    parted = {id(value) for layer in layers for value in layer.parameters()}
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    weights = gradients = moments = whole = 0
    for value in model.parameters():
        n = -(-value.numel() // ranks) if id(value) in parted else value.numel()
        size = value.itemsize
        weights += n * size
        whole += value.numel() * size if id(value) in parted else 0
        if value.requires_grad:
            gradients += n * size
            in_32 = optimizer != "adamw" and (n < LEAST_8BIT or id(value) in embeddings)
            each = size if optimizer == "adamw" else 4 if in_32 else 1 + 4 / BLOCK
            moments += round(2 * n * each)
    return PartMemory(name, weights, gradients, moments, whole)


class Kept:
    """Bytes that autograd keeps of the first forward pass inside `counting`, shared memory once, weights not."""

    def __init__(self) -> None:
        self.n_bytes: int | None = None

    def counting(self, module: nn.Module) -> Any:
        return self._counting(module) if self.n_bytes is None else nullcontext()

    @contextmanager
    def _counting(self, module: nn.Module) -> Iterator[None]:
        known = {value.untyped_storage().data_ptr() for value in module.parameters()}
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        self.n_bytes = sum(found.values())


def described(memory: ModelMemory, config: Config, dtype: torch.dtype) -> dict[str, str]:
    """The memory in words, by subject. dtype: that products are computed in here."""
    each = " per rank" if config.trainer.world_size > 1 else ""
    said = {
        part.name: f"{human(part.weights)} of weights, {human(part.gradients)} of gradients, {human(part.moments)} of "
        f"optimizer state{each}"
        for part in memory.parts
    }
    batch, kind = config.trainer.batch_size, str(dtype).removeprefix("torch.")
    said["activations"] = (
        "not measured: no rank alone can hold the generator's step"
        if memory.activations is None
        else f"{human(memory.activations)} for {batch} questions, measured here in {kind}"
    )
    if memory.evaluation > memory.training:
        said["answers"] = f"{human(memory.evaluation)}{each}, with all layers put together"
    cards = (config.trainer.card_gib,) if config.trainer.card_gib else CARDS
    fits = ", ".join(f"{card:g} GiB {memory.fits(card)}" for card in cards)
    said["one card"] = f"{human(memory.total)}{each}, besides libraries; fits {fits}"
    return said


def check_card(memory: ModelMemory, config: Config, card: int | None) -> None:
    """OpenBookError where the models do not fit the card of the configuration, or cannot fit that of this machine."""
    planned = int(config.trainer.card_gib * 2**30)
    room, need = (planned, memory.total) if planned else (card, max(memory.certain, memory.evaluation))
    if room is None or need <= room:
        return
    raise OpenBookError(
        "the models do not fit the card",
        where="trainer.card_gib" if config.trainer.card_gib else "trainer.accelerator",
        got=f"{human(need)} of weights, gradients, optimizer state{', activations' if planned else ''} and index",
        expected=f"at most {human(room)}",
        action=" ".join(_savings(memory, config)),
    )


def _savings(memory: ModelMemory, config: Config) -> Iterator[str]:
    """What would take less, the largest saving first."""
    generator = next((part for part in memory.parts if part.name == "generator"), None)
    found: dict[str, float] = {"trainer.checkpointing=true": 0} if not config.trainer.checkpointing else {}
    found["trainer.batch_size=" + str(max(1, config.trainer.batch_size // 2))] = (memory.activations or 0) / 2
    if config.optim.name == "adamw" and not config.generator.sharded:
        # Of AdamW's two moments in 32 bits at most three quarters, in 16 at most a half.
        saved = 0.5 if config.generator.weights == "bf16" else 0.75
        found["optim.name=adamw_8bit"] = saved * sum(part.moments for part in memory.parts)
    if generator is not None and config.generator.model != MINILM:
        learned = generator.gradients + generator.moments
        adapters, ranks = bool(config.generator.lora.rank), config.trainer.world_size
        if not adapters:
            found["generator.lora.rank=16"] = learned
        if config.generator.weights == "fp32":
            found["generator.weights=bf16"] = (generator.weights + (0 if adapters else learned)) / 2
        if ranks > 1 and not config.generator.sharded and config.optim.name == "adamw":
            found["generator.sharded=true"] = (generator.weights + learned) * (1 - 1 / ranks)
    for name, saved in sorted(found.items(), key=lambda one: -one[1]):
        yield f"{name} saves {f'up to {human(saved)}' if saved else 'most of the activations'}."


def as_json(memory: ModelMemory) -> dict[str, Any]:
    """For plan.json in the run folder."""
    return asdict(memory) | {"training": memory.training, "evaluation": memory.evaluation}
