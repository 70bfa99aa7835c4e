"""Adapters: what they compute, what they leave in a checkpoint, and that merged they are a plain model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BertModel

from openbook.config.models import GeneratorConfig, LoraConfig
from openbook.data.encoder_inputs import separated
from openbook.data.inputs import SpecialIds
from openbook.data.prompts import Prompt
from openbook.errors import OpenBookError
from openbook.models.decoder_only.model import DecoderOnlyGenerator
from openbook.models.encoders import TextEncoder, load_encoder
from openbook.models.lora import BASE, add_adapters, merged
from openbook.models.passes.cast_weights import hold_in_bf16
from openbook.models.seq2seq import Seq2SeqGenerator, load_generator
from openbook.retrieval.corpus_encoder import PassageCoder
from tests.decoder_only import VOCAB, causal_model
from tests.small_system import tiny_encoder, tiny_tokens

pytest.importorskip("peft")
RANK = LoraConfig(rank=3, alpha=5.0)
PROMPT = Prompt(((3,), (7,)), ("question",), frozenset(), 0, 1)


def learned(model: torch.nn.Module) -> torch.nn.Module:
    """Adapters as training leaves them: B is not 0 any more."""
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_B" in name:
                value += 0.3 * torch.randn(value.shape, generator=draw)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    causal_model("gpt2").save_pretrained(tmp_path / "gpt2")
    causal_model("qwen2").save_pretrained(tmp_path / "qwen2")
    return tmp_path


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_the_equation_and_what_learns(family: str, folder: Path) -> None:
    """W x + alpha / rank B A x, gradients for A and B alone, nothing changed at first."""
    plain = load_generator(str(folder / family), 0.0, 0)
    generator = load_generator(str(folder / family), 0.0, 0, GeneratorConfig(lora=RANK))
    assert isinstance(generator, DecoderOnlyGenerator) and isinstance(plain, DecoderOnlyGenerator)
    ids = torch.randint(4, VOCAB, (2, 9))
    assert torch.equal(plain.model(input_ids=ids).logits, generator.model(input_ids=ids).logits)
    trained = {name for name, value in generator.named_parameters() if value.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    names = {name.split(".lora_")[0] for name in trained}
    learned(generator)
    by_hand = copy.deepcopy(plain.model)
    for name in names:
        inner = name.removeprefix("model.")
        part, weight = generator.model.get_submodule(inner), by_hand.get_submodule(inner).weight
        product = part.lora_B["default"].weight @ part.lora_A["default"].weight
        weight.data += 5 / 3 * (product.T if family == "gpt2" else product)
    expected = by_hand(input_ids=ids).logits
    found = generator.model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, plain.model(input_ids=ids).logits, atol=1e-2)
    found.logsumexp(-1).sum().backward()
    assert {name for name, value in generator.named_parameters() if value.grad is not None} == trained


def test_a_state_is_adapters_and_the_base_that_they_belong_to(folder: Path) -> None:
    settings = GeneratorConfig(lora=RANK)
    one = learned(load_generator(str(folder / "qwen2"), 0.0, 0, settings))  # type: ignore[arg-type]
    state = one.state_dict()
    assert all(".lora_" in name or name == f"model.{BASE}" for name in state)
    whole = torch.nn.ModuleDict({"a": one, "b": torch.nn.Linear(3, 3)})  # a model beside it keeps its weights
    assert {"b.weight", "b.bias"} < whole.state_dict().keys()
    other = load_generator(str(folder / "qwen2"), 0.0, 5, settings)
    other.load_state_dict(state)  # type: ignore[union-attr]
    ids = torch.randint(4, VOCAB, (2, 9))
    assert torch.equal(one.model(input_ids=ids).logits, other.model(input_ids=ids).logits)  # type: ignore[union-attr, operator]
    causal_model("qwen2", seed=3).save_pretrained(folder / "qwen2")
    changed = load_generator(str(folder / "qwen2"), 0.0, 0, settings)
    with pytest.raises(OpenBookError, match=r"the adapters belong to other weights .*qwen2"):
        changed.load_state_dict(state)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="lora_A"):
        other.load_state_dict({name: value for name, value in state.items() if "layers.1" not in name})  # type: ignore[union-attr]


def test_first_weights_are_those_of_the_seed_and_leave_the_random_state(folder: Path) -> None:
    before = torch.random.get_rng_state()
    settings = GeneratorConfig(lora=RANK)
    states = [load_generator(str(folder / "qwen2"), 0.0, seed, settings).state_dict() for seed in (0, 0, 1)]  # type: ignore[union-attr]
    assert torch.equal(torch.random.get_rng_state(), before)
    same = [all(torch.equal(states[0][name], one[name]) for name in states[0]) for one in states[1:]]
    assert same == [True, False]


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_merged_is_a_plain_folder_with_the_same_answers(family: str, folder: Path, tmp_path: Path) -> None:
    generator = load_generator(str(folder / family), 0.0, 0, GeneratorConfig(lora=RANK))
    assert isinstance(generator, DecoderOnlyGenerator)
    learned(generator)
    generator.follow(PROMPT)
    generator.save_pretrained(tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.config.eos_token_id == 0
    assert not any("lora" in name or "base_layer" in name for name in model.state_dict())
    ids = torch.randint(4, VOCAB, (3, 9))
    expected = generator.model(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert any(".lora_" in name for name in generator.state_dict())  # the model itself is left as it was
    assert torch.equal(generator.model(input_ids=ids).logits, expected)


def test_weights_in_bf16_under_adapters_are_merged_in_fp32(generator_folder: Path) -> None:
    generator = load_generator(str(generator_folder), 0.0, 0, GeneratorConfig(lora=RANK))
    assert isinstance(generator, Seq2SeqGenerator)
    learned(generator)
    hold_in_bf16(generator)
    types = {".lora_" in name: value.dtype for name, value in generator.named_parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    hidden, _ = generator.decode(torch.ones(1, 3, dtype=torch.int64), *encoded(generator))
    assert hidden.dtype == torch.bfloat16 == generator.logits(hidden).dtype
    layer = generator.model.model.encoder.layers[0].fc1
    added = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight) * layer.scaling["default"]
    weight = merged(generator.model).model.encoder.layers[0].fc1.weight
    torch.testing.assert_close(weight, layer.base_layer.weight.float() + added, atol=1e-7, rtol=0)


def encoded(generator: Seq2SeqGenerator) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory and mask of a short context."""
    mask = torch.ones(1, 5, dtype=torch.bool)
    return generator.encode(torch.arange(4, 9)[None], mask), mask


