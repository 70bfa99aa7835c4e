"""All test questions as the data of the page's search, within a number of bytes."""

import json
from collections.abc import Sequence
from typing import Any

from openbook.metrics.prediction import Prediction, ReadPassage, TokenProvenance
from openbook.reporting.page.examples import is_right
from openbook.reporting.page.marking import answer_spans
from openbook.reporting.page.why import outcome

MOST_PASSAGES, MOST_ANSWERS, MOST_TOKENS = 10, 20, 64  # of one question
LONGEST_TEXT, LONGEST_PASSAGE = 500, 1500  # characters
WITHOUT_PASSAGES = 0.7  # of the budget, at most, for the questions themselves: the wrong ones keep their passages
COLUMNS = 6  # passages of a heat-map that have a column of their own


def question_data(predictions: Sequence[Prediction], budget: int, regex: bool = False) -> tuple[str, list[str]]:
    """(JSON for a script element of type application/json, what of the questions it leaves out).

    {"texts": [[title, text] ...], "questions": [{q, a, y, o, r, h, f, p, n, t} ...]}, wrong ones first: question, gold
    answers, produced answer, outcome, relation, phrasing, F1, passages [[text's number, prior, posterior, relevant,
    marked parts [start, end, ...]] ...], how many passages were read, tokens [[text, shares ...] ...] and the shares'
    number of own columns. Probabilities are in hundredths, places in UTF-16 units, as JavaScript counts them. p, n and
    t are missing where the budget (bytes) leaves no room for them.
    """
    ordered = sorted(predictions, key=is_right)
    entries, used = [], 200
    for one in ordered:
        entry = _entry(one)
        used += len(script_json(entry).encode()) + 1
        if used > WITHOUT_PASSAGES * budget:
            break
        entries.append(entry)
    texts: dict[tuple[str, str], int] = {}
    told, n_full = [], 0
    used = 200 + sum(len(script_json(entry).encode()) + 1 for entry in entries)
    for one, entry in zip(ordered, entries, strict=False):
        own = dict.fromkeys(map(_text, one.passages[:MOST_PASSAGES]))
        new = [key for key in own if key not in texts]
        places = {key: len(texts) + place for place, key in enumerate(new)}
        details = _details(one, {key: texts[key] for key in own if key in texts} | places, regex)
        size = len((script_json(details) + script_json(new)).encode()) + 2
        if used + size > budget:
            break
        used, n_full = used + size, n_full + 1
        texts |= places
        entry |= details
    if len(entries) < len(ordered):
        told.append(
            f"{len(ordered) - len(entries):,} of {len(ordered):,} questions are left out here, right ones before wrong "
            "ones: they would not fit into the page. predictions.jsonl has all."
        )
    if n_full < len(entries):
        told.append(
            f"The passages of {len(entries) - n_full:,} questions are left out here: they would not fit into the page. "
            "`openbook answers RUN TEXT` prints them."
        )
    return script_json({"texts": list(texts), "questions": entries}), told


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in, and that is a JavaScript literal as well."""
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        written = written.replace(sign, f"\\u{ord(sign):04x}")
    return written.encode("utf-8", "replace").decode()  # half of a surrogate pair cannot be written


def heat_map(tokens: Sequence[TokenProvenance], n_passages: int) -> tuple[list[tuple[str, list[float]]], int]:
    """([(token, shares of the first passages and, where there are more, of all others together)], passages that have a
    column of their own)."""
    columns = min(n_passages, COLUMNS)
    rows = []
    for token in tokens[:MOST_TOKENS]:
        rest = [sum(token.weights[columns:])] if n_passages > columns else []
        rows.append((short(token.text), [*token.weights[:columns], *rest]))
    if len(tokens) > MOST_TOKENS:
        rows.append((f"… {len(tokens) - MOST_TOKENS} more", []))
    return rows, columns


def short(text: str, longest: int = LONGEST_TEXT) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def few(answers: Sequence[str]) -> list[str]:
    """The first answers, and how many more there are."""
    more = len(answers) - MOST_ANSWERS
    return [*map(short, answers[:MOST_ANSWERS]), *([f"… {more} more"] if more > 0 else [])]


def _entry(one: Prediction) -> dict[str, Any]:
    entry = {
        "q": short(one.question),
        "a": few(one.answers),
        "y": None if one.exact_match is None else short(one.prediction),
        "o": outcome(one),
        "r": one.relation,
        "h": one.phrasing,
        "f": None if one.f1 is None else round(one.f1, 2),
    }
    return {key: value for key, value in entry.items() if value is not None and (value or key in "yf")}


def _text(passage: ReadPassage) -> tuple[str, str]:
    return short(passage.title or passage.id), short(passage.text, LONGEST_PASSAGE)


def _details(one: Prediction, numbers: dict[tuple[str, str], int], regex: bool) -> dict[str, Any]:
    passages = []
    for passage in one.passages[:MOST_PASSAGES]:
        key = _text(passage)
        spans = answer_spans(key[1], one.answers, regex)
        places = [_utf16(key[1], place) for span in spans for place in span]
        passages.append(
            [numbers[key], _hundredths(passage.prior), _hundredths(passage.posterior), int(passage.relevant), places]
        )
    rows, columns = heat_map(one.tokens, len(one.passages))
    tokens = [[token, *map(_hundredths, shares)] for token, shares in rows]
    return {"p": passages, "n": len(one.passages)} | ({"t": tokens, "c": columns} if tokens else {})


def _hundredths(probability: float) -> int:
    return round(100 * min(max(probability, 0.0), 1.0))


def _utf16(text: str, place: int) -> int:
    return len(text[:place].encode("utf-16-le", "surrogatepass")) // 2
