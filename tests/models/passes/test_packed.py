"""Packed sequences give what each gives alone, gradients included, and only models that can be packed are."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BartForConditionalGeneration, BertConfig, MBartConfig, MBartForConditionalGeneration

from openbook.data.length_batches import packed_passes
from openbook.models import attention
from openbook.models.attention import UNSEEN, use_implementation
from openbook.models.encoders import TextEncoder, load_encoder
from openbook.models.passes import packed
from openbook.models.passes.activation_checkpointing import checkpoint_layers
from openbook.models.seq2seq import Seq2SeqGenerator, load_generator
from openbook.retrieval.passage_embedder import PassageEmbedder
from tests import encoder_families, seq2seq_families
from tests.small_system import tiny_corpus
from tests.tiny_models import bart_config

SEQUENCES = [[2, 7, 8, 9, 3], [2, 11, 3], [2, 5, 5, 5, 6, 5, 3], [3]]
LENGTHS = np.array([len(one) for one in SEQUENCES])
FLAT = torch.tensor([token for one in SEQUENCES for token in one])


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "PACKS", {"cpu"})
    monkeypatch.setattr(attention, "implementation", lambda: UNSEEN)  # as on a GPU


def generator(kind: str) -> Seq2SeqGenerator:
    torch.manual_seed(3)
    if kind == "bart":
        model: nn.Module = BartForConditionalGeneration(
            bart_config(61, layers=(2, 2), pad=0, bos=2, eos=3, dropout=0.0, attention_dropout=0.0, init_std=0.3)
        )
    else:
        model = MBartForConditionalGeneration(
            MBartConfig(
                vocab_size=61,
                d_model=20,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=36,
                decoder_ffn_dim=36,
                dropout=0.0,
                decoder_start_token_id=2,
                init_std=0.3,
            )
        )
    use_implementation(model)
    return Seq2SeqGenerator(model.double().train())


def gradients(model: nn.Module, states: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (states * torch.arange(states.numel()).view(states.shape).cos()).sum().backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, one in found.items():
        torch.testing.assert_close(one, expected[name], atol=1e-11, rtol=1e-9, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("kind", ["bart", "mbart"])
def test_contexts_are_read_as_each_alone(kind: str) -> None:
    model = generator(kind)
    assert model.packs
    inputs = torch.tensor([[2, 9, 8], [2, 4, 4], [2, 30, 12], [2, 7, 7]])
    alone = torch.cat(
        [
            model.decode(inputs[n : n + 1], model.encode(ids, torch.ones_like(ids)), torch.ones_like(ids))[0]
            for n, ids in enumerate(torch.tensor([one]) for one in SEQUENCES)
        ]
    )
    expected = gradients(model, alone)
    found = model.packed_hidden(FLAT, LENGTHS, inputs)
    torch.testing.assert_close(found, alone, atol=1e-12, rtol=1e-10)
    same(gradients(model, found), expected)
    assert float(alone.detach().std()) > 0.1 and not torch.allclose(alone[0], alone[2], atol=0.1)
    assert not model.model.get_encoder().embed_positions._forward_pre_hooks


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_passages_are_embedded_as_each_alone(pooling: str, encoder_folder: Path) -> None:
    encoder = load_encoder(str(encoder_folder), pooling, True, 0.0).double().train()
    assert encoder.packs
    alone = torch.cat([encoder(ids, torch.ones_like(ids).bool()) for ids in (torch.tensor([one]) for one in SEQUENCES)])
    expected = gradients(encoder, alone)
    found = encoder(FLAT, None, LENGTHS)
    torch.testing.assert_close(found, alone, atol=1e-6, rtol=1e-6)  # embeddings are fp32
    for name, one in gradients(encoder, found).items():
        torch.testing.assert_close(one, expected[name], atol=1e-5, rtol=1e-4)


# Of those that write texts, whose encoders can be taken too.
HALVES = [one for one in seq2seq_families.FAMILIES if one.name in ("BART", "mBART-50", "M2M100, NLLB", "T5, FLAN-T5")]
ENCODERS = (*encoder_families.FAMILIES, *HALVES)
PACKED = {"BERT, cls", "BERT, prefixes", "DPR", "DPR, projection", "BART", "mBART-50"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ENCODERS, ids=lambda family: family.name)
def test_encoders_of_every_family(family: Any, small_data: Path, tmp_path: Path) -> None:
    """Those that pack embed as without; BART's is an encoder too."""
    words = (encoder_families.texts_of(small_data),) if isinstance(family, encoder_families.Family) else ()
    encoder = load_encoder(str(family.made(tmp_path, *words)), "mean", True, 0.0).eval()
    assert encoder.packs == (family.name in PACKED)
    if encoder.packs:
        alone = torch.cat([encoder(torch.tensor([one]), None) for one in SEQUENCES])
        torch.testing.assert_close(encoder(FLAT, None, LENGTHS), alone, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(alone[0], alone[1], atol=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", seq2seq_families.FAMILIES, ids=lambda family: family.name)
def test_generators_of_every_family(family: seq2seq_families.Family, tmp_path: Path) -> None:
    model = load_generator(str(family.made(tmp_path)), 0.0, 0)
    assert isinstance(model, Seq2SeqGenerator) and model.packs == (family.name in PACKED)
    if model.packs:
        inputs = torch.tensor([[2, 9, 8], [2, 4, 4], [2, 30, 12], [2, 7, 7]])
        alone = [
            model.decode(inputs[n : n + 1], model.encode(ids, torch.ones_like(ids)), torch.ones_like(ids))[0]
            for n, ids in enumerate(torch.tensor([one]) for one in SEQUENCES)
        ]
        found = model.packed_hidden(FLAT, LENGTHS, inputs)
        torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens_per_backward", [0, 40])
def test_a_corpus_row_is_embedded_as_without_packing(
    tokens_per_backward: int, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several passes, one of them of a single passage, and with gradients that are computed again."""
    corpus = tiny_corpus()
    encoder = load_encoder(str(encoder_folder), "mean", True, 0.0).train()
    embedder = PassageEmbedder(
        encoder, corpus.tokens, corpus.style, 17, tokens_per_pass=64, tokens_per_backward=tokens_per_backward
    )
    calls = []
    forward = TextEncoder.forward

    def counted(self: TextEncoder, ids: Tensor, mask: Tensor | None, lengths: np.ndarray | None = None) -> Tensor:
        calls.append(lengths)
        return forward(self, ids, mask, lengths)

    monkeypatch.setattr(TextEncoder, "forward", counted)
    rows = torch.tensor([5, 3, 40, 11, 0, 7, 22, 8, 9, 30, 31])
    found = embedder.encode(rows)
    found_gradients = gradients(encoder, found)
    assert sum(one is not None for one in calls) > 1
    monkeypatch.setattr(packed, "PACKS", set())
    calls.clear()
    plain = embedder.encode(rows)
    plain_gradients = gradients(encoder, plain)
    assert calls and all(one is None for one in calls)
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-5)
    for name, one in found_gradients.items():
        torch.testing.assert_close(one, plain_gradients[name], atol=1e-5, rtol=1e-4)


def test_passes_hold_as_many_tokens_as_they_may() -> None:
    cut = packed_passes(np.array([5, 3, 7, 1, 20, 2]), 10)
    assert [one.tolist() for one in cut] == [[0, 1], [2, 3], [4], [5]]
    assert packed_passes(np.array([], dtype=np.int64), 10) == []


def test_where_the_sequences_stand() -> None:
    packing = packed.packing_of(LENGTHS, torch.device("cpu"))
    assert packing.starts.tolist() == [0, 5, 8, 15, 16] and packing.longest == 7
    assert packing.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 0]


def test_who_is_not_packed(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_dropout = load_encoder(str(encoder_folder), "mean", True, 0.1)
    assert with_dropout.eval().packs and not with_dropout.train().packs  # the kernel drops no weights
    model = generator("bart")
    assert model.packs
    checkpoint_layers(model)
    assert not model.packs  # a layer that is computed again would not know where sequences begin
    model = generator("bart")
    model.model.config.model_type = "led"
    assert not model.packs
    monkeypatch.setattr(packed, "PACKS", {"cuda"})
    assert not load_encoder(str(encoder_folder), "mean", True, 0.0).packs


@pytest.mark.parametrize(
    ("dim", "dtype", "known"), [(64, "bfloat16", True), (20, "bfloat16", False), (64, "float32", False)]
)
def test_what_the_kernel_knows(dim: int, dtype: str, known: bool) -> None:
    config = BertConfig(hidden_size=dim, num_attention_heads=2)
    weight = torch.zeros(1, dtype=getattr(torch, dtype))
    assert packed._known_to_the_kernel(config, weight) == known
    with torch.autocast("cpu", torch.bfloat16):
        assert packed._known_to_the_kernel(config, weight) == (dim == 64)


def test_a_kernel_that_does_not_run_is_said() -> None:
    packed._kernel_runs.cache_clear()
    with pytest.warns(UserWarning, match="attention without padding cannot run .*: sequences are padded"):
        assert not packed._kernel_runs(torch.device("cuda:100"))  # there is no such device
    packed._kernel_runs.cache_clear()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_kernel_can_be_tried_where_nothing_is_learnt(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a trained run is evaluated, which asks for it first under inference mode."""
    monkeypatch.setattr(packed, "_kernel", packed._one_by_one)
    packed._kernel_runs.cache_clear()
    with mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert packed._kernel_runs(torch.device("cpu"))
    packed._kernel_runs.cache_clear()


@pytest.mark.gpu
def test_the_kernel_is_as_exact_as_one_by_one() -> None:
    torch.manual_seed(0)
    parts = torch.randn(70, 3, 2, 64)

    def attended(device: str, dtype: torch.dtype) -> list[Tensor]:
        inputs = parts.to(device, dtype).requires_grad_().unbind(1)  # views, as of joined projections
        at = packed.packing_of(np.array([5, 3, 62]), torch.device(device))
        read = (packed._kernel if device == "cuda" else packed._one_by_one)(*inputs, at, at, 0.125)
        found = torch.autograd.grad(read.float().cos().sum(), inputs)
        return [read.float().cpu(), *(one.float().cpu() for one in found)]

    for found, exact in zip(attended("cuda", torch.bfloat16), attended("cpu", torch.float32), strict=True):
        assert float((found - exact).norm()) < 0.02 * float(exact.norm())
