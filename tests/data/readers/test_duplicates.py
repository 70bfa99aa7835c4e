"""Passages that say what an earlier one says are found as a comparison of all pairs finds them, and left out."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from openbook.batch import Example
from openbook.data.readers.duplicates import (
    BANDS,
    NEAR,
    SHINGLE,
    _candidates,
    find_duplicates,
    shingles,
    similarity,
    with_kept_ids,
    without_duplicates,
)
from openbook.data.readers.fields import json_of
from openbook.data.readers.formats import read_questions
from tests.data.readers.samples import lines


def runs_of(text: str) -> set[tuple[str, ...]]:
    """The definition: runs of five words, or the text as one run."""
    words = text.lower().split()
    return {tuple(words[n : n + SHINGLE]) for n in range(max(1, len(words) - SHINGLE + 1))}


def jaccard(one: str, other: str) -> float:
    return len(runs_of(one) & runs_of(other)) / len(runs_of(one) | runs_of(other))


def written(path: Path, *passages: tuple[str, str, str]) -> Path:
    path.write_text(lines(*({"id": a, "title": b, "text": c} for a, b, c in passages)), encoding="utf-8")
    return path


def test_similarity_by_hand() -> None:
    """Of 50 different words one is exchanged: 5 of 46 runs differ on either side, 41 are common: 41 / 51."""
    one = [f"w{n}" for n in range(50)]
    other = [*one[:20], "x", *one[21:]]
    assert similarity(shingles([], one), shingles([], other)) == pytest.approx(41 / 51)
    assert similarity(shingles(["a"], one), shingles(["b"], one)) == 0
    assert similarity(shingles([], ["a", "b"]), shingles([], ["a", "b"])) == 1
    assert similarity(shingles([], ["a", "b"]), shingles([], ["b", "a"])) == 0


def test_as_all_pairs_have_it(tmp_path: Path) -> None:
    """Edited copies of 23 texts: what is called near is near, and of what is near to a passage that is kept nearly all
    is found."""
    draw = np.random.default_rng(3)
    texts = []
    for _ in range(23):
        words = [f"w{n}" for n in draw.integers(0, 400, int(draw.integers(30, 90)))]
        for copy in range(7):
            edited = list(words)
            for place in draw.integers(0, len(words), copy // 2):
                edited[place] = f"x{draw.integers(1000)}"
            texts.append(" ".join(edited))
    order = draw.permutation(len(texts))
    texts = [texts[n] for n in order]
    path = written(tmp_path / "p.jsonl", *((str(n), "", text) for n, text in enumerate(texts)))
    found = find_duplicates(path, near=True)
    assert all(first < row and jaccard(texts[row], texts[first]) >= NEAR for row, first in found.kept.items())
    assert not set(found.kept.values()) & found.kept.keys()  # what stands for another is kept
    assert found.same == len(texts) - len(set(texts)) and found.near == len(found.kept) - found.same > 20
    kept = [row for row in range(len(texts)) if row not in found.kept]
    missed = [row for n, row in enumerate(kept) if any(jaccard(texts[row], texts[one]) >= NEAR for one in kept[:n])]
    assert len(missed) <= 0.02 * len(texts)
    assert find_duplicates(path, near=True) == found
    assert find_duplicates(path, near=False)._replace(near=found.near, kept=found.kept) == found


def test_the_same_but_for_case_spaces_and_unicode(tmp_path: Path) -> None:
    passages = [
        ("a", "Café", "The river flows."),
        ("b", "Café", "The river flows."),
        ("c", "cafe\u0301", "the  RIVER flows."),
        ("d", "Other", "The river flows."),
        ("e", "Café", "The river flows?"),
    ]
    found = find_duplicates(written(tmp_path / "p.jsonl", *passages), near=False)
    assert found == (5, 1, 2, None, {1: 0, 2: 0})
    assert find_duplicates(written(tmp_path / "empty.jsonl"), near=True) == (0, 0, 0, 0, {})


def test_what_is_left_out_and_what_questions_then_name(tmp_path: Path) -> None:
    text = " ".join(f"w{n}" for n in range(50))
    passages = [("a", "t", text), ("b", "t", text.upper()), ("c", "t", text.replace("w20", "x")), ("d", "t", "else")]
    path = written(tmp_path / "p.jsonl", *passages)
    asked = {"question": "q", "answers": ["w1"]}
    questions = tmp_path / "q.jsonl"
    rows = [
        {"id": "1", "positive_ids": ["b", "a", "c"], "grades": [1, 2, 1], "negative_ids": ["b", "d"]},
        {"positive_ids": ["d"], "negative_ids": ["c"]},
    ]
    questions.write_text(lines(*(asked | row for row in rows)), encoding="utf-8")
    for near, dropped in ((False, {"b": "a"}), (True, {"b": "a", "c": "a"})):
        folder = without_duplicates(path, tmp_path / "cache", near)
        assert json.loads((folder / "dropped.json").read_text()) == dropped
        kept = [json.loads(line)["id"] for line in (folder / "passages.jsonl").read_text().splitlines()]
        assert kept == [one for one, _, _ in passages if one not in dropped]
        first, second = map(json.loads, with_kept_ids(questions, dropped, tmp_path).read_text().splitlines())
        assert (first["positive_ids"], first["grades"]) == ((["a"], [2]) if near else (["a", "c"], [2, 1]))
        assert first["negative_ids"] == ["d"] and second["negative_ids"] == (["a"] if near else ["c"])
        assert second["id"] == "2"  # the number of its line, as without an id
    assert with_kept_ids(questions, {"z": "a"}, tmp_path) == questions


def test_candidates_are_linear_in_the_passages() -> None:
    """A thousand passages that share all bands are compared with one each, not with each other."""
    rows = np.arange(1009)
    pairs = _candidates(np.zeros((1009, BANDS), np.uint64), rows)
    assert len(pairs) == 2 * 1008 - 1 and all(one < other for one, other in pairwise(map(tuple, pairs.tolist())))


def test_a_question_keeps_whatever_else_it_has(tmp_path: Path) -> None:
    asked = Example("7", "q", ("w1",), ("b", "d"), "capital", "held_out", ("c",), (2, 1), -0.5, ("p",))
    empty = [one.name for one in fields(Example) if not getattr(asked, one.name)]
    assert not empty  # a field that is new is set here too
    questions = tmp_path / "q.jsonl"
    questions.write_text(lines(json_of(asked)), encoding="utf-8")
    (read,) = read_questions(with_kept_ids(questions, {"b": "a"}, tmp_path))
    assert read == replace(asked, positive_ids=("a", "d"))
