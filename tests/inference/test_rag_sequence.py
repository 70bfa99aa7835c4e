"""RAG-Sequence decoding against every answer that there is, against loops in float64, and against transformers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    BartForConditionalGeneration,
    BertConfig,
    RagConfig,
    RagSequenceForGeneration,
)

from openbook.errors import OpenBookError
from openbook.inference.rag_sequence import (
    SequenceHypothesis,
    rag_sequence_fast,
    rag_sequence_thorough,
    sequence_logprobs,
)
from openbook.inference.rag_token import rag_token_beams
from openbook.models.seq2seq import Seq2SeqGenerator
from tests.models.test_attention import KINDS, build, contexts
from tests.tiny_models import bart_config

BATCH, N_DOCS, CONTEXT_LEN, VOCAB, N_STATES, N_PASSAGES = 4, 3, 2, 5, 13, 17
PAD, START, EOS = 0, 1, 2
MAX_LENGTH = 4
Tokens = tuple[int, ...]


class TableGenerator:
    first_token_id = None
    """A language model that is a table: logits by (passage, state), the state a hash of the whole prefix."""

    decoder_start_token_id, eos_token_id, pad_token_id = START, EOS, PAD

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64):
        drawn = torch.randn(N_PASSAGES, N_STATES, VOCAB, generator=torch.Generator().manual_seed(seed))
        self.table = (1.5 * drawn).to(dtype)
        self.n_encodings = 0
        self.shapes: list[tuple[int, int]] = []  # of what was decoded: (rows per context, target_len)
        self.n_head_rows = 0

    def encode(self, context_ids: Tensor, context_mask: Tensor) -> Tensor:
        self.n_encodings += 1
        return context_ids[:, 0]

    def decode(
        self, decoder_input_ids: Tensor, memory: Tensor, context_mask: Tensor, cache: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        rows, target_len = decoder_input_ids.shape
        assert memory.shape[0] == context_mask.shape[0] and rows % memory.shape[0] == 0
        self.shapes.append((rows // memory.shape[0], target_len))
        passages = memory.repeat_interleave(rows // memory.shape[0])
        state, hidden = torch.zeros_like(passages) if cache is None else cache, []
        for t in range(target_len):
            state = (state * 5 + decoder_input_ids[:, t] + 3) % N_STATES
            hidden.append(self.table[passages, state])
        return torch.stack(hidden, 1), state

    def reorder(self, cache: Tensor, rows: Tensor) -> Tensor:
        return cache[rows]

    def logits(self, hidden: Tensor) -> Tensor:
        self.n_head_rows += hidden.shape[0]
        return hidden

    def logprob(self, passage: int, answer: Tokens) -> float:
        """log p(y | x, z) from scratch: each token's softmax in double precision, as a loop."""
        state, previous, total = 0, START, 0.0
        for token in answer:
            state = (state * 5 + previous + 3) % N_STATES
            values = [math.exp(value) for value in self.table[passage, state].tolist()]
            total += math.log(values[token] / sum(values))
            previous = token
        return total


