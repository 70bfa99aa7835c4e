"""Beams that share a context give what they give when each has a context of its own: BART, T5 and the small reader."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    LEDConfig,
    LEDForConditionalGeneration,
    MPNetConfig,
    MPNetModel,
    T5ForConditionalGeneration,
)

from openbook.models.attention import NAME, absorbing_pays, cross_attentions, use_implementation
from openbook.models.encoders import TextEncoder
from openbook.models.generator import Generator
from openbook.models.passes.activation_checkpointing import checkpoint_layers
from openbook.models.seq2seq import Seq2SeqGenerator
from openbook.models.small_reader.layers import ReaderConfig
from openbook.models.small_reader.model import MiniLMReader
from tests.tiny_models import bart_config, t5_config

N, BEAMS, CONTEXT_LEN, STEPS, VOCAB = 5, 3, 13, 7, 43
LENGTHS = torch.tensor([13, 5, 1, 8, 11])
KINDS = ["bart", "bart eager", "bart own", "t5", "t5 eager", "t5 own", "reader", "repeated"]


def build(kind: str) -> Generator:
    torch.manual_seed(3)
    attention = {"eager": "eager", "own": NAME}.get(kind.rpartition(" ")[2], "sdpa")
    if kind == "reader":
        reader = MiniLMReader(
            ReaderConfig(
                encoder_layers=(0,),
                decoder_layers=(0, 1),
                vocab=VOCAB,
                dim=28,
                heads=7,
                inner_dim=31,
                max_positions=41,
                pad_id=0,
                start_id=2,
                end_id=3,
            )
        )
        with torch.no_grad():
            for part in (*reader.parameters(), reader.word_embeddings, reader.head):
                part.add_(torch.randn_like(part) * 0.3)
        return reader.eval()
    if kind.startswith("t5"):
        t5 = t5_config(VOCAB, layers=2, d_kv=7, initializer_factor=1.5, attn_implementation=attention)
        return Seq2SeqGenerator(T5ForConditionalGeneration(t5).eval())
    bart = bart_config(
        VOCAB,
        layers=(2, 2),
        heads=(2, 4),
        pad=0,
        bos=2,
        eos=3,
        max_position_embeddings=64,
        init_std=0.3,
        dropout=0.0,
        attn_implementation=attention,
    )
    model = BartForConditionalGeneration(bart).eval()
    for name, value in model.named_parameters():  # biases are drawn as 0, which would hide how they are used
        if name.endswith("bias"):
            value.data.normal_(0, 0.3)
    generator = Seq2SeqGenerator(model)
    if kind == "repeated":
        generator.shared_layers = 0
    return generator


def contexts() -> tuple[Tensor, Tensor]:
    ids = torch.randint(4, VOCAB, (N, CONTEXT_LEN), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, 2] = 2, 3
    mask = torch.arange(CONTEXT_LEN) < LENGTHS[:, None]
    return ids.masked_fill(~mask, 0), mask


def tokens() -> Tensor:
    drawn = torch.randint(4, VOCAB, (N * BEAMS, STEPS), generator=torch.Generator().manual_seed(2))
    drawn[:, 0] = 2
    return drawn


def alone(generator: Generator, inputs: Tensor) -> Tensor:
    """Hidden states of every row with a context of its own, by the calls that training makes."""
    ids, mask = (part.repeat_interleave(len(inputs) // N, 0) for part in contexts())
    with torch.enable_grad():
        return generator.decode(inputs, generator.encode(ids, mask), mask)[0].detach()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_scoring_with_a_shared_context(kind: str) -> None:
    generator, inputs = build(kind), tokens()
    ids, mask = contexts()
    hidden, _ = generator.decode(inputs, generator.encode(ids, mask), mask)
    expected = alone(generator, inputs)
    assert hidden.shape == expected.shape
    close(hidden, expected)
    assert (expected.view(N, BEAMS, STEPS, -1)[:, 0] - expected.view(N, BEAMS, STEPS, -1)[:, 1]).abs().max() > 0.1


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_token_by_token_with_a_shared_context(kind: str) -> None:
    generator, inputs = build(kind), tokens()
    ids, mask = contexts()
    memory, cache, steps = generator.encode(ids, mask), None, []
    for t in range(STEPS):
        hidden, cache = generator.decode(inputs[:, t : t + 1], memory, mask, cache)
        steps.append(hidden)
    close(torch.cat(steps, 1), alone(generator, inputs))


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_reordered_rows_go_on_from_where_they_were(kind: str) -> None:
    """One row per context at first, then its beams, which change places and multiply at every step."""
    generator, drawn = build(kind), tokens()
    ids, mask = contexts()
    memory, cache = generator.encode(ids, mask), None
    written = drawn[::BEAMS, :1]
    draw = torch.Generator().manual_seed(6)
    for t in range(1, STEPS):
        hidden, cache = generator.decode(written[:, -1:], memory, mask, cache)
        close(hidden[:, -1], alone(generator, written)[:, -1])
        beams = len(written) // N
        rows = torch.arange(N)[:, None] * beams + torch.randint(beams, (N, BEAMS), generator=draw)
        cache = generator.reorder(cache, rows.flatten())
        written = torch.cat([written[rows.flatten()], drawn[:, t : t + 1]], 1)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["bart", "t5", "reader"])
def test_pieces_of_several_tokens_after_a_cache(kind: str) -> None:
    generator, inputs = build(kind), tokens()
    ids, mask = contexts()
    memory, cache, pieces = generator.encode(ids, mask), None, []
    for piece in inputs.split([2, 3, 1, 1], dim=1):
        hidden, cache = generator.decode(piece, memory, mask, cache)
        pieces.append(hidden)
    close(torch.cat(pieces, 1), alone(generator, inputs))


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_a_context_of_padding_alone_gives_numbers(kind: str) -> None:
    generator, inputs = build(kind), tokens()
    ids, mask = contexts()
    memory = generator.encode(ids, mask)
    mask = mask.clone()
    mask[1] = False
    assert generator.decode(inputs, memory, mask)[0].isfinite().all()
    assert generator.decode(inputs[:, :1], memory, mask)[0].isfinite().all()


def test_nothing_is_kept_per_beam_of_a_context() -> None:
    """Memory is the cross-attention's keys and values themselves, one tensor for all layers and beams."""
    generator, inputs = build("bart"), tokens()
    ids, mask = contexts()
    with torch.inference_mode():
        memory = generator.encode(ids, mask)
        _, cache = generator.decode(inputs[:, :1], memory, mask)
        cache = generator.reorder(cache, torch.arange(N * BEAMS).flip(0))
    held: list[Any] = [part for layer in cache.cross_attention_cache.layers for part in (layer.keys, layer.values)]
    assert len(held) == 4
    assert all(part is memory for part in held)


