"""How likely given answers are, against an explicit softmax of the generator's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.batch import IGNORED_LABEL
from openbook.inference import likelihood
from openbook.inference.likelihood import EncodedOnce, label_logprobs, target_logprobs
from openbook.models import contexts as contexts_module
from openbook.models.contexts import encode_contexts
from openbook.models.seq2seq import load_generator
from openbook.models.small_reader.layers import ReaderConfig
from openbook.models.small_reader.model import MiniLMReader

SMALL_READER = ReaderConfig((0,), (0,), vocab=100, dim=12, heads=2, inner_dim=24, start_id=1, end_id=2)
BATCH, N_DOCS, N_TARGETS, TARGET_LEN, CONTEXT_LEN = 2, 3, 5, 7, 11


@pytest.fixture(scope="module")
def generator(generator_folder: Path) -> Any:
    return load_generator(str(generator_folder), 0.0, 0).eval()


@pytest.fixture
def contexts() -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask [batch * n_docs, context_len] of unlike lengths."""
    draw = torch.Generator().manual_seed(3)
    lengths = torch.randint(4, CONTEXT_LEN + 1, (BATCH * N_DOCS, 1), generator=draw)
    mask = torch.arange(CONTEXT_LEN) < lengths
    return torch.randint(5, 100, mask.shape, generator=draw).masked_fill(~mask, 0), mask


@pytest.fixture
def labels() -> torch.Tensor:
    """[batch, n_targets, target_len]: of every length, one question with fewer targets than the other."""
    draw = torch.Generator().manual_seed(5)
    labels = torch.randint(5, 100, (BATCH, N_TARGETS, TARGET_LEN), generator=draw)
    for number in range(BATCH):
        for place in range(N_TARGETS):
            labels[number, place, 1 + (3 * number + 2 * place) % TARGET_LEN :] = IGNORED_LABEL
    labels[1, 3:] = IGNORED_LABEL
    return labels


