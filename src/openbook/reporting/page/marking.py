"""Where answers stand in a passage, so that they can be marked."""

import re
from collections.abc import Sequence

import regex as unicode_re

SECONDS = 0.2  # for one regular expression on one passage: marks are left out rather than waited for


def answer_spans(text: str, answers: Sequence[str], regex: bool = False) -> list[tuple[int, int]]:
    """(start, end) of every answer in the text, whatever the case, as whole words; ascending and apart.

    regex: the answers are regular expressions; one that cannot be read, or takes too long, marks nothing.
    """
    found: list[tuple[int, int]] = []
    for answer in filter(None, answers):
        pattern = answer if regex else rf"(?<!\w){re.escape(answer)}(?!\w)"
        try:
            matches = list(unicode_re.finditer(pattern, text, unicode_re.IGNORECASE, timeout=SECONDS))
        except (unicode_re.error, TimeoutError):
            continue
        found += [match.span() for match in matches if match[0]]
    apart: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if apart and start <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(end, apart[-1][1]))
        else:
            apart.append((start, end))
    return apart


def pieces(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[str, bool]]:
    """The text cut into (piece, whether it is marked)."""
    cuts, place = [], 0
    for start, end in spans:
        cuts += [(text[place:start], False), (text[start:end], True)]
        place = end
    return [(piece, marked) for piece, marked in [*cuts, (text[place:], False)] if piece]
