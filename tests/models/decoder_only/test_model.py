"""Decoder-only generators against a plain forward pass of transformers on the text without padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from openbook.data.prompts import Prompt
from openbook.errors import OpenBookError
from openbook.models.decoder_only.model import DecoderOnlyGenerator
from openbook.models.probe import probe_generator
from tests.decoder_only import FAMILIES, VOCAB, bpe_tokenizer, causal_model

START, END, PAD = 7, 0, 1
LENGTHS = (13, 5, 1, 9)


def generator_of(family: str) -> DecoderOnlyGenerator:
    generator = DecoderOnlyGenerator(causal_model(family))
    generator.follow(Prompt(((3,), (START,)), ("question",), frozenset(), END, PAD))
    return generator.eval()


def contexts(left: bool) -> tuple[Tensor, Tensor]:
    """Of 13, 5, 1 and 9 tokens, padded with a token that is also in them."""
    ids = torch.full((len(LENGTHS), max(LENGTHS)), PAD)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    for row, length in enumerate(LENGTHS):
        places = slice(max(LENGTHS) - length, None) if left else slice(length)
        ids[row, places] = torch.randint(0, VOCAB, (length,), generator=generator)
        mask[row, places] = True
    return ids, mask


def answers(beams: int, target_len: int) -> Tensor:
    rows = torch.randint(4, VOCAB, (len(LENGTHS) * beams, target_len), generator=torch.Generator().manual_seed(2))
    rows[:, 0] = START
    return rows


def plain(generator: DecoderOnlyGenerator, ids: Tensor, mask: Tensor, inputs: Tensor) -> Tensor:
    """Logits [rows, target_len, vocab] of transformers' forward pass, one text at a time and without padding."""
    beams, found = len(inputs) // len(ids), []
    for row, written in enumerate(inputs):
        text = torch.cat([ids[row // beams][mask[row // beams]], written])
        found.append(generator.model(input_ids=text[None]).logits[0, -len(written) :])
    return torch.stack(found)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own_in_training_and_decoding(family: str, left: bool) -> None:
    generator = generator_of(family)
    (ids, mask), inputs = contexts(left), answers(3, 5)
    with torch.no_grad():
        expected = plain(generator, ids, mask, inputs)
    trained, cache = generator.decode(inputs, generator.encode(ids, mask), mask)
    assert cache is None
    torch.testing.assert_close(generator.logits(trained).detach(), expected, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        memory = generator.encode(ids, mask)
        at_once, _ = generator.decode(inputs, memory, mask)
        torch.testing.assert_close(generator.logits(at_once), expected, atol=1e-5, rtol=1e-5)
        cache, steps = None, []
        for place in range(5):  # the memory that has been read once serves again
            hidden, cache = generator.decode(inputs[:, place : place + 1], memory, mask, cache)
            steps.append(generator.logits(hidden))
        torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3_windowed", "gpt2"])
def test_beams_share_a_context_and_change_places(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row, then three, then two of them crossed over, then five: each step's logits are those of its own text.
    Contexts are read in two pieces."""
    monkeypatch.setattr("openbook.models.decoder_only.model.TOKENS_PER_PIECE", 26)
    generator = generator_of(family)
    ids, mask = contexts(False)
    n, draw = len(ids), torch.Generator().manual_seed(5)
    with torch.inference_mode():
        memory = generator.encode(ids, mask)
        before = [layer.clone() for pair in memory.layers for layer in pair]
        texts = [torch.full((n, 1), START)]
        hidden, cache = generator.decode(texts[0], memory, mask)
        written, beams = texts[0], 1
        for now in (3, 3, 2, 5, 5) * 4:  # more tokens than there is room for at first
            parents = torch.randint(beams, (n, now), generator=draw)
            rows = (torch.arange(n)[:, None] * beams + parents).flatten()
            cache = generator.reorder(cache, rows)
            new = torch.randint(4, VOCAB, (n * now, 1), generator=draw)
            hidden, cache = generator.decode(new, memory, mask, cache)
            written, beams = torch.cat([written[rows], new], 1), now
        expected = plain(generator, ids, mask, written)[:, -1]
        torch.testing.assert_close(generator.logits(hidden[:, -1]), expected, atol=1e-5, rtol=1e-5)
        assert all(map(torch.equal, before, (layer for pair in memory.layers for layer in pair)))
        assert cache.past.layers[0].keys.shape[:1] == (n,)  # once per context, whatever the number of beams


@pytest.mark.parametrize("family", ["llama", "smollm", "phi", "gpt2", "gemma3"])
def test_gradients_are_those_of_the_plain_forward_pass(family: str) -> None:
    generator = generator_of(family)
    (ids, mask), inputs, weights = contexts(False), answers(1, 4), torch.randn(4, 4, VOCAB)

    def gradients(logits: Tensor) -> dict[str, Tensor]:
        generator.zero_grad()
        (logits.log_softmax(-1) * weights).sum().backward()
        return {name: value.grad.clone() for name, value in generator.named_parameters() if value.grad is not None}

    hidden, _ = generator.decode(inputs, generator.encode(ids, mask), mask)
    ours = gradients(generator.logits(hidden))
    theirs = gradients(plain(generator, ids, mask, inputs))
    assert ours.keys() == theirs.keys() == {name for name, _ in generator.named_parameters()}
    for name, gradient in ours.items():
        torch.testing.assert_close(
            gradient, theirs[name], atol=2e-4, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_dropout_is_that_of_the_settings(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from openbook.models.seq2seq import load_generator

    causal_model("gpt2").save_pretrained(tmp_path)
    for dropout in (0.0, 0.3):
        generator = load_generator(str(tmp_path), dropout, 0)
        assert {part.p for part in generator.modules() if isinstance(part, torch.nn.Dropout)} == {dropout}  # type: ignore[union-attr]


# Models that are refused


def probed(generator: DecoderOnlyGenerator) -> None:
    prompt = Prompt(((3,), (START,)), ("question",), frozenset(), END, PAD)
    probe_generator(generator, bpe_tokenizer(["a b"]), prompt, max_context=40, max_target=8)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_lets_sound_models_pass(family: str) -> None:
    generator = generator_of(family)
    probed(generator)
    assert all(value.grad is None for value in generator.parameters())


def test_a_soft_cap_on_logits_is_refused() -> None:
    from transformers import AutoModelForCausalLM, Gemma2Config

    from tests.decoder_only import GQA

    torch.manual_seed(0)
    sizes = GQA | {"head_dim": 6, "initializer_range": 0.6}
    for cap, refused in ((0.5, True), (None, False)):
        config = Gemma2Config(**sizes, final_logit_softcapping=cap, attn_logit_softcapping=2.0, sliding_window=5)
        generator = DecoderOnlyGenerator(AutoModelForCausalLM.from_config(config).eval())
        generator.follow(Prompt(((3,), (START,)), ("question",), frozenset(), END, PAD))
        if refused:
            with pytest.raises(OpenBookError, match="its logits are not a linear head's"):
                probed(generator)
        else:  # a cap on the attention's scores is honoured
            probed(generator)


def test_layers_that_keep_something_else_are_refused() -> None:
    model = causal_model("qwen3")
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(OpenBookError, match=r"something else of a context.*linear_attention"):
        DecoderOnlyGenerator(model)


def test_answers_beyond_the_positions_are_refused() -> None:
    generator = generator_of("gpt2")
    prompt = Prompt(((3,), (START,)), ("question",), frozenset(), END, PAD)
    with pytest.raises(OpenBookError, match=r"cannot write answers of 8 tokens"):
        probe_generator(generator, bpe_tokenizer(["a b"]), prompt, max_context=253, max_target=8)