@pytest.mark.parametrize("kind", ["bart", "bart eager", "t5"])
def test_the_model_keeps_its_attention(kind: str) -> None:
    generator = build(kind)
    assert isinstance(generator, Seq2SeqGenerator)
    ids, mask = contexts()
    expected = "eager" if kind.endswith("eager") else "sdpa"
    seen: list[str] = []
    decoder = generator.model.get_decoder()
    decoder.register_forward_pre_hook(lambda *_: seen.append(decoder.config._attn_implementation))
    generator.decode(tokens()[::BEAMS], generator.encode(ids, mask), mask)
    with torch.no_grad():
        memory = generator.encode(ids, mask)
        generator.decode(tokens(), memory, mask)
        with pytest.raises(IndexError):
            generator.decode(tokens() + VOCAB, memory, mask)
    assert seen == [expected, NAME, NAME]
    parts = (generator.model, generator.model.get_encoder(), decoder)
    assert [part.config._attn_implementation for part in parts] == [expected] * 3
    assert cross_attentions(generator.model) == 2


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_encoding_in_pieces_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = build(kind)
    ids, mask = contexts()
    whole = generator.encode(ids, mask)
    monkeypatch.setattr("openbook.models.seq2seq.TOKENS_PER_PIECE", 2 * CONTEXT_LEN)
    pieces = generator.encode(ids, mask)
    for found, expected, length in zip(pieces, whole, LENGTHS.tolist(), strict=True):
        close(found[:length], expected[:length])


