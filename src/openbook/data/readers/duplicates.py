"""Passages that say what an earlier one says: found, and left out where the user wants that.

The same: title and text are equal but for case, spaces and Unicode form (NFKC). Near: of the same title, and of
all runs of five words in either text at least 0.8 in both (Jaccard; Lee et al. 2022, arXiv:2107.06499). Candidates come
from MinHash in bands (Broder 1997); each is compared exactly, so what is called near is near, while a pair may be
missed. Done here in numpy: of every passage only its bands' 160 bytes are kept, where libraries keep Python objects.
"""

from __future__ import annotations

import json
import unicodedata
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from openbook.batch import Example, Passage
from openbook.data.readers.checked_lines import file_fingerprint, id_hash
from openbook.data.readers.fields import json_of
from openbook.data.readers.formats import read_passages, read_questions
from openbook.metrics.matching import words
from openbook.utils.atomic import replacing, replacing_folder, write_json

VERSION = 2  # raise it whenever the same input gives other bytes
SHINGLE, NEAR = 5, 0.8  # words of a run; the least Jaccard similarity
BANDS, ROWS = 20, 5  # a pair of similarity s shares a band with probability 1 - (1 - s^5)^20: 0.9996 at 0.8

_DRAWN = np.random.default_rng(0)
_FACTORS = _DRAWN.integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _DRAWN.integers(0, 2**63, BANDS * ROWS, dtype=np.uint64)
_POWERS = _FACTORS[:SHINGLE] ** np.uint64(3)

_ENCODE = json.JSONEncoder(ensure_ascii=False).encode
Progress = Callable[[int, int], None]


class Duplicates(NamedTuple):
    """Of n_passages: how many have title and text of an earlier one sign for sign (exact), how many but for case,
    spaces and Unicode form (same, the exact among them), how many are near one (None: not looked for). kept: {row: row
    of the earlier passage that stands for it}, of all of them."""

    n_passages: int
    exact: int
    same: int
    near: int | None
    kept: dict[int, int]


def find_duplicates(passages: Path, near: bool, progress: Progress | None = None) -> Duplicates:
    """Read a passage file once, and a second time where near ones are looked for and there are candidates."""
    raw, keys, bands = array("Q"), array("Q"), array("Q")
    for n, passage in enumerate(read_passages(passages), 1):
        raw.append(id_hash(f"{passage.title}\0{passage.text}"))
        keys.append(id_hash(f"{_folded(passage.title)}\0{_folded(passage.text)}"))
        if near:
            bands.frombytes(_bands(_shingles_of(passage)).tobytes())
        if progress and n % 1000 == 0:
            progress(n, 0)
    if not keys:  # refused when the corpus is built
        return Duplicates(0, 0, 0, 0 if near else None, {})
    n_passages, kept = len(keys), _first_of_each(keys)
    exact, same = len(_first_of_each(raw)), len(kept)
    if near:
        alone = np.setdiff1d(np.arange(n_passages), np.fromiter(kept, np.int64, len(kept)))
        pairs = _candidates(np.frombuffer(bands, np.uint64).reshape(-1, BANDS), alone)
        found = _verified(passages, pairs)
        kept = {row: found.get(first, first) for row, first in kept.items()} | found
    return Duplicates(n_passages, exact, same, len(kept) - same if near else None, kept)


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _shingles_of(passage: Passage) -> np.ndarray:
    return shingles(words(passage.title), words(passage.text))


def shingles(title: Sequence[str], text: Sequence[str]) -> np.ndarray:
    """Hashes [n] of the text's runs of five words, each once; all of a shorter text is one run. Texts of different
    titles share none."""
    start = np.uint64(id_hash(" ".join(title)))
    codes = np.fromiter((zlib.crc32(word.encode()) for word in text), np.uint64, len(text))
    if not len(codes):
        return np.array([start])
    runs = sliding_window_view(codes, min(SHINGLE, len(codes)))
    return np.unique((runs * _POWERS[: runs.shape[1]]).sum(1) + start)


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard similarity of two sets of shingles, each once."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


def _first_of_each(hashes: array[int]) -> dict[int, int]:
    """{row: the first row with the same hash} of all rows that are not the first."""
    _, first, inverse = np.unique(np.frombuffer(hashes, np.uint64), return_index=True, return_inverse=True)
    repeats = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    return dict(zip(repeats.tolist(), first[inverse[repeats]].tolist(), strict=True))


