"""Ids that come twice, found in bounded memory: of each record two hashes and the place it came from are kept."""

from __future__ import annotations

from array import array
from collections import Counter
from pathlib import Path

import numpy as np

from openbook.data.readers.checked_lines import id_hash
from openbook.data.readers.tables import Place
from openbook.errors import OpenBookError

TWO_TEXTS = "passages have the id of an earlier one and another text: the first is kept"  # a note


class Ids:
    """Of each record a hash of its id, one of its content, and the place it came from."""

    def __init__(self) -> None:
        self.ids, self.contents, self.numbers = array("Q"), array("Q"), array("q")
        self.starts = array("q", [0])  # where the records' lines begin in the file they are written to
        self._sources: list[str] = []
        self._begun: list[int] = []

    def add(self, place: Place, identity: str, content: str = "") -> None:
        if not self._sources or self._sources[-1] != place.source:
            self._sources.append(place.source)
            self._begun.append(len(self.ids))
        self.ids.append(id_hash(identity))
        self.numbers.append(place.number)
        if content:
            self.contents.append(id_hash(content))

    def place(self, n: int) -> Place:
        source = int(np.searchsorted(self._begun, n, side="right")) - 1
        return Place(self._sources[source], self.numbers[n])

    def refuse_repeats(self) -> None:
        """OpenBookError where an id comes twice."""
        _, first, inverse = np.unique(np.frombuffer(self.ids, np.uint64), return_index=True, return_inverse=True)
        repeats = np.flatnonzero(first[inverse] != np.arange(len(self.ids)))
        if len(repeats):
            self.refuse(int(first[inverse[repeats[0]]]), int(repeats[0]), len(repeats))

    def refuse(self, first: int, second: int, n: int) -> None:
        raise OpenBookError(
            "an id comes twice",
            where=self.place(second),
            got=f"the id of {self.place(first)} again",
            expected="each id once",
            action=f"{n:,} records repeat an earlier id. Rename or remove them.",
        )


def first_of_each(every: Path, target: Path, passages: Ids, notes: Counter[str], strict: bool) -> int:
    """The passages of a file (which goes), of those with one id the first; gives their number. strict: an id with two
    texts is an error (a corpus); otherwise it is counted (passages that many questions carry)."""
    if not passages.ids:
        every.unlink()
        return 0
    ids, contents = np.frombuffer(passages.ids, np.uint64), np.frombuffer(passages.contents, np.uint64)
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    if len(first) == len(ids):
        every.rename(target)
        return len(ids)
    conflicts = np.flatnonzero(contents != contents[first[inverse]])
    if len(conflicts) and strict:
        passages.refuse(int(first[inverse[conflicts[0]]]), int(conflicts[0]), len(conflicts))
    notes[TWO_TEXTS] += len(conflicts)
    if strict:
        notes["passages come again as they are, and are kept once"] += len(ids) - len(first)
    keep = np.zeros(len(ids), dtype=bool)
    keep[first] = True
    with open(every, "rb") as source, open(target, "wb") as file:
        file.writelines(line for line, kept in zip(source, keep, strict=True) if kept)
    every.unlink()
    return len(first)