def test_sequence_to_sequence_models_decode_with_their_adapters(generator_folder: Path, tmp_path: Path) -> None:
    """Cross-attention has ways that read weights directly: they must not pass an adapter by."""
    generator = load_generator(str(generator_folder), 0.0, 0, GeneratorConfig(lora=RANK))
    assert isinstance(generator, Seq2SeqGenerator)
    learned(generator)
    generator.save_pretrained(tmp_path)
    plain = load_generator(str(tmp_path), 0.0, 0)
    ids, mask = torch.randint(4, 40, (3, 13)), torch.arange(13) < torch.tensor([13, 5, 8])[:, None]
    inputs = torch.randint(4, 40, (6, 4))
    outputs = []
    for one in (generator.eval(), plain.eval()):
        with torch.inference_mode():
            memory, cache, steps = one.encode(ids, mask), None, []
            for place in range(4):
                hidden, cache = one.decode(inputs[:, place : place + 1], memory, mask, cache)
                steps.append(one.logits(hidden))
        hidden, _ = one.decode(inputs[::2], one.encode(ids, mask), mask)
        outputs.append((torch.cat(steps, 1), one.logits(hidden).detach()))
    for ours, wanted in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)


# Encoders


def adapted(seed: int = 0) -> TextEncoder:
    encoder = tiny_encoder(1)
    add_adapters(encoder.model, RANK, "retriever.lora", seed)
    learned(encoder)
    return encoder.eval()


