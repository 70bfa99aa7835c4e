"""Weights cast at once give what autocast gives, gradients included, and the model is afterwards what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    LongformerConfig,
    LongformerModel,
    T5Config,
    T5ForConditionalGeneration,
)

from openbook.config.models import LoraConfig
from openbook.models.encoders import load_encoder
from openbook.models.lora import add_adapters
from openbook.models.passes import cast_weights
from openbook.models.passes.activation_checkpointing import checkpoint_layers
from openbook.models.passes.cast_weights import with_weights_cast
from openbook.models.small_reader.layers import ReaderConfig
from openbook.models.small_reader.model import MiniLMReader
from tests.tiny_models import bart_config


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cast_weights, "CASTS_ONCE", {"cpu"})


def models(kind: str) -> nn.Module:
    torch.manual_seed(3)
    if kind == "bart":
        return BartForConditionalGeneration(bart_config(61, layers=(2, 2), pad=0, bos=2, eos=3, dropout=0.0)).train()
    if kind == "bert":
        config = BertConfig(
            vocab_size=61,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return BertModel(config, add_pooling_layer=False).train()
    config = T5Config(
        vocab_size=61,
        d_model=24,
        d_kv=8,
        d_ff=40,
        num_layers=2,
        num_heads=3,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config).train()


IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 12, 3, 0], [2, 5, 5, 5, 3]])


def states(model: nn.Module) -> Tensor:
    if isinstance(model, BertModel):
        return model(input_ids=IDS, attention_mask=IDS != 0).last_hidden_state
    memory = model.get_encoder()(input_ids=IDS, attention_mask=IDS != 0).last_hidden_state
    return model.get_decoder()(
        input_ids=IDS[:, :4], encoder_hidden_states=memory, encoder_attention_mask=IDS != 0, use_cache=False
    ).last_hidden_state


def step(model: nn.Module, at_once: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Twice through the model, as with passes by length."""
    head = model.get_output_embeddings()
    with torch.autocast("cpu", torch.bfloat16):

        def run() -> Tensor:
            return (states(model) * 1.5).tanh() + states(model)

        found = with_weights_cast(model, run, head.weight if head is not None else None) if at_once else run()
    found.float().pow(2).sum().backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return found.detach(), gradients


@pytest.mark.parametrize("kind", ["bart", "bert", "t5"])
def test_the_numbers_are_autocasts(on_a_cpu: None, kind: str) -> None:
    model = models(kind)
    before = {name: (one, one.detach().clone()) for name, one in model.named_parameters()}
    plain, plain_gradients = step(model, False)
    found, gradients = step(model, True)
    assert torch.equal(found, plain)  # forward, to the bit
    assert gradients.keys() == plain_gradients.keys()
    largest = max(float(one.abs().max()) for one in plain_gradients.values())
    for name, one in gradients.items():
        assert one.dtype == torch.float32
        error = float((one - plain_gradients[name]).norm())
        assert error <= 0.02 * float(plain_gradients[name].norm()) + 1e-3 * largest, name
    for name, one in model.named_parameters():
        assert one is before[name][0] and torch.equal(one, before[name][1])
    assert not any("forward" in part.__dict__ for part in model.modules())


@pytest.mark.parametrize("kind", ["bart", "bert", "t5"])
def test_gradients_are_those_of_the_exact_model(on_a_cpu: None, kind: str) -> None:
    """As near to fp32 as autocast's are."""
    model = models(kind)
    states(model)
    exact = ((states(model) * 1.5).tanh() + states(model)).pow(2).sum()
    exact.backward()
    right = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    errors = []
    for at_once in (False, True):
        gradients = step(model, at_once)[1]
        errors.append(sum(float((gradients[name] - one).pow(2).sum()) for name, one in right.items()) ** 0.5)
    assert 0 < errors[1] < 1.2 * errors[0]


class Casts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.casts, self.products = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        self.casts += name in ("_to_copy", "_foreach_copy_")
        self.products += name in ("mm", "addmm")
        return func(*args, **(kwargs or {}))


