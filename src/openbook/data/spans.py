"""Questions made of the corpus alone: a salient span of a sentence is masked and has to be found again.

Salient span masking (REALM, Guu et al. 2020, arXiv:2002.08909, section 3.4) masks names and dates, for which other
text is needed; numbers are taken too. What is left of the sentence becomes a cloze question with a question word in the
span's place (Lewis et al. 2019, "Unsupervised Question Answering by Cloze Translation", arXiv:1906.04980): some words
around the span, others dropped, so that the sentence cannot be recognised by its wording alone. The answer is the span,
the passage that it was taken from is the positive one.

Sentences are the library sentencex's, spans a plain rule on capitals and digits: in a script without capitals only
dates and numbers are found. All is a pure function of passages and options.
"""

from __future__ import annotations

import heapq
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import regex

from openbook.batch import Passage
from openbook.data.question_file import QuestionFile
from openbook.data.readers.checked_lines import file_fingerprint, id_hash
from openbook.data.readers.formats import read_passages
from openbook.errors import OpenBookError
from openbook.utils.atomic import replacing, replacing_folder
from openbook.utils.console import say

VERSION = 1  # raise it whenever the same options give other bytes

SPLITS = ("train", "validation", "test")
_HELD_BACK = 20  # of so many passages one is for validation, and one for the test

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


class SpanFiles(NamedTuple):
    """Question files by split, and how many questions of each kind they hold together."""

    paths: dict[str, Path]
    kinds: dict[str, int]


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


def build_spans(
    passages: Path, options: SpanOptions, cache: Path, progress: Callable[[int, int], None] | None = None
) -> SpanFiles:
    """Files of questions about the corpus, in `cache` from the second call on. A passage's questions are all in one
    split. OpenBookError where no sentence of the corpus holds a span."""
    key = json.dumps([VERSION, file_fingerprint(passages), asdict(options)])
    folder = Path(cache) / f"spans-{id_hash(key):016x}"
    if not (folder / "counts.json").is_file():
        rows = _draw(passages, options, progress or (lambda *_: None))
        if not rows:
            raise OpenBookError(
                "no masked span can be made of the corpus",
                where="data.train" if options.most else "data.spans",
                got=f"no sentence with a name, a date or a number in {passages}",
                expected="running text; names are found by their capitals",
                action="Set data.spans.language, or train on questions of your own.",
            )
        with replacing_folder(folder, complete=lambda made: (made / "counts.json").is_file()) as new:
            for split in SPLITS:
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows if _split_of(row) == split]
                # A corpus of a few passages may have none to hold back: then they are asked about what is trained on.
                lines = lines or [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
                (new / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
            counts = Counter(str(row["relation"]) for row in rows)
            (new / "counts.json").write_text(json.dumps(dict(sorted(counts.items()))), encoding="utf-8")
    kinds = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    say(f"masked spans of the corpus as questions: {', '.join(f'{n:,} {kind}s' for kind, n in kinds.items())}")
    return SpanFiles({split: folder / f"{split}.jsonl" for split in SPLITS}, kinds)


def mixed(questions: Path, spans: Path, share: float, cache: Path) -> Path:
    """The file of all questions and as many masked spans as make up this share of it (below 1), in `cache`; where the
    corpus gives fewer, all of them, which is said."""
    key = json.dumps([VERSION, file_fingerprint(questions), file_fingerprint(spans), share])
    target = Path(cache) / f"mixed-{id_hash(key):016x}.jsonl"
    asked, masked = QuestionFile(questions), QuestionFile(spans)
    wanted = round(share / (1 - share) * len(asked))
    if wanted > len(masked):
        say(f"data.spans.share={share:g} would take {wanted:,} masked spans: the corpus gives {len(masked):,}")
    chosen = [masked[place] for place in range(min(wanted, len(masked)))]  # the file is in the order of a hash
    if not target.is_file():
        with replacing(target) as new, open(new, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in (*asked, *chosen))
    return target


def _draw(passages: Path, options: SpanOptions, progress: Callable[[int, int], None]) -> list[dict[str, object]]:
    """At most `most` questions of all passages, in the order of a hash: those whose hash is lowest."""
    lowest: list[tuple[int, int, dict[str, object]]] = []
    place = 0
    for n, passage in enumerate(read_passages(passages), 1):
        for row in spans_of_passage(passage, options):
            place += 1
            entry = (-id_hash(str(row["id"])), place, row)
            if len(lowest) < options.most:
                heapq.heappush(lowest, entry)
            else:
                heapq.heappushpop(lowest, entry)
        if n % 1000 == 0:
            progress(n, 0)
    return [row for _, _, row in sorted(lowest, reverse=True)]


def _split_of(row: dict[str, object]) -> str:
    number = id_hash(str(row["positive_ids"])) % _HELD_BACK
    return {0: "validation", 1: "test"}.get(number, "train")
