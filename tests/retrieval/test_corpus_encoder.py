"""Encoding the corpus: any batching gives the same embeddings, and the encoder that trains is left as it is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from openbook.data.length_batches import plan_passes
from openbook.models import attention
from openbook.models.attention import use_implementation
from openbook.models.encoders import TextEncoder
from openbook.models.passes import packed
from openbook.retrieval.corpus_encoder import PassageCoder, encode_passes
from tests.small_system import DIM, tiny_corpus, tiny_encoder

N = 41
CORPUS = tiny_corpus(N)


def coder_of(encoder: TextEncoder, dtype: torch.dtype = torch.float32) -> PassageCoder:
    return PassageCoder(encoder, CORPUS.tokens, CORPUS.style, CORPUS.max_length, dtype=dtype)


def encoded(coder: PassageCoder, tokens_per_pass: int = 64, seed: int = 0) -> torch.Tensor:
    """[N, DIM] in the order of the rows."""
    found = torch.full((N, DIM), torch.nan)
    for rows, embeddings in encode_passes(coder, coder.passes(range(N), tokens_per_pass, seed)):
        found[torch.from_numpy(rows)] = embeddings
    return found


@pytest.fixture
def alone() -> torch.Tensor:
    coder = coder_of(tiny_encoder())
    return torch.cat([coder(np.array([row])) for row in range(N)])


@pytest.mark.parametrize("tokens_per_pass", [1, 37, 10_000])
def test_any_batching_in_any_order_gives_the_embeddings_of_one_by_one(
    tokens_per_pass: int, alone: torch.Tensor
) -> None:
    coder = coder_of(tiny_encoder())
    for seed in (0, 1):
        torch.testing.assert_close(encoded(coder, tokens_per_pass, seed), alone, atol=1e-6, rtol=1e-5)
    backwards = coder(np.arange(N)[::-1].copy())  # of many lengths, so padded
    torch.testing.assert_close(backwards.flip(0), alone, atol=1e-6, rtol=1e-5)


def test_one_length_alone_needs_no_mask_and_several_do() -> None:
    coder, masks = coder_of(tiny_encoder()), []
    coder.encoder.register_forward_pre_hook(lambda module, args: masks.append(args[1]))
    for rows in coder.passes(range(N), 64):
        coder(rows)
    assert masks and all(mask is None for mask in masks)
    coder(np.arange(N))
    assert masks[-1] is not None and not masks[-1].all()


def test_mode_gradients_weights_and_random_state_are_left_alone() -> None:
    encoder = tiny_encoder(dropout=0.5)
    encoder.model.embeddings.eval()
    modes = [part.training for part in encoder.modules()]
    fingerprint, random_state = encoder.fingerprint(), torch.get_rng_state()
    coder = coder_of(encoder)
    first = encoded(coder)
    assert torch.equal(first, encoded(coder)), "dropout was on"
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [part.training for part in encoder.modules()] == modes
    assert encoder.fingerprint() == fingerprint
    assert all(parameter.requires_grad and parameter.grad is None for parameter in encoder.parameters())
    assert not first.requires_grad
    torch.testing.assert_close(first, encoded(coder_of(tiny_encoder())), atol=1e-6, rtol=1e-5)


def test_take_copies_the_weights_of_today_and_nothing_else_does() -> None:
    encoder = tiny_encoder()
    coder = coder_of(encoder)
    before = encoded(coder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert torch.equal(encoded(coder), before), "the copy moved with the encoder"
    coder.take(encoder)
    assert torch.equal(encoded(coder), encoded(coder_of(encoder)))
    assert not torch.allclose(encoded(coder), before, atol=1e-2)


def test_a_lower_precision_is_the_copys_alone() -> None:
    encoder = tiny_encoder()
    coder = coder_of(encoder, torch.bfloat16)
    assert {parameter.dtype for parameter in coder.encoder.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    low, full = encoded(coder), encoded(coder_of(encoder))
    assert low.dtype == torch.float32
    assert not torch.equal(low, full)
    assert (low * full).sum(-1).min() > 0.99
    coder.take(encoder)
    assert torch.equal(encoded(coder), low)


@pytest.mark.parametrize("tokens_per_pass", [1, 29, 64, 10_000])
def test_passes_hold_every_place_once_and_one_length_each(tokens_per_pass: int) -> None:
    lengths = np.random.default_rng(5).integers(3, 17, 211)
    passes = plan_passes(lengths, tokens_per_pass, seed=7)
    assert sorted(np.concatenate(passes).tolist()) == list(range(211))
    for places in passes:
        assert len(set(lengths[places].tolist())) == 1
        assert len(places) == 1 or lengths[places].sum() <= tokens_per_pass


@pytest.mark.parametrize("tokens_per_pass", [1, 29, 64, 10_000])
def test_what_fills_no_pass_of_its_length_is_packed(tokens_per_pass: int) -> None:
    lengths = np.random.default_rng(5).integers(3, 17, 211)
    passes = plan_passes(lengths, tokens_per_pass, seed=7, packs=True)
    assert sorted(np.concatenate(passes).tolist()) == list(range(211))
    mixed = [places for places in passes if len(set(lengths[places].tolist())) > 1]
    for places in passes:
        assert len(places) == 1 or lengths[places].sum() <= tokens_per_pass
    rest = sum(int(lengths[places].sum()) for places in mixed)
    for length in range(3, 17):  # as many of each length as there can be go through without the others
        alone = [places for places in passes if set(lengths[places].tolist()) == {length}]
        n, most = int((lengths == length).sum()), max(1, tokens_per_pass // length)
        assert len(alone) >= n // most
    assert len(mixed) <= 1 + rest / (tokens_per_pass - 16 if tokens_per_pass > 16 else 1)
    assert bool(mixed) == (tokens_per_pass > 16)
    if tokens_per_pass == 10_000:
        assert len(passes) == 1
    assert plan_passes(np.empty(0, dtype=np.int64), 64, packs=True) == []


@pytest.mark.parametrize("tokens_per_pass", [37, 10_000])
def test_packed_passages_are_embedded_as_alone(
    tokens_per_pass: int, alone: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "PACKS", {"cpu"})
    monkeypatch.setattr(attention, "implementation", lambda: attention.UNSEEN)  # as on a GPU
    coder, given = coder_of(tiny_encoder()), []
    use_implementation(coder.encoder.model)
    coder.encoder.register_forward_pre_hook(lambda module, args: given.append(args[1:]))
    torch.testing.assert_close(encoded(coder, tokens_per_pass), alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(coder(np.arange(N)), alone, atol=1e-6, rtol=1e-5)
    assert len(given) < len(coder_of(tiny_encoder()).passes(range(N), tokens_per_pass))
    assert all(mask is None for mask, _ in given) and any(lengths is not None for _, lengths in given)


def test_the_order_of_passes_is_the_seeds() -> None:
    lengths = np.random.default_rng(5).integers(3, 17, 211)
    one, same, other = ([p.tolist() for p in plan_passes(lengths, 29, seed)] for seed in (7, 7, 8))
    assert one == same
    assert one != other
    assert sorted(one) == sorted(other)
    falls = sum(lengths[a[0]] > lengths[b[0]] for a, b in pairwise(one))
    assert 0.2 * len(one) < falls < 0.6 * len(one), "passes come sorted by length"


def test_no_passages_are_no_passes() -> None:
    assert plan_passes(np.empty(0, dtype=np.int64), 64) == []
    assert list(encode_passes(coder_of(tiny_encoder()), [])) == []
    assert coder_of(tiny_encoder()).passes(range(0), 64) == []


def test_few_passes_wait_at_a_time(alone: torch.Tensor) -> None:
    """As on a GPU: a slice of any length holds the embeddings of a few, in the order in which they were begun."""
    coder = coder_of(tiny_encoder())
    coder._may_wait = 2
    passes, given, waiting = coder.passes(range(N), 29), [], []
    for rows, embeddings in coder.begin(passes):
        torch.testing.assert_close(embeddings, alone[torch.from_numpy(rows)], atol=1e-6, rtol=1e-5)
        given.append(rows)
        waiting.append(len(coder._waiting))
    assert len(given) == len(passes) - 2 and set(waiting) == {2}
    given += [rows for rows, _ in coder.finished()]
    assert all(np.array_equal(one, other) for one, other in zip(given, passes, strict=True))


def test_rows_of_a_shard_are_rows_of_the_corpus(alone: torch.Tensor) -> None:
    coder = coder_of(tiny_encoder())
    passes = coder.passes(range(11, 30), 29)
    assert sorted(np.concatenate(passes).tolist()) == list(range(11, 30))
    for rows, embeddings in encode_passes(coder, passes):
        torch.testing.assert_close(embeddings, alone[torch.from_numpy(rows)], atol=1e-6, rtol=1e-5)
