"""Greedy decoding against nested loops in float64 over a random table language model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openbook.errors import OpenBookError
from openbook.inference.rag_token import Decoded, Objective, greedy

BATCH, N_DOCS, CONTEXT_LEN, VOCAB, N_STATES, N_PASSAGES = 5, 3, 2, 11, 101, 17
PAD, START, EOS = 0, 1, 2
MAX_LENGTH = 7
OBJECTIVES: tuple[Objective, ...] = ("rag_token", "rag_sequence")


class TableGenerator:
    first_token_id = None
    """A language model that is a table: logits by (passage, state), the state a hash of the whole prefix."""

    decoder_start_token_id, eos_token_id, pad_token_id = START, EOS, PAD

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64, vocab: int = VOCAB):
        drawn = torch.randn(N_PASSAGES, N_STATES, vocab, generator=torch.Generator().manual_seed(seed))
        self.table = (2.0 * drawn).to(dtype)
        self.n_steps = 0

    def encode(self, context_ids: Tensor, context_mask: Tensor) -> Tensor:
        return context_ids[:, 0]

    def decode(
        self, decoder_input_ids: Tensor, memory: Tensor, context_mask: Tensor, cache: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        beams = decoder_input_ids.shape[0] // memory.shape[0]
        assert decoder_input_ids.shape == (memory.shape[0] * beams, 1)
        memory = memory.repeat_interleave(beams)
        state = next_state(torch.zeros_like(memory) if cache is None else cache, decoder_input_ids[:, 0])
        self.n_steps += 1
        return self.table[memory, state].unsqueeze(1), state

    def reorder(self, cache: Tensor, rows: Tensor) -> Tensor:
        return cache[rows]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def next_state(state: Tensor, token: Tensor) -> Tensor:
    return (state * 5 + token + 3) % N_STATES


def inputs(seed: int, batch: int = BATCH, missing: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(100 + seed)
    context_ids = torch.randint(N_PASSAGES, (batch * N_DOCS, CONTEXT_LEN), generator=draw)
    scores = torch.randn(batch, N_DOCS, generator=draw, dtype=torch.float64)
    if missing:
        scores[0, 1] = scores[batch - 1, 0] = -math.inf
    return context_ids, torch.ones_like(context_ids), torch.log_softmax(scores, dim=1)


def prefix_logprob(
    table: Tensor, passages: list[int], doc_logprobs: list[float], tokens: list[int], objective: str
) -> tuple[float, list[float]]:
    """log p(y|x) of a prefix and the posterior, by the paper's sums over probabilities, from scratch."""
    unnormalised = np.exp(table.double().numpy())
    probability_of = unnormalised / unnormalised.sum(axis=2, keepdims=True)
    per_doc: list[list[float]] = []
    for passage in passages:
        state, previous, probabilities = 0, START, []
        for token in tokens:
            state = (state * 5 + previous + 3) % N_STATES
            probabilities.append(float(probability_of[passage, state, token]))
            previous = token
        per_doc.append(probabilities)
    prior = [math.exp(value) for value in doc_logprobs]
    if objective == "rag_sequence":
        joint = [p * math.prod(probabilities) for p, probabilities in zip(prior, per_doc, strict=True)]
        return math.log(sum(joint)), [value / sum(joint) for value in joint]
    total, posterior = 0.0, [0.0] * len(prior)
    for step in range(len(tokens)):
        joint = [p * probabilities[step] for p, probabilities in zip(prior, per_doc, strict=True)]
        total += math.log(sum(joint))
        posterior = [r + value / sum(joint) / len(tokens) for r, value in zip(posterior, joint, strict=True)]
    return total, posterior


def brute_force(
    table: Tensor, passages: list[int], doc_logprobs: list[float], objective: str, min_length: int = 0
) -> tuple[list[int], float, list[float]]:
    tokens: list[int] = []
    while len(tokens) < MAX_LENGTH and EOS not in tokens:
        allowed = [token for token in range(VOCAB) if token != EOS or len(tokens) + 1 >= min_length]
        scored = [prefix_logprob(table, passages, doc_logprobs, [*tokens, token], objective)[0] for token in allowed]
        tokens.append(allowed[max(range(len(allowed)), key=scored.__getitem__)])
    return tokens, *prefix_logprob(table, passages, doc_logprobs, tokens, objective)


def padded(tokens: list[int], length: int) -> list[int]:
    return tokens + [PAD] * (length - len(tokens))


@pytest.mark.parametrize("min_length", [0, 4])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_greedy_is_the_argmax_path_of_the_marginal(objective: Objective, min_length: int) -> None:
    lengths = set()
    for seed in range(8):
        generator = TableGenerator(seed)
        context_ids, context_mask, doc_logprobs = inputs(seed)
        decoded = greedy(generator, context_ids, context_mask, doc_logprobs, objective, MAX_LENGTH, min_length)
        for b, passages in enumerate(context_ids[:, 0].view(BATCH, N_DOCS).tolist()):
            tokens, logprob, _ = brute_force(generator.table, passages, doc_logprobs[b].tolist(), objective, min_length)
            assert decoded.token_ids[b].tolist() == padded(tokens, decoded.token_ids.shape[1])
            assert decoded.sequence_logprob[b].item() == pytest.approx(logprob, abs=1e-9)
            assert len(tokens) >= min_length
            lengths.add(len(tokens))
    assert len(lengths) >= 3, "the cases must differ in length to say anything about padding"


