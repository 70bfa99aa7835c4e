"""Whether a text is, or holds, one of the gold answers: exact match and F1 (SQuAD), answer in passage (DPR)."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import regex as unicode_re

from openbook.errors import OpenBookError
from openbook.metrics.scripts import SPACELESS

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# Letters, digits and the accents NFD splits off form words; every other visible sign is a token of its own. The
# standard library's \w leaves accents out, which would cut decomposed words in pieces: hence `regex`.
# Where no spaces stand between words every sign is a token: an answer may begin and end anywhere.
_TOKENS = unicode_re.compile(rf"{SPACELESS}|(?:(?!{SPACELESS})[\p{{L}}\p{{N}}\p{{M}}])+|[^\p{{Z}}\p{{C}}]")
MATCH_SECONDS = 2.0  # for one regular expression on one text; a passage takes microseconds


def normalize_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces (SQuAD, Rajpurkar et al. 2016, evaluation); and,
    which SQuAD's own script leaves out, composed letters (NFC): the same letter written with two code points is one."""
    lower = unicodedata.normalize("NFC", text).lower()
    return " ".join(_ARTICLES.sub(" ", lower.translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str], regex: bool = False) -> float:
    """1.0 where the normalised prediction equals one of the normalised answers, else 0.0.

    regex: the answers are regular expressions (CuratedTREC), and one that matches at the start of the prediction as it
    stands is enough (DrQA, Chen et al. 2017, evaluation). An OpenBookError where one does not compile.
    """
    if not regex:
        return _best(prediction, answers, lambda produced, gold: float(produced == gold))
    require_answers(answers)
    patterns = [_pattern(answer) for answer in answers]  # all of them: a bad one is found even behind a match
    return float(any(_in_time(pattern, pattern.match, prediction) is not None for pattern in patterns))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Token F1 after normalisation, best over the answers, 0 to 1. Two empty texts agree: 1 (as SQuAD 2.0 counts)."""
    return _best(prediction, answers, _token_f1)


def has_answer(text: str, answers: Iterable[str], regex: bool = False) -> bool:
    """Whether some answer's tokens stand in the text side by side and in order (DPR, Karpukhin et al. 2020).

    NFD-normalised and lower-cased; "art" is not found in "party". An answer without a token is never found.
    regex: the answers are regular expressions, looked for anywhere in the NFD-normalised text, whatever the case. An
    OpenBookError where one does not compile.
    """
    if regex:
        decomposed, patterns = _nfd(text), [_pattern(_nfd(answer)) for answer in answers]
        return any(_in_time(pattern, pattern.search, decomposed) is not None for pattern in patterns)
    # No token holds a space, so a search between spaces is a search for whole tokens.
    joined = _joined_tokens(text)
    return any(answer in joined for answer in map(_joined_tokens, answers) if answer.strip())


def matches_in(text: str, answer: str) -> list[str]:
    """What a regular expression matches in a text, by the rules of `has_answer`, in order and with single spaces."""
    pattern = _pattern(_nfd(answer))
    found = _in_time(
        pattern, lambda part, timeout: [one[0] for one in pattern.finditer(part, timeout=timeout)], _nfd(text)
    )
    return [single for one in found if (single := " ".join(unicodedata.normalize("NFC", one).split()))]


def words(text: str) -> list[str]:
    """The tokens by which `has_answer` compares: NFD-normalised and lower-cased."""
    return _joined(text).split()


def answers_in_texts(answers: Iterable[str], texts: Iterable[str]) -> set[str]:
    """Which of the answers some text holds (`has_answer`), in one pass over the texts, however many answers."""
    waiting: dict[str, list[tuple[str, str]]] = {}  # by the first token: (the answer, its tokens between spaces)
    for answer in set(answers):
        if tokens := words(answer):
            waiting.setdefault(tokens[0], []).append((answer, f" {' '.join(tokens)} "))
    found: set[str] = set()
    for text in texts:
        joined = _joined(text)
        for first in waiting.keys() & set(joined.split()):
            there = {answer for answer, tokens in waiting[first] if tokens in joined}
            if there:
                found |= there
                waiting[first] = [one for one in waiting[first] if one[0] not in there]
                if not waiting[first]:
                    del waiting[first]
    return found


def require_answers(answers: Sequence[str]) -> None:
    """An OpenBookError where there is nothing to compare a prediction with; one text is not a list of texts."""
    if isinstance(answers, str) or not answers:
        raise OpenBookError("a prediction needs a list of answers", got=repr(answers), expected="at least one text")


def _best(prediction: str, answers: Sequence[str], score: Callable[[str, str], float]) -> float:
    require_answers(answers)
    produced = normalize_answer(prediction)
    return max(score(produced, normalize_answer(answer)) for answer in answers)


def _token_f1(produced: str, gold: str) -> float:
    produced_tokens, gold_tokens = produced.split(), gold.split()
    if not produced_tokens or not gold_tokens:
        return float(produced_tokens == gold_tokens)
    common = (Counter(produced_tokens) & Counter(gold_tokens)).total()
    # 2PR / (P + R) with P = common / produced and R = common / gold
    return 2 * common / (len(produced_tokens) + len(gold_tokens))


@lru_cache(maxsize=65536)  # the same passages are retrieved for many questions
def _joined_tokens(text: str) -> str:
    return _joined(text)


def _joined(text: str) -> str:
    return f" {' '.join(_TOKENS.findall(_nfd(text)))} ".lower()


def _nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@lru_cache(maxsize=65536)
def _pattern(answer: str) -> "unicode_re.Pattern[str]":
    """By `regex`, which reads what Python's re reads and can be stopped."""
    try:
        return unicode_re.compile(answer, unicode_re.IGNORECASE | unicode_re.UNICODE | unicode_re.MULTILINE)
    except unicode_re.error as error:
        raise OpenBookError(
            "an answer is not a regular expression",
            got=f"{answer!r} ({error})",
            expected="a pattern of Python's re",
            action="Mend the answer, or set evaluate.regex_answers=false.",
        ) from error


def check_pattern(answer: str) -> None:
    """OpenBookError where an answer is no regular expression, or one that takes exponentially long on short texts."""
    pattern = _pattern(answer)
    for sign in dict.fromkeys((*[sign for sign in answer if sign.isalnum()][:8], *"a0 ")):
        _in_time(pattern, pattern.search, sign * 48 + "\0")


def _in_time(pattern: "unicode_re.Pattern[str]", look: Callable[..., Any], text: str) -> Any:
    """What a way to use a pattern finds in the text, in bounded time."""
    try:
        return look(text, timeout=MATCH_SECONDS)
    except TimeoutError:
        raise OpenBookError(
            "a regular expression takes too long",
            where="evaluate.regex_answers",
            got=f"{pattern.pattern!r}, over {MATCH_SECONDS:.0f} s on {text[:60]!r}",
            expected="a pattern without nested repetitions like (x+)+, which try exponentially many ways",
            action="Simplify this answer.",
        ) from None
