"""A corpus and passages that join it: one file, in which every id stands once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from openbook.batch import Passage
from openbook.data.corpus import Corpus
from openbook.data.corpus_build import build_corpus
from openbook.data.readers.formats import read_passages

_NUMBER = re.compile(r"#\d+$")  # of a passage in its document
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


class Joined(NamedTuple):
    """Of the passages that join: added have an id that is new; edited the id of another text, in whose place they
    stand; unchanged are there already. removed: passages of the corpus that their document has no more of."""

    added: int
    edited: int
    unchanged: int
    removed: int
    n_passages: int

    @property
    def changes(self) -> bool:
        return bool(self.added or self.edited or self.removed)


def join_passages(base: Path, joining: Path, target: Path, cache: Path, of_documents: bool = False) -> Joined:
    """Write the passages of `base` with those of `joining` among them: edited ones in their places, new ones behind all
    others in their own order. Memory is bounded: ids of `joining` are looked up on disk.

    of_documents: `joining` is of documents that the splitter has cut; where one of them had more passages (id
    DOCUMENT#NUMBER) before, those beyond its end are left out. Raises OpenBookError on a bad line of either file, and
    where an id comes twice in `joining`.
    """
    new = build_corpus(joining, {}, cache)
    met = np.zeros(len(new), dtype=bool)
    edited = removed = n_passages = 0
    with open(target, "w", encoding="utf-8", newline="\n") as file:
        for passage in read_passages(base):
            row = new.row_of(passage.id)
            if row is None and of_documents and _is_cut_short(passage, new):
                removed += 1
                continue
            if row is not None:
                met[row] = True
                edited += new.passage(row) != passage
                passage = new.passage(row)
            _write(file, passage)
            n_passages += 1
        for row in np.flatnonzero(~met).tolist():
            _write(file, new.passage(row))
    added = int((~met).sum())
    return Joined(added, edited, int(met.sum()) - edited, removed, n_passages + added)


def _is_cut_short(passage: Passage, new: Corpus) -> bool:
    """Whether the passage's document is among those that join: then it has a first passage there."""
    document = _NUMBER.sub("", passage.id)
    return document != passage.id and new.row_of(f"{document}#1") is not None


def _write(file: IO[str], one: Passage) -> None:
    file.write(_ENCODE({"id": one.id, "title": one.title, "text": one.text}) + "\n")
