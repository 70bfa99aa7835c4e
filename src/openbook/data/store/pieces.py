"""Pieces of some thousand passages: tokenised apart, by whichever process comes first, and always the same bytes.

A piece is one file: tokens of each passage's title (int32), of title and text (int32), the ids of all, and the sha256
of these bytes. It appears whole or not at all. A worker (worker.py) imports this file and nothing that loads torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

PIECE = 8192  # passages of a piece: a second or two of work
_CHUNK = 512  # passages tokenised at once: a few MB of the tokenizer's own objects
_SUM = hashlib.sha256().digest_size

Ids = Callable[[list[str]], Sequence[Sequence[int]]]
"""Texts to token ids, without special tokens."""


class Writing(NamedTuple):
    """How title and text are written where a tokenizer reads them: what stands before each, whether nothing stands
    before an empty title, and whether both are one text with a space between."""

    before_title: str = ""
    before_text: str = " "
    bare_titles: bool = False
    joined: bool = False

    def texts(self, passages: Sequence[tuple[str, str]]) -> list[str]:
        """All titles and then all texts, or, where they are joined, the joined ones."""
        if self.joined:
            return [self.before_title + " ".join(part for part in one if part) for one in passages]
        titles = [self.before_title + title if title or not self.bare_titles else "" for title, _ in passages]
        return titles + [self.before_text + text for _, text in passages]

    def ids(self, tokenise: Ids, passages: Sequence[tuple[str, str]]) -> list[tuple[Sequence[int], Sequence[int]]]:
        """(ids of the title, ids of the text) of each (title, text); of joined ones all are the text's, so that the end
        of what is cut is the text's."""
        ids = tokenise(self.texts(passages))
        if self.joined:
            return [((), one) for one in ids]
        return list(zip(ids[: len(passages)], ids[len(passages) :], strict=True))


class Texts:
    """Titles and texts of a corpus by row, read from its arrays alone."""

    def __init__(self, folder: Path):
        self._blob = np.load(folder / "blob.npy", mmap_mode="r").view(np.ndarray)
        self._ends = np.load(folder / "offsets.npy", mmap_mode="r").view(np.ndarray)

    def __len__(self) -> int:
        return (len(self._ends) - 1) // 3

    def __call__(self, rows: range) -> list[tuple[str, str]]:
        ends = self._ends[3 * rows.start : 3 * rows.stop + 1]
        raw, first = self._blob[ends[0] : ends[-1]].tobytes(), int(ends[0])
        bounds = (ends - first).tolist()
        parts = [raw[start:end] for start, end in pairwise(bounds)]
        return [(title.decode(), text.decode()) for title, text in zip(parts[1::3], parts[2::3], strict=True)]


def rows_of(number: int, n_passages: int) -> range:
    return range(number * PIECE, min((number + 1) * PIECE, n_passages))


def n_pieces(n_passages: int) -> int:
    return -(-n_passages // PIECE)


def piece_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.piece"


def write_piece(
    folder: Path, number: int, texts: Texts, writing: Writing, tokenise: Ids, dtype: np.dtype
) -> Iterator[int]:
    """Write a piece, giving after each chunk how many of its passages are done."""
    rows = rows_of(number, len(texts))
    title_lengths, lengths = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.int32)
    temporary = piece_path(folder, number).with_suffix(f".{os.getpid()}")
    flat: list[bytes] = []
    for start in range(rows.start, rows.stop, _CHUNK):
        some = range(start, min(start + _CHUNK, rows.stop))
        for place, (title, text) in enumerate(writing.ids(tokenise, texts(some)), start - rows.start):
            title_lengths[place], lengths[place] = len(title), len(title) + len(text)
            flat += [np.asarray(ids, dtype=dtype).tobytes() for ids in (title, text)]
        yield some.stop - rows.start
    content = b"".join((title_lengths.tobytes(), lengths.tobytes(), *flat))
    with open(temporary, "wb") as file:
        file.write(content + hashlib.sha256(content).digest())
    os.replace(temporary, piece_path(folder, number))


def read_piece(
    folder: Path, number: int, n_passages: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(tokens of each title, tokens of each passage, ids of all); None where the piece is missing or not as it was
    written."""
    try:
        raw = piece_path(folder, number).read_bytes()
    except FileNotFoundError:
        return None
    n, content = len(rows_of(number, n_passages)), memoryview(raw)[:-_SUM]
    if len(raw) < _SUM + 8 * n or hashlib.sha256(content).digest() != raw[-_SUM:]:
        return None
    counts = np.frombuffer(content[: 8 * n], np.int32).reshape(2, n)
    return counts[0], counts[1], np.frombuffer(content[8 * n :], dtype)
