"""Decoding RAG-Sequence: one beam search per passage, then one likelihood per answer (Lewis et al. 2020, section 2.5).

RAG-Sequence's p(y|x) is a sum over passages of whole sequences, so it does not split into steps that one beam search
could follow. The paper searches every passage on its own and takes the union of what the beams found, Y:

    thorough   p(y|x) = sum_k p(z_k|x) p(y|x,z_k)                 for y in Y, under every passage
    fast       the same with p(y|x,z_k) taken as 0 where passage k's beams did not find y: no further pass

What a passage's own beams found needs no second pass there: the beams know its log-probability. The rest is scored by
teacher forcing, each distinct prefix once through the vocabulary head, over contexts that are encoded once.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from openbook.errors import OpenBookError
from openbook.inference.beam_search import Hypothesis
from openbook.inference.likelihood import EncodedOnce
from openbook.inference.rag_token import checked_shape, rag_token_beams
from openbook.models.generator import Generator
from openbook.objectives.marginal import token_logprobs_of

# Decoder tokens of all contexts in one scoring pass. A pass computes the contexts' cross-attention keys once, so few
# large ones are cheaper; a BART-base pass of this size holds a few hundred MiB.
TOKENS_PER_PASS = 8192

# Rows through the vocabulary head at a time: [128, vocab] of logits is all that exists at once.
HEAD_ROWS = 128

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class SequenceHypothesis(Hypothesis):
    """An answer and what each passage has to do with it.

    joint: [n_docs], log p(z_k|x) + log p(y|x,z_k), -inf where there is no passage (or, decoded fast, where its beams
        did not find y); `logprob` is its logsumexp.
    """

    joint: tuple[float, ...]

    @property
    def posterior(self) -> tuple[float, ...]:
        """p(z_k | x, y) [n_docs], the softmax of joint: which passages the answer comes from. All 0 without one."""
        if self.logprob == -math.inf:
            return (0.0,) * len(self.joint)
        return tuple(math.exp(value - self.logprob) for value in self.joint)


@torch.inference_mode()
def rag_sequence_thorough(
    generator: Generator,
    context_ids: Tensor,
    context_mask: Tensor,
    doc_logprobs: Tensor,
    beams: int,
    max_length: int,
    min_length: int = 0,
    length_penalty: float = 0.0,
    n_best: int = 1,
    tokens_per_pass: int = TOKENS_PER_PASS,
    *,
    no_repeat_ngram: int = 0,
) -> list[list[SequenceHypothesis]]:
    """The most probable answers among all that any passage's beams found, each scored under every passage.

    context_ids, context_mask: [batch * n_docs, context_len], the contexts of a question side by side.
    doc_logprobs: [batch, n_docs], log p(z|x), -inf where there is no passage: such a passage neither proposes nor
        counts. A question with no passage at all gets end-of-sequence alone, with logprob -inf.
    max_length, min_length: tokens, end-of-sequence included. An answer of max_length may lack end-of-sequence, and is
        scored as it is.
    length_penalty: ranks, in the beams and in the end, by logprob / length ** length_penalty.
    no_repeat_ngram: of what beams may find, as in rag_token_beams.
    n_best: at most so many per question, best first. Answers that beams found more than once count once.
    tokens_per_pass: decoder tokens in one scoring pass, all contexts together; at least one answer for each.

    Likelihoods are computed in fp32 whatever the autocast dtype. The caller puts the generator in eval mode.
    """
    if tokens_per_pass < 1:
        raise OpenBookError("no room to score in", got=f"tokens_per_pass {tokens_per_pass}", expected="at least 1")
    shared = EncodedOnce(generator)
    limits = (max_length, min_length, length_penalty, n_best, no_repeat_ngram)
    found = _found(shared, context_ids, context_mask, doc_logprobs, beams, *limits)
    memory, n_docs = shared.encode(context_ids, context_mask), doc_logprobs.shape[1]
    unknown: list[list[Tokens]] = []
    for first in range(0, len(found), n_docs):
        question = found[first : first + n_docs]
        union = dict.fromkeys(tokens for own in question for tokens in own)
        # a missing passage has found nothing, and is asked nothing
        unknown += [[tokens for tokens in union if own and tokens not in own] for own in question]
    scored = sequence_logprobs(generator, memory, context_mask, unknown, tokens_per_pass)
    for own, others in zip(found, scored, strict=True):
        own.update(others)
    return _ranked(found, doc_logprobs, generator.eos_token_id, length_penalty, n_best)


@torch.inference_mode()
def rag_sequence_fast(
    generator: Generator,
    context_ids: Tensor,
    context_mask: Tensor,
    doc_logprobs: Tensor,
    beams: int,
    max_length: int,
    min_length: int = 0,
    length_penalty: float = 0.0,
    n_best: int = 1,
    *,
    no_repeat_ngram: int = 0,
) -> list[list[SequenceHypothesis]]:
    """Like rag_sequence_thorough, but an answer counts only under the passages whose beams found it: a lower bound of
    its likelihood, for the price of the beams alone."""
    limits = (max_length, min_length, length_penalty, n_best, no_repeat_ngram)
    found = _found(generator, context_ids, context_mask, doc_logprobs, beams, *limits)
    return _ranked(found, doc_logprobs, generator.eos_token_id, length_penalty, n_best)


@torch.inference_mode()
def sequence_logprobs(
    generator: Generator,
    memory: Any,
    context_mask: Tensor,
    wanted: list[list[Tokens]],
    tokens_per_pass: int = TOKENS_PER_PASS,
) -> list[dict[Tokens, float]]:
    """log p(y | context) of given answers by teacher forcing; answers are token ids without the start token.

    memory, context_mask [n, context_len]: encoded contexts. wanted: for each of the n, its answers.
    """
    steps: list[dict[Tokens, float]] = [{} for _ in wanted]  # log-probability of a prefix's last token
    edges = [{answer[:end] for answer in answers for end in range(1, len(answer) + 1)} for answers in wanted]
    for rows in _passes([_longest_only({edge[:-1] for edge in own}) for own in edges], tokens_per_pass):
        width, target_len = max(map(len, rows)), 1 + max(len(row) for own in rows for row in own)
        inputs = [
            [generator.decoder_start_token_id, *row, *[generator.pad_token_id] * (target_len - 1 - len(row))]
            for own in rows
            for row in (*own, *[()] * (width - len(own)))
        ]
        places = {  # of a context's prefix among the decoder's positions
            (context, row[:length]): (context * width + number) * target_len + length
            for context, own in enumerate(rows)
            for number, row in enumerate(own)
            for length in range(len(row) + 1)
        }
        hidden, _ = generator.decode(torch.tensor(inputs, device=context_mask.device), memory, context_mask)
        asked = [
            (context, edge)
            for context, own in enumerate(edges)
            for edge in own - steps[context].keys()  # an earlier pass may have had the same prefix
            if (context, edge[:-1]) in places
        ]
        flat, device = hidden.flatten(0, 1), hidden.device
        positions = torch.tensor([places[context, edge[:-1]] for context, edge in asked], device=device)
        labels = torch.tensor([edge[-1] for _, edge in asked], device=device)
        found = [
            token_logprobs_of(generator.logits(flat[at]), label)
            for at, label in zip(positions.split(HEAD_ROWS), labels.split(HEAD_ROWS), strict=True)
        ]
        for (context, edge), value in zip(asked, torch.cat(found).tolist(), strict=True):
            steps[context][edge] = value
    return [
        {answer: sum(known[answer[:end]] for end in range(1, len(answer) + 1)) for answer in answers}
        for answers, known in zip(wanted, steps, strict=True)
    ]


def _longest_only(inputs: set[Tokens]) -> list[Tokens]:
    """Those that no other continues, longest first: running them through the decoder covers the rest."""
    ordered = sorted(inputs)  # what continues a sequence comes right after it
    continued = {row for row, after in pairwise(ordered) if after[: len(row)] == row}
    return sorted((row for row in ordered if row not in continued), key=len, reverse=True)


def _passes(rows: list[list[Tokens]], tokens_per_pass: int) -> Iterator[list[list[Tokens]]]:
    """Rows of each context in turn, so many of like length that a padded pass has at most tokens_per_pass tokens."""
    first = 0
    while any(len(own) > first for own in rows):
        target_len = 1 + max(len(own[first]) for own in rows if len(own) > first)
        width = max(1, tokens_per_pass // (len(rows) * target_len))
        yield [own[first : first + width] for own in rows]
        first += width


def _found(
    generator: Generator,
    context_ids: Tensor,
    context_mask: Tensor,
    doc_logprobs: Tensor,
    beams: int,
    max_length: int,
    min_length: int,
    length_penalty: float,
    n_best: int,
    no_repeat_ngram: int,
) -> list[dict[Tokens, float]]:
    """What the beams of each context found, with log p(y | x, z); nothing where there is no passage.

    With one passage per question and a doc_logprob of 0 the marginal is the generator's own distribution.
    """
    if n_best < 1:
        raise OpenBookError("no answer is asked for", got=f"n_best {n_best}", expected="at least 1")
    checked_shape(context_ids, doc_logprobs, "rag_sequence", max_length, min_length)  # the beams see no question
    alone = torch.zeros_like(doc_logprobs).masked_fill(doc_logprobs == -torch.inf, -torch.inf).view(-1, 1)
    limits = (max_length, min_length, length_penalty)
    found = rag_token_beams(
        generator, context_ids, context_mask, alone, beams, *limits, n_best=beams, no_repeat_ngram=no_repeat_ngram
    )
    return [
        {hypothesis.token_ids: hypothesis.logprob for hypothesis in own} if there else {}
        for own, there in zip(found, (alone[:, 0] == 0).tolist(), strict=True)
    ]


def _ranked(
    found: list[dict[Tokens, float]], doc_logprobs: Tensor, eos: int, length_penalty: float, n_best: int
) -> list[list[SequenceHypothesis]]:
    ranked = []
    for number, prior in enumerate(doc_logprobs.tolist()):
        passages = found[number * len(prior) : (number + 1) * len(prior)]
        answers = []
        for tokens in dict.fromkeys(tokens for own in passages for tokens in own) or {(eos,): None}:
            joint = [p + own.get(tokens, -math.inf) for p, own in zip(prior, passages, strict=True)]
            logprob = float(torch.tensor(joint, dtype=torch.float64).logsumexp(0))
            answers.append(SequenceHypothesis(tokens, logprob, logprob / len(tokens) ** length_penalty, tuple(joint)))
        ranked.append(sorted(answers, key=lambda answer: -answer.score)[:n_best])
    return ranked
