"""The splitter: pieces that cover a text, overlap as told, and are the same at every reading."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from openbook.data.readers.passages.documents import documents, read
from openbook.data.readers.passages.splitter import Splitter

WORDS = [f"w{n}" for n in range(23)]


@pytest.mark.parametrize(("size", "overlap"), [(7, 0), (7, 3), (23, 0), (5, 4), (100, 0)])
def test_words(size: int, overlap: int) -> None:
    pieces = [piece.split() for piece in Splitter("words", size, overlap).pieces(" \n ".join(WORDS))]
    assert [len(piece) for piece in pieces[:-1]] == [size] * (len(pieces) - 1) and len(pieces[-1]) <= size
    for one, two in pairwise(pieces):
        assert one[size - overlap :] == two[:overlap]
    assert pieces[0] + [word for piece in pieces[1:] for word in piece[overlap:]] == WORDS


def test_dpr_passages_of_100_words() -> None:
    """250 words are two passages of 100 and one of 50, as DPR cuts (without its filling up of the last)."""
    pieces = Splitter().pieces(" ".join(f"w{n}" for n in range(250)))
    assert [len(piece.split()) for piece in pieces] == [100, 100, 50]


def test_signs_count_as_words_where_there_are_no_spaces() -> None:
    assert Splitter("words", 4).pieces("東京は日本の首都です") == ["東京は日", "本の首都", "です"]


def test_sentences_end_with_their_paragraph() -> None:
    text = "Dr. Smith is old. He lives\nin Rome.\n\nIt is hot there. All\t day."
    assert Splitter("sentences", 1).pieces(text) == [
        "Dr. Smith is old.",
        "He lives in Rome.",
        "It is hot there.",
        "All day.",
    ]
    assert Splitter("sentences", 3, 1).pieces(text) == [
        "Dr. Smith is old. He lives in Rome. It is hot there.",
        "It is hot there. All day.",
    ]


def by_letter(text: str) -> list[tuple[int, int]]:
    return [(n, n + 1) for n, sign in enumerate(text) if not sign.isspace()]


def test_tokens_keep_words_whole() -> None:
    """Each letter is a token: at most 8 of them, and no word is cut that has no more."""
    split = Splitter("tokens", 8, 0, offsets=by_letter, tokenizer="letters")
    assert split.pieces("the oak grows in abcdefghijk") == ["the oak", "grows in", "abcdefgh", "ijk"]
    overlapping = Splitter("tokens", 8, 4, offsets=by_letter, tokenizer="letters")
    assert overlapping.pieces("the oak grows in it") == ["the oak", "oak grows", "in it"]


def test_tokens_of_spaces_alone_make_no_piece() -> None:
    """As byte-level tokenizers have them; here each sign is a token, spaces too."""
    split = Splitter("tokens", 3, 0, offsets=lambda text: [(n, n + 1) for n in range(len(text))], tokenizer="signs")
    assert split.pieces("oak" + " " * 9 + "fir") == ["oak", "fir"]


@pytest.mark.parametrize("by", ["words", "sentences", "tokens"])
def test_an_empty_text_has_no_passage(by: str) -> None:
    assert Splitter(by, offsets=by_letter).pieces(" \n\n ") == []


MARKDOWN = """---
title: "Trees"
---
Before all.

# Oaks
An oak.

```
# no heading
```

Under it
--------
More oaks.

## Red ##
Red oaks.
# Firs
A fir.
"""

HTML = """<!doctype html><title>Trees &amp; more</title><body><nav>menu</nav>
<h1>Oaks</h1><p>An <b>oak</b> is&nbsp;old.<p>Two</p><script>var x = "no text";</script>
<h2>Red</h2><ul><li>one<li>two</ul><footer>end</footer>"""


def test_headings_of_markdown(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(MARKDOWN)
    title, sections = read(tmp_path / "a.md")
    assert title == "Trees"
    assert [(one.headings, " ".join(one.text.split())) for one in sections] == [
        ((), "Before all."),
        (("Oaks",), "An oak. ``` # no heading ```"),
        (("Oaks", "Under it"), "More oaks."),
        (("Oaks", "Red"), "Red oaks."),
        (("Firs",), "A fir."),
    ]


def test_text_of_html(tmp_path: Path) -> None:
    (tmp_path / "a.HTM").write_text(HTML)
    title, sections = read(tmp_path / "a.HTM")
    assert title == "Trees & more"
    assert [(one.headings, " ".join(one.text.split())) for one in sections] == [
        (("Oaks",), "An oak is old. Two"),
        (("Oaks", "Red"), "one two"),
    ]


def test_ids_survive_a_change_in_another_file(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(" ".join(f"{name[0]}{n}" for n in range(150)))
    before = {one.id: one.text for _, one in documents(tmp_path, Splitter())}  # type: ignore[union-attr]
    assert list(before) == ["a.txt#1", "a.txt#2", "b.txt#1", "b.txt#2", "sub/c.txt#1", "sub/c.txt#2"]
    (tmp_path / "a.txt").write_text("short")
    after = {one.id: one.text for _, one in documents(tmp_path, Splitter())}  # type: ignore[union-attr]
    assert after == {"a.txt#1": "short"} | {name: text for name, text in before.items() if name[0] != "a"}
