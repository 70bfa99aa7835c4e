"""A JSON document read element by element, however long it is: the elements of its list, or of the lists and objects
that its object holds (SQuAD's `data`, TriviaQA's `Data`, MS MARCO's columns). Memory is that of one element.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from openbook.data.readers.checked_lines import BadLineError
from openbook.data.readers.compressed import unpacked
from openbook.data.readers.fields import SHORTER, TOO_MANY_DIGITS

LARGEST = 1 << 26  # characters of one element; a longer one is no record
_CHUNK = 1 << 16
_SPACE = " \t\r\n"


class Element(NamedTuple):
    """An element and the line that it begins on. column: the key of the list or object that it stands in, "" in a list
    at the top; name: its own key in an object. Anything else that the top object holds has column "" and its name."""

    line: int
    column: str
    name: str
    value: Any


def elements(path: Path) -> Iterator[Element | tuple[int, BadLineError]]:
    """Every element of a document; ends with what is wrong with it, where something is: nothing behind that can be
    told apart."""
    with unpacked(path) as handle:
        text = _Text(handle)
        try:
            yield from _members(text, "", deep=text.peek() == "{")
            if text.peek():
                raise BadLineError("malformed JSON", got="more text behind the document", expected="one document")
        except BadLineError as fault:
            yield text.line, fault


def _members(text: _Text, column: str, deep: bool) -> Iterator[Element]:
    """Of the list or object that begins here; deep: of lists and objects in it too, one level."""
    opening = text.take("[{")
    closing, first = {"[": "]", "{": "}"}[opening], True
    while text.peek() != closing:
        if not first:
            text.take(",")
        first, name = False, ""
        if opening == "{":
            _, name = text.value()
            if not isinstance(name, str):
                raise BadLineError("malformed JSON", got="a key that is no string", expected="a string")
            text.take(":")
        if deep and text.peek() in "[{":
            yield from _members(text, name, deep=False)
        else:
            line, value = text.value()
            yield Element(line, column, name, value)
    text.take(closing)


class _Text:
    """The text of a document from a place on, as far as it has been read."""

    def __init__(self, handle: IO[bytes]):
        self._handle, self._decoder = handle, codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._ended = "", 0, False
        self.line = 1

    def _more(self, n: int = 0) -> None:
        raw = self._handle.read(n or _CHUNK)
        self._ended = not raw
        try:
            new = self._decoder.decode(raw, self._ended)
        except UnicodeDecodeError as error:
            got = f"byte 0x{error.object[error.start]:02x} near {self._text[-30:]!r}"
            raise BadLineError(
                "the file is not UTF-8", got=got, expected="UTF-8", action="iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
            ) from None
        self._text, self._at = self._text[self._at :] + new, 0

    def _go(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def peek(self) -> str:
        """The next sign that is no space; "" at the end."""
        while True:
            for place in range(self._at, len(self._text)):
                if self._text[place] not in _SPACE:
                    self._go(place)
                    return self._text[place]
            self._go(len(self._text))
            if self._ended:
                return ""
            self._more()

    def take(self, among: str) -> str:
        sign = self.peek()
        if not sign or sign not in among:
            got = f"{sign!r}" if sign else "the end of the file"
            raise BadLineError("malformed JSON", got=got, expected=" or ".join(map(repr, among)))
        self._go(self._at + 1)
        return sign

    def value(self) -> tuple[int, Any]:
        """The next value whole, and its line."""
        self.peek()
        line, asked = self.line, _CHUNK
        while True:
            try:
                value, end = self._scan(self._text, self._at)
                goes_on = isinstance(value, int | float) and self._text[end : end + 1] in tuple(".eE+-")
                if self._ended or (end < len(self._text) and not goes_on):
                    self._go(end)
                    return line, value
            except json.JSONDecodeError as error:
                inside = error.pos < len(self._text) - 16 and not error.msg.startswith("Unterminated string")
                if inside or self._ended or len(self._text) > LARGEST:
                    self._go(min(error.pos, len(self._text)))
                    near = self._text[max(0, error.pos - 20) : error.pos + 20]
                    got = f"{error.msg}, near {near!r}" if len(self._text) <= LARGEST else "an element of over 64 MB"
                    raise BadLineError("malformed JSON", got=got, expected="JSON") from None
            except ValueError:  # of too many digits; every other one is an error of the JSON
                raise BadLineError("malformed JSON", got=TOO_MANY_DIGITS, expected=SHORTER) from None
            except RecursionError:
                raise BadLineError("malformed JSON", got="brackets nested too deep") from None
            asked *= 2
            self._more(asked)
