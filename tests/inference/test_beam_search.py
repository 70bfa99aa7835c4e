"""Beam search over the RAG-Token marginal against the enumeration of all answers of a tiny vocabulary, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from openbook.errors import OpenBookError
from openbook.inference.beam_search import Hypothesis
from openbook.inference.rag_token import greedy, rag_token_beams
from tests.inference.test_rag_token import (
    BATCH,
    EOS,
    MAX_LENGTH,
    N_DOCS,
    START,
    VOCAB,
    TableGenerator,
    inputs,
    next_state,
    prefix_logprob,
)

FEW = 5  # tokens of the tiny vocabulary


def all_answers(
    generator: TableGenerator, passages: list[int], doc_logprobs: list[float], max_length: int, min_length: int
) -> list[tuple[tuple[int, ...], float]]:
    """Every answer that can be given, with its log-probability by prefix_logprob's sums over probabilities."""
    others = [token for token in range(generator.table.shape[2]) if token != EOS]
    found = []
    for length in range(max(min_length, 1), max_length + 1):
        for words in itertools.product(others, repeat=length - 1):
            for last in (EOS, *others) if length == max_length else (EOS,):
                tokens = [*words, last]
                logprob = prefix_logprob(generator.table, passages, doc_logprobs, tokens, "rag_token")[0]
                found.append((tuple(tokens), logprob))
    return found


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize(("max_length", "min_length"), [(1, 0), (3, 0), (3, 2), (4, 3), (3, 3)])
def test_wide_beams_find_the_best_of_all_answers(max_length: int, min_length: int, length_penalty: float) -> None:
    beams, n_best = FEW ** (max_length - 1), min(7, FEW ** (max_length - 1))
    lengths = set()
    for seed in range(2 if max_length == 4 else 4):
        generator = TableGenerator(seed, vocab=FEW)
        context_ids, context_mask, doc_logprobs = inputs(seed, batch=3)
        answers = rag_token_beams(
            generator, context_ids, context_mask, doc_logprobs, beams, max_length, min_length, length_penalty, n_best
        )
        for b, passages in enumerate(context_ids[:, 0].view(3, N_DOCS).tolist()):
            every = all_answers(generator, passages, doc_logprobs[b].tolist(), max_length, min_length)
            every.sort(key=lambda answer: -answer[1] / len(answer[0]) ** length_penalty)
            assert [found.token_ids for found in answers[b]] == [tokens for tokens, _ in every[:n_best]]
            for found, (tokens, logprob) in zip(answers[b], every, strict=False):
                assert found.logprob == pytest.approx(logprob, abs=1e-9)
                assert found.score == pytest.approx(logprob / len(tokens) ** length_penalty, abs=1e-9)
                lengths.add(len(tokens))
    assert len(lengths) > 1 or max_length == 1 or max_length == min_length or length_penalty > 1


def reference(
    generator: TableGenerator, passages: list[int], doc_logprobs: list[float], beams: int, penalty: float
) -> list[Hypothesis]:
    """The same search for one question, prefix by prefix, every log-probability from scratch."""
    running, found = [((), 0.0)], []  # type: ignore[var-annotated]
    for length in range(1, MAX_LENGTH + 1):
        candidates = [
            (
                (*tokens, token),
                prefix_logprob(generator.table, passages, doc_logprobs, [*tokens, token], "rag_token")[0],
            )
            for tokens, _ in running
            for token in range(VOCAB)
        ]
        candidates = sorted(candidates, key=lambda candidate: -candidate[1])[: 2 * beams]
        ends = [tokens[-1] == EOS or length == MAX_LENGTH for tokens, _ in candidates]
        found += [
            Hypothesis(tokens, value, value / length**penalty)
            for (tokens, value), end in zip(candidates[:beams], ends, strict=False)
            if end
        ]
        found = sorted(found, key=lambda hypothesis: -hypothesis.score)[:beams]
        running = [candidate for candidate, end in zip(candidates, ends, strict=True) if not end][:beams]
        if not running or (len(found) == beams and running[0][1] / length**penalty <= found[-1].score):
            break
    return found


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("beams", [1, 2, 3])
def test_narrow_beams_follow_the_algorithm(beams: int, length_penalty: float) -> None:
    cut = set()
    for seed in range(3):
        generator = TableGenerator(seed)
        context_ids, context_mask, doc_logprobs = inputs(seed)
        answers = rag_token_beams(
            generator,
            context_ids,
            context_mask,
            doc_logprobs,
            beams,
            MAX_LENGTH,
            length_penalty=length_penalty,
            n_best=beams,
        )
        for b, passages in enumerate(context_ids[:, 0].view(BATCH, N_DOCS).tolist()):
            expected = reference(generator, passages, doc_logprobs[b].tolist(), beams, length_penalty)
            assert [found.token_ids for found in answers[b]] == [found.token_ids for found in expected]
            assert [found.score for found in answers[b]] == pytest.approx([found.score for found in expected], abs=1e-9)
            cut |= {len(found.token_ids) for found in answers[b]}
    assert len(cut) > 1