def test_casts_and_products_are_fewer(on_a_cpu: None) -> None:
    counts = []
    for at_once in (False, True):
        model = models("bart")
        with Casts() as counted:
            step(model, at_once)
        counts.append((counted.casts, counted.products))
    assert counts[1][0] < 0.5 * counts[0][0] and counts[1][1] < 0.8 * counts[0][1]


def test_where_nothing_is_cast(on_a_cpu: None) -> None:
    model = models("bart")
    plain = model.model.encoder.layers[0].fc1.weight

    def dtype() -> torch.dtype:
        return model.model.encoder.layers[0].fc1.weight.dtype

    with torch.autocast("cpu", torch.bfloat16):
        assert with_weights_cast(model, dtype) == torch.bfloat16
        with torch.no_grad():
            assert with_weights_cast(model, dtype) == torch.float32
        checkpoint_layers(model)
        assert with_weights_cast(model, dtype) == torch.float32  # else they were others when they are computed again
    assert with_weights_cast(models("bart"), dtype) == torch.float32
    reader = MiniLMReader(ReaderConfig((0,), (0,), 50, 24, 3, 30, 40))
    with torch.autocast("cpu", torch.bfloat16):
        for checkpointing, found in ((False, torch.bfloat16), (True, torch.float32)):
            reader.checkpointing = checkpointing
            assert with_weights_cast(reader, lambda: reader.encoder[0].feed_forward.inner.weight.dtype) == found
    assert plain is model.model.encoder.layers[0].fc1.weight


def test_a_failure_leaves_the_model_as_it_was(on_a_cpu: None) -> None:
    model = models("bart")
    before = dict(model.named_parameters())

    def fail() -> None:
        raise ValueError("in the step")

    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="in the step"):
        with_weights_cast(model, fail)
    assert all(one is before[name] for name, one in model.named_parameters())
    assert not any("forward" in part.__dict__ for part in model.modules())


def test_frozen_weights_get_no_gradient(on_a_cpu: None) -> None:
    model = models("bert")
    model.encoder.layer[0].requires_grad_(False)
    gradients = step(model, True)[1]
    assert not any(name.startswith("encoder.layer.0") for name in gradients)
    assert any(name.startswith("encoder.layer.1.attention.self.query") for name in gradients)


def test_a_step_uses_it(on_a_cpu: None, encoder_folder: Path) -> None:
    """On devices where that pays, and there alone."""
    encoder = load_encoder(str(encoder_folder), "mean", True, 0.0).train()
    with torch.autocast("cpu", torch.bfloat16), Casts() as counted:
        encoder(IDS, IDS != 0)
    at_once = counted.casts
    cast_weights.CASTS_ONCE.clear()
    with torch.autocast("cpu", torch.bfloat16), Casts() as counted:
        encoder(IDS, IDS != 0)
    assert at_once < counted.casts


def test_no_gradient_is_made_of_weights_under_adapters(on_a_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be as large as the model, in fp32, and thrown away."""
    pytest.importorskip("peft")
    model = models("bert")
    add_adapters(model, LoraConfig(rank=2), "retriever.lora", 0)
    made: list[int] = []
    original = cast_weights._CastAll.backward

    def counted(ctx: Any, *gradients: Tensor | None) -> Any:
        found = original(ctx, *gradients)
        made.append(sum(one.numel() for one in found if one is not None))
        return found

    monkeypatch.setattr(cast_weights._CastAll, "backward", staticmethod(counted))
    ids = torch.arange(1, 13).view(2, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_weights_cast(model, lambda: model(input_ids=ids).last_hidden_state)
    found.float().square().sum().backward()
    assert sum(made) == sum(one.numel() for one in model.parameters() if one.requires_grad) > 0
    assert all((one.grad is not None) == one.requires_grad for one in model.parameters())


def test_a_model_that_scales_its_queries_in_place(on_a_cpu: None) -> None:
    config = LongformerConfig(
        vocab_size=61,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        attention_window=16,
        max_position_embeddings=130,
        pad_token_id=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(3)
    model, ids = LongformerModel(config, add_pooling_layer=False).train(), torch.arange(5, 45).view(2, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(input_ids=ids).last_hidden_state
        found = with_weights_cast(model, lambda: model(input_ids=ids).last_hidden_state)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
    found.float().square().sum().backward()