def inputs(seed: int, missing: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Question 0 lacks a passage, the last question has none at all."""
    draw = torch.Generator().manual_seed(100 + seed)
    context_ids = torch.randint(N_PASSAGES - 1, (BATCH * N_DOCS, CONTEXT_LEN), generator=draw)
    doc_scores = torch.randn(BATCH, N_DOCS, generator=draw, dtype=torch.float64)
    if missing:
        doc_scores[0, 1] = -math.inf
    doc_logprobs = torch.log_softmax(doc_scores, dim=1)
    if missing:
        doc_logprobs[BATCH - 1] = -math.inf
    return context_ids, torch.ones_like(context_ids), doc_logprobs


def add(joint: list[float]) -> float:
    """log sum exp, by the sum."""
    total = sum(math.exp(value) for value in joint)
    return math.log(total) if total else -math.inf


def joint_of(generator: TableGenerator, passages: list[int], prior: list[float], answer: Tokens) -> list[float]:
    return [
        p + generator.logprob(passage, answer) if p > -math.inf else -math.inf
        for p, passage in zip(prior, passages, strict=True)
    ]


def every_answer(min_length: int) -> list[Tokens]:
    words = [token for token in range(VOCAB) if token != EOS]
    ended = [
        (*body, EOS)
        for length in range(max(min_length, 1), MAX_LENGTH + 1)
        for body in itertools.product(words, repeat=length - 1)
    ]
    return ended + list(itertools.product(words, repeat=MAX_LENGTH))


def best(joints: dict[Tokens, list[float]], length_penalty: float, n: int) -> list[SequenceHypothesis]:
    answers = [
        SequenceHypothesis(answer, add(joint), add(joint) / len(answer) ** length_penalty, tuple(joint))
        for answer, joint in joints.items()
    ]
    return sorted(answers, key=lambda answer: -answer.score)[:n]


def assert_same(found: list[SequenceHypothesis], expected: list[SequenceHypothesis]) -> None:
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]
    for mine, other in zip(found, expected, strict=True):
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert mine.score == pytest.approx(other.score, abs=1e-5)
        assert mine.joint == pytest.approx(other.joint, abs=1e-5)


def passages_of(context_ids: Tensor) -> list[list[int]]:
    return context_ids[:, 0].view(-1, N_DOCS).tolist()


@pytest.mark.parametrize("min_length", [0, 3])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5])
def test_with_beams_for_all_it_is_the_best_of_every_answer(length_penalty: float, min_length: int) -> None:
    generator = TableGenerator(int(length_penalty))
    context_ids, context_mask, doc_logprobs = inputs(0)
    answers = every_answer(min_length)
    settings = (len(answers), MAX_LENGTH, min_length, length_penalty)
    joints = [
        {answer: joint_of(generator, passages, prior, answer) for answer in answers}
        for passages, prior in zip(passages_of(context_ids), doc_logprobs.tolist(), strict=True)
    ]
    for n_best in (1, 7):
        found = rag_sequence_thorough(generator, context_ids, context_mask, doc_logprobs, *settings, n_best)
        fast = rag_sequence_fast(generator, context_ids, context_mask, doc_logprobs, *settings, n_best)
        for b in range(BATCH - 1):
            assert_same(found[b], best(joints[b], length_penalty, n_best))
            assert_same(fast[b], found[b])  # every passage has found everything: nothing is left out


@pytest.mark.parametrize("min_length", [0, 3])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("beams", [1, 2, 3])
def test_candidates_are_the_union_of_the_beams(beams: int, length_penalty: float, min_length: int) -> None:
    scored_elsewhere = 0
    for seed in range(5):
        generator = TableGenerator(seed)
        context_ids, context_mask, doc_logprobs = inputs(seed)
        arguments = (generator, context_ids, context_mask, doc_logprobs, beams, MAX_LENGTH, min_length, length_penalty)
        thorough = rag_sequence_thorough(*arguments, n_best=99)
        fast = rag_sequence_fast(*arguments, n_best=99)
        for b, passages in enumerate(passages_of(context_ids)[:-1]):
            prior = doc_logprobs[b].tolist()
            producers: dict[Tokens, list[int]] = {}
            for k, passage in enumerate(passages):
                alone = (torch.tensor([[passage, 0]]), torch.ones(1, 2), torch.zeros(1, 1))
                if prior[k] > -math.inf:
                    for answer in rag_token_beams(
                        generator, *alone, beams, MAX_LENGTH, min_length, length_penalty, n_best=beams
                    )[0]:
                        producers.setdefault(answer.token_ids, []).append(k)
            joints = {answer: joint_of(generator, passages, prior, answer) for answer in producers}
            assert_same(thorough[b], best(joints, length_penalty, 99))
            narrow = {
                answer: [value if k in producers[answer] else -math.inf for k, value in enumerate(joint)]
                for answer, joint in joints.items()
            }
            assert_same(fast[b], best(narrow, length_penalty, 99))
            whole = {answer.token_ids: answer.logprob for answer in thorough[b]}
            assert all(whole[answer.token_ids] >= answer.logprob - 1e-6 for answer in fast[b])
            assert all(min_length <= len(answer.token_ids) <= MAX_LENGTH for answer in thorough[b])
            scored_elsewhere += sum(whole[answer.token_ids] > answer.logprob + 0.01 for answer in fast[b])
    assert scored_elsewhere > 10, "most answers must gain from passages whose beams did not find them"


def test_fast_and_thorough_by_hand() -> None:
    """Three passages, one beam, one token. p(.|z): passage 0 says token 3 with .7, passages 1 and 2 say token 4 with
    .6 and .5. Fast: p(3) = .5 * .7 = .35, p(4) = .3 * .6 + .2 * .5 = .28. Thorough: p(3) = .35 + .3 * .1 + .2 * .25
    = .43, p(4) = .5 * .05 + .28 = .305."""
    generator = TableGenerator()
    first_state = (START + 3) % N_STATES
    rows = [[0.05, 0.1, 0.1, 0.7, 0.05], [0.1, 0.1, 0.1, 0.1, 0.6], [0.05, 0.1, 0.1, 0.25, 0.5]]
    generator.table[:3, first_state] = torch.tensor(rows, dtype=torch.float64).log()
    context_ids = torch.tensor([[0, 0], [1, 0], [2, 0]])
    prior = torch.tensor([[0.5, 0.3, 0.2]]).log()
    (fast,) = rag_sequence_fast(generator, context_ids, context_ids.new_ones(3, 2), prior, 1, 1, n_best=5)
    (thorough,) = rag_sequence_thorough(generator, context_ids, context_ids.new_ones(3, 2), prior, 1, 1, n_best=5)
    assert [answer.token_ids for answer in fast] == [answer.token_ids for answer in thorough] == [(3,), (4,)]
    assert [math.exp(answer.logprob) for answer in fast] == pytest.approx([0.35, 0.28], abs=1e-6)
    assert [math.exp(answer.logprob) for answer in thorough] == pytest.approx([0.43, 0.305], abs=1e-6)
    assert thorough[0].posterior == pytest.approx([0.35 / 0.43, 0.03 / 0.43, 0.05 / 0.43], abs=1e-6)
    assert fast[1].posterior == pytest.approx([0.0, 0.18 / 0.28, 0.1 / 0.28], abs=1e-6)


def test_contexts_are_encoded_once_and_nothing_known_is_computed_again() -> None:
    generator = TableGenerator(1)
    context_ids, context_mask, doc_logprobs = inputs(1)
    rag_sequence_thorough(generator, context_ids, context_mask, doc_logprobs, 2, MAX_LENGTH)
    assert generator.n_encodings == 1
    assert max(target_len for _, target_len in generator.shapes) > 1, "other passages' answers need a pass"
    # one passage per question: its beams know everything
    generator = TableGenerator(1)
    one_each = torch.zeros(BATCH * N_DOCS, 1)
    found = rag_sequence_thorough(generator, context_ids, context_mask, one_each, 2, MAX_LENGTH, n_best=2)
    assert {target_len for _, target_len in generator.shapes} == {1}
    plain = rag_token_beams(generator, context_ids, context_mask, one_each, 2, MAX_LENGTH, n_best=2)
    assert [[answer.token_ids for answer in own] for own in found] == [[a.token_ids for a in own] for own in plain]
    assert [own[0].logprob for own in found] == pytest.approx([own[0].logprob for own in plain])


def test_shared_prefixes_pass_once() -> None:
    generator = TableGenerator(2)
    memory, mask = torch.tensor([5, 7]), torch.ones(2, CONTEXT_LEN)
    wanted: list[list[Tokens]] = [[(3, 4, 2), (3, 4, 3, 2), (3, 4, 3, 4), (3, 2), (2,)], [(4,)]]
    found = sequence_logprobs(generator, memory, mask, wanted)
    assert generator.shapes == [(1, 4)]  # start 3 4 3 holds all that the five answers read
    assert (
        generator.n_head_rows == len({(3,), (3, 4), (3, 4, 2), (3, 4, 3), (3, 4, 3, 2), (3, 4, 3, 4), (3, 2), (2,)}) + 1
    )
    for passage, answers, known in zip((5, 7), wanted, found, strict=True):
        assert list(known) == answers
        assert list(known.values()) == pytest.approx([generator.logprob(passage, answer) for answer in answers])


@pytest.mark.parametrize("tokens_per_pass", [1, 29, 150])
def test_passes_of_any_size_give_the_same(tokens_per_pass: int) -> None:
    generator = TableGenerator(3)
    arguments = (*inputs(3), 3, MAX_LENGTH)
    whole = rag_sequence_thorough(generator, *arguments, n_best=99)
    n_whole = len(generator.shapes)
    generator.shapes.clear()
    parts = rag_sequence_thorough(generator, *arguments, n_best=99, tokens_per_pass=tokens_per_pass)
    assert len(generator.shapes) > n_whole
    scoring = generator.shapes[MAX_LENGTH:]
    assert all(width == 1 or BATCH * N_DOCS * width * length <= tokens_per_pass for width, length in scoring)
    for mine, other in zip(parts, whole, strict=True):
        assert_same(mine, other)


@pytest.mark.parametrize("garbage", [1e4, math.inf, math.nan])
def test_missing_passages_do_not_matter(garbage: float) -> None:
    generator = TableGenerator(4)
    context_ids, context_mask, doc_logprobs = inputs(4)
    before = rag_sequence_thorough(generator, context_ids, context_mask, doc_logprobs, 3, MAX_LENGTH, n_best=99)
    generator.table[N_PASSAGES - 1] = garbage
    context_ids = torch.where(doc_logprobs.isinf().view(-1, 1), N_PASSAGES - 1, context_ids)
    after = rag_sequence_thorough(generator, context_ids, context_mask, doc_logprobs, 3, MAX_LENGTH, n_best=99)
    assert after == before
    assert all(answer.joint[1] == -math.inf and answer.posterior[1] == 0 for answer in after[0])
    nothing = SequenceHypothesis((EOS,), -math.inf, -math.inf, (-math.inf,) * N_DOCS)
    assert after[-1] == [nothing]
    assert nothing.posterior == (0.0,) * N_DOCS
    assert rag_sequence_fast(generator, context_ids, context_mask, doc_logprobs, 3, MAX_LENGTH)[-1] == [nothing]


def test_half_precision_logits_are_marginalised_in_fp32() -> None:
    generator = TableGenerator(5, dtype=torch.bfloat16)
    context_ids, context_mask, doc_logprobs = inputs(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rag_sequence_thorough(generator, context_ids, context_mask, doc_logprobs.float(), 2, MAX_LENGTH)
    for b, passages in enumerate(passages_of(context_ids)[:-1]):
        (answer,) = found[b]
        assert answer.joint == pytest.approx(
            joint_of(generator, passages, doc_logprobs[b].tolist(), answer.token_ids), abs=1e-4
        )
        assert sum(answer.posterior) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"doc_logprobs": torch.zeros(BATCH, 2)}, r"got 12 contexts, expected batch 4 \* n_docs 2 = 8"),
        ({"doc_logprobs": torch.full((BATCH, N_DOCS), math.nan)}, "doc_logprobs holds NaN"),
        ({"n_best": 0}, "no answer is asked for: got n_best 0, expected at least 1"),
        ({"tokens_per_pass": 0}, "no room to score in: got tokens_per_pass 0, expected at least 1"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    context_ids, context_mask, doc_logprobs = inputs(0)
    arguments = {"doc_logprobs": doc_logprobs, "beams": 2, "max_length": MAX_LENGTH, **change}
    with pytest.raises(OpenBookError, match=message):
        rag_sequence_thorough(TableGenerator(), context_ids, context_mask, **arguments)


def bart(seed: int) -> Seq2SeqGenerator:
    """Random weights and BART's own special tokens. Neither padding nor <s> is ever written: transformers does not
    score them. (Nor may padding be token 0: its beams would fill up with end-of-sequence instead, and score that.)"""
    torch.manual_seed(seed)
    ids = {"pad": 1, "bos": 0, "eos": 2, "decoder_start_token_id": 2}
    config = bart_config(97, layers=(1, 2), **ids, max_position_embeddings=64, dropout=0.0, init_std=0.4)
    model = BartForConditionalGeneration(config)
    model.final_logits_bias[:, :2] = -1e4
    model.final_logits_bias[:, 2] = 3.0
    return Seq2SeqGenerator(model).eval()


def ragged(seed: int, batch: int, n_docs: int, context_len: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    lengths = torch.randint(2, context_len, (batch * n_docs, 1))
    lengths[0] = context_len
    mask = torch.arange(context_len) < lengths
    ids = torch.randint(4, 97, (batch * n_docs, context_len)).masked_fill(~mask, 1)
    return ids, mask.long(), torch.randn(batch, n_docs).log_softmax(1)


def test_scores_are_the_models_own() -> None:
    generator = bart(0)
    context_ids, context_mask, _ = ragged(0, 2, 2, 11)
    answers: list[Tokens] = [(7, 8, 9, 2), (7, 8, 2), (11,), (7, 12, 13, 14, 15)]
    with torch.inference_mode():
        memory = generator.encode(context_ids, context_mask)
        found = sequence_logprobs(generator, memory, context_mask, [answers, answers[:1], [], answers[2:]], 37)
    for context, known in enumerate(found):
        for answer, logprob in known.items():
            logits = (
                generator.model(
                    input_ids=context_ids[context : context + 1],
                    attention_mask=context_mask[context : context + 1],
                    decoder_input_ids=torch.tensor([[generator.decoder_start_token_id, *answer[:-1]]]),
                )
                .logits[0]
                .double()
            )
            expected = logits.log_softmax(-1).gather(1, torch.tensor(answer).unsqueeze(1)).sum()
            assert logprob == pytest.approx(expected.item(), abs=1e-4)
    assert [len(known) for known in found] == [4, 1, 0, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_beams_know_is_what_a_pass_would_find(kind: str) -> None:
    """For BART, T5 and the small reader; equal but for the order of sums in fp32."""
    generator, (context_ids, context_mask) = build(kind), contexts()
    found = rag_token_beams(generator, context_ids, context_mask, torch.zeros(len(context_ids), 1), 3, 5, n_best=3)
    with torch.inference_mode():
        memory = generator.encode(context_ids, context_mask)
    wanted = [[answer.token_ids for answer in own] for own in found]
    wanted[1] = wanted[1][:1]  # rows are filled up where a context has fewer
    again = sequence_logprobs(generator, memory, context_mask, wanted, tokens_per_pass=67)
    for own, known in zip(found, again, strict=True):
        expected = [answer.logprob for answer in own][: len(known)]
        assert expected == pytest.approx(list(known.values()), abs=2e-5, rel=1e-5)
    assert sum(map(len, again)) == 3 * len(context_ids) - 2


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_transformers_chooses_the_same(seed: int, beams: int) -> None:
    """Its thorough decoding scores with its loss, which adds log p(z|x) at the second target position and drops it
    where that is padding, so that short answers are scored without a prior. With min_length 2 every answer has a
    second position; there it is the paper's sum. n_docs is the config's, which it asserts. Its beams are given no
    attention mask and read padding: contexts have none here."""
    batch, n_docs, max_length, min_length = 2, 5, 7, 2
    generator = bart(seed)
    _, _, doc_logprobs = ragged(seed, batch, n_docs)
    context_ids = torch.randint(4, 97, (batch * n_docs, 13))
    context_mask = torch.ones_like(context_ids)
    question_config = BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, vocab_size=41)
    config = RagConfig.from_question_encoder_generator_configs(question_config, generator.model.config, n_docs=n_docs)
    encoder = AutoModel.from_config(question_config)
    peer = RagSequenceForGeneration(config=config, question_encoder=encoder, generator=generator.model).eval()
    for length_penalty in (0.0, 1.0):
        # theirs ranks the candidates by likelihood alone, whatever ranked the beams: so does the sort below
        theirs = peer.generate(
            context_input_ids=context_ids,
            context_attention_mask=context_mask,
            doc_scores=doc_logprobs,
            num_beams=beams,
            num_return_sequences=beams,
            max_length=max_length + 1,
            min_length=min_length,
            length_penalty=length_penalty,
            early_stopping=False,
        )
        ours = rag_sequence_thorough(
            generator, context_ids, context_mask, doc_logprobs, beams, max_length, min_length, length_penalty, 99
        )
        for b in range(batch):
            chosen = sorted(ours[b], key=lambda answer: -answer.logprob)[:beams]
            expected = [
                tuple(token for token in row.tolist()[1:] if token != generator.pad_token_id)
                for row in theirs[b * beams : (b + 1) * beams]
            ]
            assert [answer.token_ids for answer in chosen] == expected
            assert len({len(answer.token_ids) for answer in ours[b]}) > 1 or seed