def test_the_two_objectives_differ() -> None:
    paths = {objective: [] for objective in OBJECTIVES}  # type: dict[str, list[list[int]]]
    for seed, objective in ((seed, objective) for seed in range(8) for objective in OBJECTIVES):
        paths[objective].append(greedy(TableGenerator(seed), *inputs(seed), objective, MAX_LENGTH).token_ids.tolist())
    assert paths["rag_token"] != paths["rag_sequence"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_batched_equals_one_by_one(objective: Objective) -> None:
    for seed in range(3):
        generator = TableGenerator(seed)
        context_ids, context_mask, doc_logprobs = inputs(seed)
        together = greedy(generator, context_ids, context_mask, doc_logprobs, objective, MAX_LENGTH)
        for b in range(BATCH):
            rows = slice(b * N_DOCS, (b + 1) * N_DOCS)
            alone = greedy(
                generator, context_ids[rows], context_mask[rows], doc_logprobs[b : b + 1], objective, MAX_LENGTH
            )
            length = together.token_ids.shape[1]
            assert together.token_ids[b].tolist() == padded(alone.token_ids[0].tolist(), length)
            torch.testing.assert_close(together.sequence_logprob[b], alone.sequence_logprob[0])


@pytest.mark.parametrize("garbage", [1e4, math.inf, math.nan])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_missing_passages_do_not_matter(objective: Objective, garbage: float) -> None:
    generator = TableGenerator(3)
    context_ids, context_mask, doc_logprobs = inputs(3)
    context_ids = context_ids % (N_PASSAGES - 1)
    before = greedy(generator, context_ids, context_mask, doc_logprobs, objective, MAX_LENGTH)
    # every missing passage now reads the last row of the table, which holds nonsense
    missing = doc_logprobs.isinf().view(-1)
    assert int(missing.sum()) == 2
    generator.table[N_PASSAGES - 1] = garbage
    context_ids = torch.where(missing.unsqueeze(1), N_PASSAGES - 1, context_ids)
    after = greedy(generator, context_ids, context_mask, doc_logprobs, objective, MAX_LENGTH)
    for name in Decoded.__dataclass_fields__:
        assert torch.equal(getattr(before, name), getattr(after, name)), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_question_without_passages_is_not_nan(objective: Objective) -> None:
    generator = TableGenerator(4)
    context_ids, context_mask, doc_logprobs = inputs(4)
    expected = greedy(generator, context_ids, context_mask, doc_logprobs, objective, MAX_LENGTH)
    doc_logprobs = doc_logprobs.clone()
    doc_logprobs[2] = -math.inf
    decoded = greedy(generator, context_ids, context_mask, doc_logprobs, objective, MAX_LENGTH)
    assert decoded.token_ids[2].tolist() == padded([EOS], decoded.token_ids.shape[1])
    assert decoded.sequence_logprob[2] == -math.inf
    others = [0, 1, 3, 4]
    assert torch.equal(decoded.sequence_logprob[others], expected.sequence_logprob[others])
    assert torch.equal(decoded.sequence_logprob[others], expected.sequence_logprob[others])


def test_closed_book_is_plain_greedy() -> None:
    generator = TableGenerator(5)
    context_ids, context_mask, _ = inputs(5)
    doc_logprobs = torch.zeros(BATCH * N_DOCS, 1)
    decoded = greedy(generator, context_ids, context_mask, doc_logprobs, "closed_book", MAX_LENGTH)
    for b, passage in enumerate(context_ids[:, 0].tolist()):
        tokens, logprob, _ = brute_force(generator.table, [passage], [0.0], "rag_token")
        assert decoded.token_ids[b].tolist() == padded(tokens, decoded.token_ids.shape[1])
        assert decoded.sequence_logprob[b].item() == pytest.approx(logprob, abs=1e-5)


def test_decoding_stops_when_all_are_finished() -> None:
    generator = TableGenerator(6)
    generator.table[:, :, EOS] = 50.0
    decoded = greedy(generator, *inputs(6), "rag_token", MAX_LENGTH)
    assert generator.n_steps == 1
    assert decoded.token_ids.tolist() == [[EOS]] * BATCH


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_half_precision_logits_are_marginalised_in_fp32(objective: Objective) -> None:
    generator = TableGenerator(1, dtype=torch.bfloat16)
    context_ids, context_mask, doc_logprobs = inputs(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded = greedy(generator, context_ids, context_mask, doc_logprobs.float(), objective, MAX_LENGTH)
    assert decoded.sequence_logprob.dtype == torch.float32
    for b, passages in enumerate(context_ids[:, 0].view(BATCH, N_DOCS).tolist()):
        tokens, logprob, _ = brute_force(generator.table, passages, doc_logprobs[b].tolist(), objective)
        assert decoded.token_ids[b].tolist() == padded(tokens, decoded.token_ids.shape[1])
        assert decoded.sequence_logprob[b].item() == pytest.approx(logprob, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "rag_sequenze"}, r"unknown objective: got 'rag_sequenze', expected one of rag_token, rag_seq"),
        ({"max_length": 0}, "answers of no possible length: got min_length 0, max_length 0"),
        ({"min_length": 8}, "got min_length 8, max_length 7"),
        ({"doc_logprobs": torch.zeros(BATCH, 2)}, r"got 15 contexts, expected batch 5 \* n_docs 2 = 10"),
        ({"doc_logprobs": torch.full((BATCH, N_DOCS), math.nan)}, "doc_logprobs holds NaN"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    context_ids, context_mask, doc_logprobs = inputs(0)
    arguments: dict[str, Any] = {
        "doc_logprobs": doc_logprobs,
        "objective": "rag_token",
        "max_length": MAX_LENGTH,
        **change,
    }
    with pytest.raises(OpenBookError, match=message):
        greedy(TableGenerator(0), context_ids, context_mask, **arguments)