@pytest.mark.parametrize("min_length", [0, 4])
def test_one_beam_without_a_penalty_is_greedy(min_length: int) -> None:
    """Greedy's answer is a running prefix until it ends, and then nothing longer can be more probable."""
    for seed in range(5):
        generator = TableGenerator(seed)
        asked = inputs(seed)
        plain = greedy(generator, *asked, "rag_token", MAX_LENGTH, min_length)
        answers = rag_token_beams(generator, *asked, 1, MAX_LENGTH, min_length)
        for b, (answer,) in enumerate(answers):
            produced = plain.token_ids[b].tolist()
            if EOS not in answer.token_ids or EOS in produced:
                assert list(answer.token_ids) == produced[: len(answer.token_ids)]
            assert answer.logprob == pytest.approx(plain.sequence_logprob[b].item(), abs=1e-9)


def test_more_beams_are_never_much_worse_and_sometimes_better() -> None:
    gains = []
    for seed in range(6):
        generator, asked = TableGenerator(seed), inputs(seed)
        narrow, wide = (rag_token_beams(generator, *asked, beams, MAX_LENGTH) for beams in (1, 40))
        gains += [more[0].logprob - less[0].logprob for less, more in zip(narrow, wide, strict=True)]
    assert np.mean(gains) > 0.01 and min(gains) > -1e-9


def test_batched_equals_one_by_one() -> None:
    generator = TableGenerator(1)
    context_ids, context_mask, doc_logprobs = inputs(1)
    together = rag_token_beams(generator, context_ids, context_mask, doc_logprobs, 3, MAX_LENGTH, n_best=3)
    for b in range(BATCH):
        rows = slice(b * N_DOCS, (b + 1) * N_DOCS)
        alone = rag_token_beams(
            generator, context_ids[rows], context_mask[rows], doc_logprobs[b : b + 1], 3, MAX_LENGTH, n_best=3
        )
        assert [found.token_ids for found in alone[0]] == [found.token_ids for found in together[b]]


@pytest.mark.parametrize("garbage", [1e4, math.inf, math.nan])
def test_missing_passages_do_not_matter(garbage: float) -> None:
    generator = TableGenerator(3)
    context_ids, context_mask, doc_logprobs = inputs(3)
    context_ids = context_ids % (len(generator.table) - 1)
    doc_logprobs = doc_logprobs.clone()
    doc_logprobs[2] = -math.inf
    before = rag_token_beams(generator, context_ids, context_mask, doc_logprobs, 3, MAX_LENGTH, n_best=2)
    generator.table[-1] = garbage
    context_ids = torch.where(doc_logprobs.isinf().view(-1, 1), len(generator.table) - 1, context_ids)
    after = rag_token_beams(generator, context_ids, context_mask, doc_logprobs, 3, MAX_LENGTH, n_best=2)
    assert before == after
    assert after[2] == [Hypothesis((EOS,), -math.inf, -math.inf)]
    assert all(math.isfinite(found.logprob) for b in (0, 1, 3, 4) for found in after[b])


def test_a_plain_search_per_context() -> None:
    """One context per question with a doc_logprob of 0, as candidates for RAG-Sequence are found."""
    generator = TableGenerator(5)
    context_ids, context_mask, _ = inputs(5)
    answers = rag_token_beams(generator, context_ids, context_mask, torch.zeros(BATCH * N_DOCS, 1), 2, MAX_LENGTH)
    for passage, (answer,) in zip(context_ids[:, 0].tolist(), answers, strict=True):
        state, previous, expected = torch.zeros(()), START, 0.0
        for token in answer.token_ids:
            state = next_state(state, torch.tensor(previous))
            expected += float(torch.log_softmax(generator.table[passage, int(state)], 0)[token])
            previous = token
        assert answer.logprob == pytest.approx(expected, abs=1e-5)


def test_searching_stops_when_nothing_can_improve() -> None:
    generator = TableGenerator(6)
    generator.table[:, :, EOS] = 50.0
    answers = rag_token_beams(generator, *inputs(6), 1, MAX_LENGTH)
    assert generator.n_steps == 1
    assert [answer.token_ids for (answer,) in answers] == [(EOS,)] * BATCH


def test_half_precision_logits_are_marginalised_in_fp32() -> None:
    generator = TableGenerator(1, dtype=torch.bfloat16)
    context_ids, context_mask, doc_logprobs = inputs(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = rag_token_beams(generator, context_ids, context_mask, doc_logprobs.float(), 3, MAX_LENGTH)
    for b, passages in enumerate(context_ids[:, 0].view(BATCH, N_DOCS).tolist()):
        tokens = list(answers[b][0].token_ids)
        logprob, _ = prefix_logprob(generator.table, passages, doc_logprobs[b].tolist(), tokens, "rag_token")
        assert answers[b][0].logprob == pytest.approx(logprob, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beams": 0}, "no beams: got n_best 1, beams 0"),
        ({"n_best": 4}, "more answers than beams: got n_best 4, beams 3, expected 1 <= n_best <= beams"),
        ({"max_length": 0}, "answers of no possible length"),
        ({"doc_logprobs": torch.zeros(BATCH, 2)}, "contexts do not fit doc_logprobs"),
        ({"doc_logprobs": torch.full((BATCH, N_DOCS), math.nan)}, "doc_logprobs holds NaN"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    context_ids, context_mask, doc_logprobs = inputs(0)
    arguments: dict[str, Any] = {"doc_logprobs": doc_logprobs, "beams": 3, "max_length": MAX_LENGTH, **change}
    with pytest.raises(OpenBookError, match=message):
        rag_token_beams(TableGenerator(0), context_ids, context_mask, **arguments)
