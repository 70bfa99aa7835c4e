"""Questions and answers against the limits of their tokens, looked through before anything is trained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from openbook.data.inputs import decoded, target_start, token_ids
from openbook.data.question_file import QuestionFile
from openbook.errors import OpenBookError
from openbook.utils.console import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_CHUNK = 1024  # questions tokenised at once
_LEAST = 8  # tokens of a text beside its prefix


class Reader(NamedTuple):
    """A tokenizer that reads questions, the prefix that it reads before each, and the space before an answer. through:
    tokenizer and prefix of another reader, whose tokens it reads decoded."""

    tokenizer: Tokenizer
    prefix: str = ""
    before_answer: str = ""
    through: tuple[Tokenizer, str] | None = None


class Limits(NamedTuple):
    """question: tokens of a question; long_questions: what becomes of a longer one. answer: tokens of an answer without
    the end-of-sequence, None where answers do not count; strict: whether a longer one is an error."""

    question: int
    long_questions: Literal["error", "cut", "drop"]
    answer: int | None
    strict: bool


def answer_room(tokenizer: Tokenizer | None, max_target_tokens: int) -> int:
    """Tokens of an answer beside its end and, by this tokenizer's convention, its start."""
    return max_target_tokens - 1 - (tokenizer is not None and target_start(tokenizer) is not None)


def check_prefix(reader: Reader, limit: int, where: str, of: str) -> None:
    """Raise OpenBookError where what is cut to `limit` tokens, a question or a passage, would be its prefix and little
    else: then all are the same. where: the key of the prefix; of: that of the limit."""
    n_prefix = len(token_ids(reader.tokenizer, [reader.prefix])[0]) if reader.prefix else 0
    if n_prefix and n_prefix + _LEAST > limit:
        raise OpenBookError(
            f"the prefix leaves no room for a {where.removeprefix('retriever.').removesuffix('_prefix')}",
            where=where,
            got=f"{n_prefix} tokens in {of}={limit}",
            expected=f"{_LEAST} tokens beside it",
            action=f"Raise {of}, or shorten the prefix.",
        )


def check_lengths(questions: QuestionFile, readers: Sequence[Reader], limits: Limits) -> None:
    """Raise OpenBookError, warn or leave questions out, as the limits say. readers: the question encoder's, then the
    generator's, which counts answers too."""
    long_questions: list[tuple[int, int, int]] = []  # tokens, -line, place
    long_answers: list[tuple[int, int]] = []
    asking = readers[:1] if all(_alike(readers[0], other) for other in readers[1:]) else readers
    for start in range(0, len(questions), _CHUNK):
        places = range(start, min(start + _CHUNK, len(questions)))
        lines = [(questions.line_number(place), questions[place]) for place in places]
        asked = [
            (place, wording)
            for place, (_, example) in zip(places, lines, strict=True)
            for wording in (example.question, *example.paraphrases)
        ]
        for reader in asking:
            found = over(reader, asked, limits.question)
            long_questions += [(n_tokens, -questions.line_number(place), place) for place, n_tokens in found]
        if limits.answer is not None:
            answers = [(number, answer) for number, example in lines for answer in example.answers]
            long_answers += over(Reader(readers[-1].tokenizer, readers[-1].before_answer), answers, limits.answer)
    if long_questions:
        _settle_long(questions, long_questions, limits, readers)
    if long_answers:
        problem = OpenBookError(
            f"{len(long_answers)} answers are longer than the limit",
            where=f"the first at {questions.path}:{long_answers[0][0]}",
            got=f"up to {max(n_tokens for _, n_tokens in long_answers)} tokens",
            expected=f"at most {limits.answer} and the end-of-sequence",
            action="Raise the limit for target tokens" + ("." if limits.strict else "; until then they are cut."),
        )
        if limits.strict:
            raise problem
        warnings.warn(str(problem), stacklevel=2)


def _alike(one: Reader, other: Reader) -> bool:
    """Whether both read the same tokens in every question."""
    mine, theirs = one.tokenizer, other.tokenizer
    if (one.prefix, one.through, len(mine)) != (other.prefix, other.through, len(theirs)):
        return False
    return mine is theirs or mine.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()


def told(n_tokens: int, readers: Sequence[Reader]) -> str:
    """A question's length as it is counted."""
    return f"{n_tokens} tokens" + (", retriever.question_prefix included" if readers[0].prefix.strip() else "")


def _settle_long(
    questions: QuestionFile, found: list[tuple[int, int, int]], limits: Limits, readers: Sequence[Reader]
) -> None:
    longest, number, _ = max(found)
    places = sorted({place for *_, place in found})
    counted = f"{len(places):,} of {len(questions):,} questions"
    if limits.long_questions == "error" or (len(places) == len(questions) and limits.long_questions == "drop"):
        raise OpenBookError(
            "a question is longer than the limit",
            where=f"{questions.path}:{-number}",
            got=told(longest, readers),
            expected=f"at most {limits.question}, because questions are never cut",
            action=f"{counted} are too long; this is the longest. Raise data.max_question_tokens (the limit for "
            "question tokens), set data.long_questions=cut or drop, or shorten or remove them.",
        )
    done = "cut at their end" if limits.long_questions == "cut" else "left out"
    say(f"{questions.path}: {counted} have more than {limits.question} tokens and are {done}")
    if limits.long_questions == "drop":
        questions.leave_out(places)


def over(reader: Reader, numbered: list[tuple[int, str]], limit: int) -> list[tuple[int, int]]:
    """(line, tokens) of the texts with more than `limit` tokens. A text of fewer bytes than that has fewer tokens:
    most are passed over without being tokenised."""
    if reader.through is not None:
        tokenizer, prefix = reader.through
        read = decoded(tokenizer, token_ids(tokenizer, [prefix + text for _, text in numbered]))
        numbered = [(number, text) for (number, _), text in zip(numbered, read, strict=True)]
    texts = ((number, reader.prefix + text) for number, text in numbered)
    suspects = [(number, text) for number, text in texts if len(text.encode()) > limit]
    distinct = list(dict.fromkeys(text for _, text in suspects))  # as paraphrases and answers, many come again
    lengths = dict(zip(distinct, map(len, token_ids(reader.tokenizer, distinct)), strict=True))
    return [(number, lengths[text]) for number, text in suspects if lengths[text] > limit]