@torch.inference_mode()
def by_hand(generator: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    wanted = torch.zeros(BATCH, N_DOCS, N_TARGETS, TARGET_LEN)
    for number in range(BATCH):
        for passage in range(N_DOCS):
            context = number * N_DOCS + passage
            row = ids[context][mask[context]][None]
            for place in range(N_TARGETS):
                target = [token for token in labels[number, place].tolist() if token >= 0]
                read = torch.tensor([[generator.decoder_start_token_id, *target]])
                steps = generator.model(input_ids=row, decoder_input_ids=read).logits[0].double().softmax(-1)
                for t, token in enumerate(target):
                    wanted[number, passage, place, t] = float(steps[t, token].log())
    return wanted


@pytest.mark.parametrize("at_once", [1, 113 * 13, 1 << 24])
def test_targets_against_an_explicit_softmax(
    generator: Any, contexts: Any, labels: torch.Tensor, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", at_once)
    rows: list[int] = []
    head = generator.logits
    monkeypatch.setattr(generator, "logits", lambda hidden: rows.append(hidden.shape[0]) or head(hidden))
    with torch.inference_mode():
        found = target_logprobs(generator, generator.encode(*contexts), contexts[1], labels)
    monkeypatch.undo()
    assert found.shape == (BATCH, N_DOCS, N_TARGETS, TARGET_LEN) and found.dtype == torch.float32
    torch.testing.assert_close(found, by_hand(generator, *contexts, labels), atol=1e-5, rtol=1e-5)
    assert (found[(labels == IGNORED_LABEL)[:, None].expand_as(found)] == 0).all()
    assert sum(rows) == N_DOCS * int((labels >= 0).sum()), "padding costs no logits"
    assert max(rows) <= max(1, at_once // generator.head_weight.shape[0])


def test_nothing_but_padding_is_nothing(generator: Any, contexts: Any) -> None:
    nothing = torch.full((BATCH, 1, 2), IGNORED_LABEL)
    with torch.inference_mode():
        found = target_logprobs(generator, generator.encode(*contexts), contexts[1], nothing)
    assert torch.equal(found, torch.zeros(BATCH, N_DOCS, 1, 2))


def test_many_answers_are_scored_a_few_at_a_time(
    generator: Any, contexts: Any, labels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some questions have hundreds of aliases; memory does not grow with them."""
    monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", 2 * BATCH * N_DOCS * TARGET_LEN + 1)
    sizes: list[int] = []
    decode = generator.decode
    monkeypatch.setattr(generator, "decode", lambda ids, *rest: sizes.append(ids.numel()) or decode(ids, *rest))
    with torch.inference_mode():
        found = target_logprobs(generator, generator.encode(*contexts), contexts[1], labels)
    monkeypatch.undo()
    assert sizes == [2 * BATCH * N_DOCS * TARGET_LEN] * 2 + [BATCH * N_DOCS * TARGET_LEN]
    torch.testing.assert_close(found, by_hand(generator, *contexts, labels), atol=1e-5, rtol=1e-5)


def test_labels_against_an_explicit_softmax(generator: Any, contexts: Any) -> None:
    """One question has a passage less, which counts for nothing whatever the generator says of it."""
    scores = torch.tensor([[0.3, -0.5, 1.1], [0.7, -torch.inf, 0.2]])
    label_ids = torch.tensor([17, 5, 61, 44])
    with torch.inference_mode():
        found = label_logprobs(generator, generator.encode(*contexts), contexts[1], scores, label_ids)
    first = torch.zeros(BATCH, N_DOCS, 1, 1)
    for place, label in enumerate(label_ids.tolist()):
        one = torch.full((BATCH, N_TARGETS, TARGET_LEN), IGNORED_LABEL)
        one[:, 0, 0] = label
        first = by_hand(generator, *contexts, one)[:, :, 0, 0]
        wanted = (scores.softmax(1) * first.exp()).sum(1).log()
        torch.testing.assert_close(found[:, place], wanted, atol=1e-5, rtol=1e-5)
    assert found.exp().sum(1).max() < 1, "a share of the whole vocabulary, not of the labels"


def test_labels_without_any_passage_are_not_known(generator: Any, contexts: Any) -> None:
    scores = torch.full((BATCH, N_DOCS), -torch.inf)
    with torch.inference_mode():
        memory = generator.encode(*contexts)
        found = label_logprobs(generator, memory, contexts[1], scores, torch.tensor([17, 5]))
        # A missing passage's context may say NaN.
        spoilt = torch.cat([torch.full_like(memory[:1], torch.nan), memory[1:]])
        scores[0, 1], scores[1, 2] = 0.0, 0.0
        partly = label_logprobs(generator, spoilt, contexts[1], scores, torch.tensor([17, 5]))
    assert (found == -torch.inf).all()
    assert partly.isfinite().all()


def test_contexts_are_encoded_once(generator: Any, contexts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encode = generator.encode
    monkeypatch.setattr(generator, "encode", lambda *given: calls.append(1) or encode(*given))
    once: Any = EncodedOnce(generator)
    with torch.inference_mode():
        first, again = once.encode(*contexts), once.encode(*contexts)
    assert first is again and calls == [1]
    assert once.eos_token_id == generator.eos_token_id


def test_contexts_of_like_length_are_encoded_together(
    generator: Any, contexts: Any, labels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, mask = contexts
    lengths = mask.sum(1)
    reader = MiniLMReader(SMALL_READER).eval()
    for one in (generator, reader):
        with monkeypatch.context() as patch, torch.inference_mode():
            shapes: list[tuple[int, ...]] = []
            encode = one.encode
            patch.setattr(one, "encode", lambda *given, of=encode, to=shapes: to.append(given[0].shape) or of(*given))
            patch.setattr(contexts_module, "TOKENS_OF_A_PASS", {"cpu": 0})
            passes = encode_contexts(one, ids, mask)
            whole = encode(ids, mask)
        # Passes cost nothing here: each length has its own, and none is padded.
        assert sorted(width for n, width in shapes for _ in range(n)) == sorted(lengths.tolist())
        assert len(shapes) == len(set(lengths.tolist())) > 1
        parts = (memory if isinstance(memory, tuple) else (memory,) for memory in (passes, whole))
        for found, wanted in zip(*parts, strict=True):
            assert found.shape == wanted.shape and found.dtype == wanted.dtype
            torch.testing.assert_close(found[mask], wanted[mask])
            assert not found[~mask].any()
        with torch.inference_mode():
            logprobs = [target_logprobs(one, memory, mask, labels) for memory in (passes, whole)]
        torch.testing.assert_close(*logprobs)