@torch.inference_mode()
def test_bfloat16_autocast() -> None:
    generator, inputs = build("bart"), tokens()
    ids, mask = contexts()
    expected = alone(generator, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory, cache, steps = generator.encode(ids, mask), None, []
        at_once, _ = generator.decode(inputs, memory, mask)
        for t in range(STEPS):
            hidden, cache = generator.decode(inputs[:, t : t + 1], memory, mask, cache)
            steps.append(hidden)
    for found in (at_once, torch.cat(steps, 1)):
        assert (found.float() - expected).abs().mean() < 0.05 < expected.abs().mean()


# With a gradient

Gradients = dict[str, Tensor]


def learnt(
    kind: str, dtype: torch.dtype | None = None, checkpointing: bool = False, keys: int = 2
) -> tuple[Tensor, Gradients]:
    """Hidden states of one target per context, and what a loss on them says of every weight. keys: how often one of the
    two layers must have projected the contexts to keys."""
    generator, inputs = build(kind), tokens()[::BEAMS]
    assert isinstance(generator, Seq2SeqGenerator)
    ids, mask = contexts()
    if checkpointing:
        generator.train()
        checkpoint_layers(generator)
    projected: list[str] = []
    for name, part in generator.model.get_decoder().named_modules():
        if name.endswith(("encoder_attn.k_proj", "EncDecAttention.k")):
            part.register_forward_hook(lambda *_, name=name: projected.append(name))
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        hidden, _ = generator.decode(inputs, generator.encode(ids, mask), mask)
    assert len(projected) == keys
    torch.nn.functional.cross_entropy(generator.logits(hidden.float()).flatten(0, 1), inputs.flatten()).backward()
    found = {name: value.grad for name, value in generator.named_parameters() if value.grad is not None}
    assert len(found) == len(list(generator.parameters()))  # DistributedDataParallel waits for all of them
    return hidden.detach(), found


def alike(found: Gradients, expected: Gradients, share: float) -> None:
    """Each off by at most that share of its own largest value, or of a hundredth of the largest of all."""
    least = 0.01 * max(float(value.abs().max()) for value in expected.values())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        off = float((found[name] - value).abs().max())
        assert off <= share * max(float(value.abs().max()), least), f"{name} is off by {off}"


@pytest.mark.parametrize("absorbs", [False, True])
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_gradients_are_those_of_transformers(kind: str, absorbs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, by_them = learnt(f"{kind} eager")
    monkeypatch.setattr("openbook.models.seq2seq.absorbing_pays", lambda *_: absorbs)
    hidden, by_us = learnt(f"{kind} own", keys=0 if absorbs else 2)
    close(hidden, expected)
    alike(by_us, by_them, 1e-4)


@pytest.mark.parametrize("absorbs", [False, True])
def test_gradients_under_autocast(absorbs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No further from fp32 than transformers' own function is under the same autocast, but for half as much again."""
    expected, exact = learnt("bart eager")
    _, by_them = learnt("bart eager", torch.bfloat16)
    monkeypatch.setattr("openbook.models.seq2seq.absorbing_pays", lambda *_: absorbs)
    hidden, by_us = learnt("bart own", torch.bfloat16, keys=0 if absorbs else 2)
    assert (hidden.float() - expected).abs().mean() < 0.05 < expected.abs().mean()
    ours, theirs = (
        sum(float((found[name] - value).pow(2).sum()) for name, value in exact.items()) ** 0.5
        for found in (by_us, by_them)
    )
    assert ours < 1.5 * theirs


@pytest.mark.parametrize("absorbs", [False, True])
@pytest.mark.parametrize("kind", ["bart own", "t5 own"])
def test_a_context_of_padding_alone_has_a_finite_gradient(
    kind: str, absorbs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openbook.models.seq2seq.absorbing_pays", lambda *_: absorbs)
    generator, inputs = build(kind), tokens()[::BEAMS]
    ids, mask = contexts()
    mask = mask.clone()
    mask[1] = False
    hidden, _ = generator.decode(inputs, generator.encode(ids, mask), mask)
    hidden.sum().backward()
    assert all(bool(value.grad.isfinite().all()) for value in generator.parameters() if value.grad is not None)  # type: ignore[attr-defined]


def test_models_that_write_their_own_attention_keep_it() -> None:
    """They read masks their own way: padding would be seen by them."""
    shape = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 36}
    for own, model in (
        (True, MPNetModel(MPNetConfig(vocab_size=VOCAB, attn_implementation="eager", **shape))),
        (False, BertModel(BertConfig(vocab_size=VOCAB, attn_implementation="eager", **shape))),
    ):
        model.eval()
        use_implementation(model)
        assert (model.config._attn_implementation == "eager") == own
        encoder = TextEncoder(model, "mean", normalize=True)
        ids, mask = contexts()
        alone = torch.cat([encoder(ids[n : n + 1, : mask[n].sum()], None) for n in range(N)])
        torch.testing.assert_close(encoder(ids, mask), alone, atol=1e-5, rtol=1e-5)


def test_led_keeps_its_attention() -> None:
    config = LEDConfig(
        vocab_size=VOCAB,
        d_model=20,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=36,
        decoder_ffn_dim=36,
        attention_window=4,
        attn_implementation="eager",
    )
    model = LEDForConditionalGeneration(config)
    use_implementation(model)
    assert model.config._attn_implementation == "eager"
    assert cross_attentions(model) == 0


def test_checkpointed_layers_project_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, by_them = learnt("bart own")
    monkeypatch.setattr("openbook.models.attention.ABSORBING_COSTS", 0.0)
    hidden, by_us = learnt("bart own", checkpointing=True)
    close(hidden, expected)
    alike(by_us, by_them, 1e-5)


def test_absorbing_pays_for_short_answers_to_long_contexts() -> None:
    model = build("bart own").model  # type: ignore[attr-defined]
    found = {(t, length): absorbing_pays(model, t, length) for t in (1, 4, 64) for length in (2, 200)}
    assert [case for case, pays in found.items() if pays] == [(1, 2), (1, 200), (4, 200)]
    assert not absorbing_pays(build("bart").model, 1, 200)  # type: ignore[attr-defined]


@pytest.mark.parametrize("absorbs", [False, True])
def test_dropped_weights_are_no_mean_any_more(absorbs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that is dropped reads nothing, neither a state nor a bias: the mean over many draws is the plain one."""
    monkeypatch.setattr("openbook.models.seq2seq.absorbing_pays", lambda *_: absorbs)
    generator, inputs = build("bart own"), tokens()[::BEAMS]
    ids, mask = contexts()
    read: list[Tensor] = []
    cross = generator.model.get_decoder().layers[0].encoder_attn  # type: ignore[attr-defined]
    cross.register_forward_hook(lambda _, __, output: read.append(output[0].detach()))
    memory = generator.encode(ids, mask).detach()
    generator.decode(inputs, memory, mask)
    cross.train().dropout = 0.5
    torch.manual_seed(0)
    for _ in range(400):
        generator.decode(inputs, memory, mask)
    plain, dropped = read[0], torch.stack(read[1:])
    assert (dropped[0] - plain).abs().max() > 0.1
    error, deviation = (dropped.mean(0) - plain).abs(), dropped.std(0) / 20
    assert bool((error <= 6 * deviation + 1e-5).all())
