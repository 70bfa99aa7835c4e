"""A long text cut into passages: of so many words (DPR's 100), sentences or tokens, with so many of them repeated.

Deterministic: the same text and options give the same pieces. Words are what stands between spaces; in writing without
spaces (Chinese, Japanese, Thai) each sign is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import regex
from sentencex import segment

from openbook.metrics.scripts import SPACELESS

BY = ("words", "sentences", "tokens")
_WORD = regex.compile(rf"{SPACELESS}|(?:(?!{SPACELESS})\S)+")

# A text to the places (start, end) of its tokens in it.
Offsets = Callable[[str], Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Splitter:
    """by: what is counted, "words", "sentences" or "tokens". size: of a passage at most; overlap: how many of them the
    next one repeats (of tokens: as many whole words as fit). language: of the sentences (ISO 639-1). offsets: tokens,
    needed for these alone; `tokenizer` is what they are known by. A piece is a part of the text, with single spaces."""

    by: str = "words"
    size: int = 100
    overlap: int = 0
    language: str = "en"
    tokenizer: str = ""
    offsets: Offsets | None = None

    @property
    def name(self) -> str:
        """What decides the pieces."""
        return f"{self.by} {self.size} {self.overlap} {self.language} {self.tokenizer}"

    def pieces(self, text: str) -> list[str]:
        """The passages of a text, in its order; none of an empty one. The last one may be short; it is left out where
        the overlap has it all already."""
        spans = {"words": _words, "sentences": self._sentences, "tokens": self._tokens}[self.by](text)
        if self.by == "tokens":
            return [_clean(text[spans[first][0] : spans[last][1]]) for first, last in self._of_tokens(text, spans)]
        step, found = self.size - self.overlap, []
        for start in range(0, len(spans), step):
            part = spans[start : start + self.size]
            found.append(_clean(text[part[0][0] : part[-1][1]]))
            if start + self.size >= len(spans):
                break
        return found

    def _sentences(self, text: str) -> list[tuple[int, int]]:
        """Sentences do not reach over a blank line."""
        found, at = [], 0
        for paragraph in regex.split(r"\n\s*\n", text):
            for sentence in segment(self.language, " ".join(paragraph.split())):
                words = sentence.split()
                if not words:
                    continue
                start = at = text.index(words[0], at)
                for word in words:
                    at = text.index(word, at) + len(word)
                found.append((start, at))
        return found

    def _tokens(self, text: str) -> list[tuple[int, int]]:
        assert self.offsets is not None
        # Byte-level tokenizers have tokens of spaces alone, of which a piece keeps none.
        return [(start, end) for start, end in self.offsets(text) if text[start:end].strip()]

    def _of_tokens(self, text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """(first, last token) of each piece. A piece begins and ends between words, unless one word is longer."""
        begins = [n == 0 or start == 0 or _parts(text, start) for n, (start, _) in enumerate(spans)]
        found, first = [], 0
        while first < len(spans):
            stop = min(first + self.size, len(spans))
            if stop < len(spans):
                stop = next((place for place in range(stop, first, -1) if begins[place]), stop)
            found.append((first, stop - 1))
            if stop == len(spans):
                break
            again = max(stop - self.overlap, first + 1)
            first = next((place for place in range(again, stop) if begins[place]), stop)
        return found


def _words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in _WORD.finditer(text)]


def _parts(text: str, place: int) -> bool:
    return text[place - 1].isspace() or text[place].isspace() or bool(regex.match(SPACELESS, text[place]))


def _clean(text: str) -> str:
    return " ".join(text.split())