def _bands(hashes: np.ndarray) -> np.ndarray:
    """[BANDS] uint64: equal in a band with the probability that its five minima are."""
    minima = ((hashes[:, None] * _FACTORS + _OFFSETS) >> np.uint64(20)).min(0).reshape(BANDS, ROWS)
    return (minima * _FACTORS[:ROWS]).sum(1)


def _candidates(bands: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[n, 2] (row, an earlier row), ordered: in each band every row with the first and with the last before it of the
    same value, so that their number is linear in that of the rows."""
    pairs = [np.zeros((0, 2), np.int64)]
    for band in bands[rows].T:
        order = np.argsort(band, kind="stable")
        begins = np.r_[True, np.diff(band[order]) != 0]
        first = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
        later = np.flatnonzero(~begins)
        pairs += [np.stack([order[later], first[later]], 1), np.stack([order[later], order[later - 1]], 1)]
    return rows[np.unique(np.concatenate(pairs), axis=0)]


def _verified(passages: Path, pairs: np.ndarray) -> dict[int, int]:
    """{row: the earlier row that stands for it}, of the pairs that are near. What stands for another is itself kept."""
    asked, sets = set(pairs.ravel().tolist()), dict[int, np.ndarray]()
    for row, passage in enumerate(read_passages(passages) if asked else ()):
        if row in asked:
            sets[row] = _shingles_of(passage)
    found: dict[int, int] = {}
    for row, other in pairs.tolist():
        first = found.get(other, other)
        if row not in found and similarity(sets[row], sets[first]) >= NEAR:
            found[row] = first
    return found


def without_duplicates(passages: Path, cache: Path, near: bool, progress: Progress | None = None) -> Path:
    """A folder of the cache with passages.jsonl, in which each stands once, and dropped.json, {id: id of the passage
    that stands for it}; made where it is not there yet."""
    key = json.dumps([VERSION, "unique", near, file_fingerprint(passages, cache)])
    folder = Path(cache) / f"unique-{id_hash(key):016x}"
    if not (folder / "dropped.json").is_file():
        with replacing_folder(folder, complete=lambda made: (made / "dropped.json").is_file()) as new:
            found = find_duplicates(passages, near, progress)
            ids, firsts = dict[int, str](), set(found.kept.values())
            with open(new / "passages.jsonl", "w", encoding="utf-8", newline="\n") as file:
                for row, one in enumerate(read_passages(passages)):
                    if row in firsts or row in found.kept:
                        ids[row] = one.id
                    if row not in found.kept:
                        file.write(_ENCODE({"id": one.id, "title": one.title, "text": one.text}) + "\n")
            dropped = {ids[row]: ids[first] for row, first in found.kept.items()}
            write_json(new / "dropped.json", dropped)
    return folder


def with_kept_ids(questions: Path, dropped: dict[str, str], cache: Path) -> Path:
    """The questions with the ids of the passages that stand for dropped ones; their own file where they name none."""
    if not any(
        one in dropped for asked in read_questions(questions) for one in (*asked.positive_ids, *asked.negative_ids)
    ):
        return questions
    key = json.dumps([VERSION, file_fingerprint(questions, cache), id_hash(json.dumps(dropped, sort_keys=True))])
    path = Path(cache) / f"renamed-{id_hash(key):016x}.jsonl"
    if not path.is_file():
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(
                _ENCODE(json_of(_renamed(example, dropped))) + "\n" for example in read_questions(questions)
            )
    return path


def _renamed(example: Example, dropped: dict[str, str]) -> Example:
    grades: dict[str, int] = {}
    for one, grade in zip(example.positive_ids, example.grades or (1,) * len(example.positive_ids), strict=True):
        kept = dropped.get(one, one)
        grades[kept] = max(grade, grades.get(kept, 0))
    negatives = dict.fromkeys(dropped.get(one, one) for one in example.negative_ids)
    return replace(
        example,
        positive_ids=tuple(grades),
        grades=tuple(grades.values()) if example.grades else (),
        negative_ids=tuple(one for one in negatives if one not in grades),
    )