def test_an_encoders_copies_and_fingerprint() -> None:
    encoder = adapted()
    ids = torch.randint(4, 61, (5, 9))
    state = encoder.copied_state()
    assert state is not None and all(".lora_" in name or name.endswith(BASE) for name in state)
    expected = encoder(ids, None)
    with torch.no_grad():
        value = next(value for value in encoder.parameters() if value.requires_grad)
        value += torch.randn(value.shape)
    moved = encoder(ids, None)
    assert not torch.allclose(moved, expected, atol=1e-3)
    assert torch.equal(encoder.with_state(state)(ids, None), expected)  # what a refresh began with
    assert torch.equal(encoder(ids, None), moved)
    assert len({encoder.fingerprint(), encoder.with_state(state).fingerprint()}) == 2
    # The same adapters on other weights give other embeddings, and have another fingerprint.
    other = tiny_encoder(2)
    add_adapters(other.model, RANK, "retriever.lora", 0)
    one = tiny_encoder(1)
    add_adapters(one.model, RANK, "retriever.lora", 0)
    assert one.fingerprint() != other.fingerprint()


def test_a_refresh_encodes_with_adapters_as_if_they_were_merged() -> None:
    encoder = adapted()
    coder = PassageCoder(encoder, tiny_tokens(11), separated(SpecialIds(1, 2, 3, 0)), 17)
    whole = TextEncoder(merged(encoder.model), "mean", normalize=True).eval()
    assert isinstance(whole.model, BertModel)
    plain = PassageCoder(whole, tiny_tokens(11), separated(SpecialIds(1, 2, 3, 0)), 17)
    for passes in coder.passes(range(11), 64):
        torch.testing.assert_close(coder(passes), plain(passes), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for value in encoder.parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn(value.shape)
    before = coder(passes)
    coder.take(encoder)
    assert not torch.allclose(coder(passes), before, atol=1e-3)
    fresh = PassageCoder(encoder, tiny_tokens(11), separated(SpecialIds(1, 2, 3, 0)), 17)
    assert torch.equal(coder(passes), fresh(passes))


# Refusals


def test_targets_that_are_no_layers_or_the_head(folder: Path, encoder_folder: Path) -> None:
    def load(targets: str) -> object:
        settings = GeneratorConfig(lora=LoraConfig(rank=2, targets=targets))
        return load_generator(str(folder / "qwen2"), 0.0, 0, settings)

    load("q_proj, v_proj")
    with pytest.raises(
        OpenBookError, match=r"no such layer \(generator\.lora\.targets\): got k_prj, expected all-linear"
    ):
        load("q_proj,k_prj")
    with pytest.raises(OpenBookError, match=r"vocabulary head cannot have an adapter"):
        load("q_proj,lm_head")
    encoder = load_encoder(str(encoder_folder), "mean", True, 0.0)
    with pytest.raises(OpenBookError, match=r"\(retriever\.lora\.targets\)"):
        add_adapters(encoder.model, LoraConfig(rank=2, targets="q_proj"), "retriever.lora", 0)


def test_another_alpha_is_another_model() -> None:
    """The same adapters give other outputs with it: neither a fingerprint nor a checkpoint may pass for the other."""
    one, other = adapted(), tiny_encoder(1)
    add_adapters(other.model, LoraConfig(rank=3, alpha=9.0), "retriever.lora", 0)
    state = one.state_dict()
    with pytest.raises(OpenBookError, match="or to another alpha"):
        other.load_state_dict(state)
    before = {name: one.model._weights_alone if name.endswith(BASE) else value for name, value in state.items()}
    again = tiny_encoder(1)
    add_adapters(again.model, RANK, "retriever.lora", 0)
    assert again.fingerprint() != other.fingerprint()
    again.load_state_dict(before)  # a checkpoint from before alpha was part of it
    ids = torch.randint(4, 61, (5, 9))
    assert torch.equal(again.eval()(ids, None), one.eval()(ids, None))
