"""What is masked in a sentence, and what is asked then.

Salient span masking (REALM, Guu et al. 2020, arXiv:2002.08909, section 3.4) masks names and dates, for which other
text is needed; numbers are taken too. What is left of the sentence becomes a cloze question with a question word in the
span's place (Lewis et al. 2019, "Unsupervised Question Answering by Cloze Translation", arXiv:1906.04980): some words
around the span, others dropped, so that the sentence cannot be recognised by its wording alone. The answer is the span,
the passage that it was taken from is the positive one.

Sentences are the library sentencex's, spans a plain rule on capitals and digits: in a script without capitals only
dates and numbers are found. All is a pure function of passage and options.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import regex

from openbook.batch import Passage
from openbook.data.readers.checked_lines import id_hash

_MONTH = (
    "(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    "|Nov(?:ember)?|Dec(?:ember)?)"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_YEAR = r"(?:1[0-9]|20)\d\d"
_UNIT = (
    r"(?:%|percent|per cent|million|billion|thousand|hundred|seconds?|minutes?|hours?|days?|weeks?|months?|years?"
    r"|km|m|cm|mm|kg|mg|ml|g|nm|°C|bp|kb|kDa)"
)
_REFERS = r"Table|Figure|Fig\.?|Section|Chapter|Eq\.?"
_CAPITAL = r"(?:\p{Lu}[\p{L}\p{N}'\u2019/-]*|\p{Ll}{1,3}\p{Lu}[\p{L}\p{N}'\u2019/-]*)"
_PATTERNS = {
    "date": regex.compile(
        rf"\b(?:{_DAY} )?(?:of )?{_MONTH}\b\.?(?: {_DAY}\b(?!,\d))?(?:,? {_YEAR}\b)?"
        rf"|(?<![-.,])\b{_YEAR}(?:s\b|\b(?!-|[,.%]\d|%))"
    ),
    "number": regex.compile(
        rf"(?<![\p{{L}}\p{{N}}.,-]|(?:{_REFERS}) )\d[\d,.]*(?: ?[-\u2013] ?\d[\d,.]*)?(?<![,.])(?: ?{_UNIT})?"
        r"(?![\p{L}\p{N}-])"
    ),
    "name": regex.compile(
        rf"(?<![\p{{L}}\p{{N}}-]){_CAPITAL}(?: (?:(?:of|the|and|de|du|von|van|for) ){{0,2}}{_CAPITAL})*"
    ),
}
_ASKED = {"date": "when", "number": "how many", "name": "what"}
_NO_NAMES = frozenset(
    "A Additionally After Although An And As At Because Before Both But By Did Do Does During Each Eight Every Few "
    "Figure Finally First Five For Four From Further Furthermore Had Has Have He Her Here His How However I If In Is "
    "It Its Many Moreover Most Much My Nine No Not Of On One Only Or Other Our Over Second See Seven She Since Six So "
    "Some Such Table Ten That The Their Then There Therefore These They Third This Those Three Through Thus To Two "
    "Under Until Upon Was We Were What When Where Whereas Which While Who Why With Yet You Your".split()
)
_BRACKETED = regex.compile(r"\[[^\]]*\]")


@dataclass(frozen=True)
class SpanOptions:
    """per_passage: masked spans of one passage at most. most: of the whole corpus, drawn evenly. language: of the text,
    as ISO 639-1, for the ends of sentences. Words of a sentence, of an answer, and around the span in a question."""

    per_passage: int = 4
    most: int = 200_000
    language: str = "en"
    sentence_words: tuple[int, int] = (5, 60)
    answer_words: int = 6
    question_words: tuple[int, int] = (4, 14)
    dropped: float = 0.2


class Span(NamedTuple):
    """Where the answer stands in its sentence, and whether it is a date, a number or a name."""

    start: int
    stop: int
    kind: str


def spans_of(sentence: str) -> list[Span]:
    """The dates, numbers and names of a sentence, in its order, none within another. The capital that begins a sentence
    does not make a name; what stands in square brackets is a reference."""
    taken = [False] * len(sentence)
    for match in _BRACKETED.finditer(sentence):
        taken[slice(*match.span())] = [True] * len(match.group())
    found: list[Span] = []
    for kind, pattern in _PATTERNS.items():
        for match in pattern.finditer(sentence):
            start, stop = match.start(), match.start() + len(match.group().rstrip("."))
            if any(taken[start:stop]):
                continue
            if kind == "name":
                start = _name_start(sentence, start, stop)
            if stop - start > 1 and sentence[start:stop] not in _NO_NAMES:
                taken[start:stop] = [True] * (stop - start)
                found.append(Span(start, stop, kind))
    return sorted(found)


def _name_start(sentence: str, start: int, stop: int) -> int:
    """Where a name begins once function words before it are left out; `stop` where nothing is left of it."""
    begins = not any(sign.isalnum() for sign in sentence[:start])
    first = sentence[start:stop].split(" ", 1)[0]
    if first in _NO_NAMES or first.islower() or (begins and len(first) == stop - start and first[1:].islower()):
        after = start + len(first) + 1
        return _name_start(sentence, after, stop) if after < stop else stop
    return start


def question_of(sentence: str, span: Span, options: SpanOptions, draw: random.Random) -> str:
    """The words around the span, some dropped, with a question word before them or in the span's place."""
    asked = _ASKED[span.kind]
    before, after = sentence[: span.start].split(), sentence[span.stop :].split()
    kept = draw.randint(*options.question_words)
    n_before = min(len(before), max(draw.randint(0, kept), kept - len(after)))
    window = [before[len(before) - n_before :], after[: kept - n_before]]
    left, right = ([word for word in words if draw.random() >= options.dropped] for words in window)
    words = [asked, *left, *right] if draw.random() < 0.5 else [*left, asked, *right]
    return " ".join(words).rstrip(" .,;:") + "?"


def spans_of_passage(passage: Passage, options: SpanOptions) -> Iterator[dict[str, object]]:
    """At most per_passage questions, drawn by a hash of passage and place."""
    from sentencex import segment  # a tenth of a second that most commands need not spend

    found: list[tuple[int, str, Span]] = []
    for number, piece in enumerate(segment(options.language, passage.text)):
        sentence = " ".join(piece.split())
        low, high = options.sentence_words
        if low <= len(sentence.split()) <= high:
            for span in spans_of(sentence):
                if len(sentence[span.start : span.stop].split()) <= options.answer_words:
                    found.append((id_hash(f"{passage.id} {number} {span.start}"), sentence, span))
    for key, sentence, span in sorted(found)[: options.per_passage]:
        answer = sentence[span.start : span.stop]
        question = question_of(sentence, span, options, random.Random(key))
        if len(question.split()) > 2 and answer.casefold() not in question.casefold():
            yield {
                "id": f"{passage.id}-{key:016x}",
                "question": question,
                "answers": [answer],
                "positive_ids": [passage.id],
                "relation": span.kind,
            }
