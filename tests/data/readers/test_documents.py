"""Pages as people write them, and folders in which not everything is a document."""

import bz2
import gzip
import json
import os
from pathlib import Path

import pytest

from openbook.data.readers.columns import PASSAGE
from openbook.data.readers.convert import convert_passages
from openbook.data.readers.detect import is_native, passages_of, questions_of
from openbook.data.readers.passages.documents import read
from openbook.data.readers.passages.splitter import Splitter
from openbook.errors import OpenBookError, UnknownFormatError

WORDS = Splitter("words", 100, 0)


def sections(tmp_path: Path, html: str) -> list[tuple[tuple[str, ...], str]]:
    (tmp_path / "page.html").write_text(f"<title>Trees</title><body>{html}")
    return [(one.headings, " ".join(one.text.split())) for one in read(tmp_path / "page.html")[1]]


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<h2>Oaks</h3><p>An oak.</p>", [(("Oaks",), "An oak.")]),
        ("<h2>Oaks<p>An oak.</p><h2>Firs</h2>A fir.", [(("Oaks",), "An oak."), (("Firs",), "A fir.")]),
        ("<div><h2>Oaks</div>An oak.", [(("Oaks",), "An oak.")]),
        ("<h2>Oaks<h2>Firs</h2>A fir.", [(("Firs",), "A fir.")]),
        ("<h2><div>Oaks</div></h2><p>An oak.", [(("Oaks",), "An oak.")]),
        ("<h2>Oaks <em>and</em><br>firs</h2><p>Trees.", [(("Oaks and firs",), "Trees.")]),
        ("<h2>Oaks<script>var x;</script></h2><p>An oak.", [(("Oaks",), "An oak.")]),
        ("<h2></h2><p>An oak.", [((), "An oak.")]),
    ],
)
def test_a_heading_takes_no_text_behind_it(
    tmp_path: Path, html: str, expected: list[tuple[tuple[str, ...], str]]
) -> None:
    assert sections(tmp_path, html) == expected


def test_headings_of_menus_are_none(tmp_path: Path) -> None:
    menu = "<nav><h2>Menu</h2><a>Home</a></nav>"
    html = f"<header>{menu}<h1>Oaks</h1></header><p>An oak.</p>{menu}<p>It is old.</p><footer><h3>Us</h3></footer>"
    assert sections(tmp_path, html) == [(("Oaks",), "An oak. It is old.")]


def test_one_text_beside_files_of_records_does_not_stand_for_the_folder(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / f"part-{n}.jsonl").write_text(json.dumps({"id": str(n), "title": "a", "text": f"text {n}"}) + "\n")
    (tmp_path / "how-it-was-made.txt").write_text("By hand, over many years.")
    reading = passages_of(str(tmp_path), {}, WORDS)
    assert [one.text for _, one in reading.found] == ["text 0", "text 1"]
    assert dict(reading.notes) == {"files of text among those of records are passed over": 1}


def test_records_beside_more_texts_are_passed_over_and_counted(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / f"{n}.txt").write_text(f"text {n}")
    (tmp_path / "meta.json").write_text('[{"id": 1}]')
    (tmp_path / "cover.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\t\0")
    (tmp_path / "README.md").write_text("about")
    reading = passages_of(str(tmp_path), {}, WORDS)
    assert [one.text for _, one in reading.found] == ["text 0", "text 1", "about"]
    assert dict(reading.notes) == {"files that are no text, Markdown and HTML are passed over": 2}


def test_as_many_texts_as_records_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text('{"id": "1", "title": "a", "text": "b"}\n')
    with pytest.raises(
        OpenBookError, match=r"documents or of records.*1 files of text, first a.txt.*first b.jsonl.*Name a file"
    ):
        passages_of(str(tmp_path), {}, WORDS)
    (tmp_path / "b.jsonl").write_text('{"question": "q?", "answers": ["a"]}\n')
    reading = questions_of(str(tmp_path), "train", {})  # texts hold no questions: there is nothing to choose
    assert len(list(reading.found)) == 1 and sum(reading.notes.values()) == 1


def test_a_folder_of_texts_is_none_of_questions(tmp_path: Path) -> None:
    """As another format: `convert` then reads its passages."""
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UnknownFormatError, match="holds no file of records"):
        questions_of(str(tmp_path), "train", {})


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("St. Petersburg.txt", "St. Petersburg"),
        ("3.14_facts.MD", "3.14 facts"),
        ("a.b.html.gz", "a.b"),
        ("old-oak.text", "old oak"),
        (".net.txt", ".net"),
    ],
)
def test_a_title_is_a_name_without_its_known_suffixes(tmp_path: Path, name: str, title: str) -> None:
    raw = b"some text"
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    assert read(tmp_path / name)[0] == title


def test_one_packed_file_is_a_document_as_in_a_folder(tmp_path: Path) -> None:
    for name, raw in {"oak.txt.gz": gzip.compress(b"An oak."), "fir.md.bz2": bz2.compress(b"# Fir\n\nA fir.")}.items():
        (tmp_path / name).write_bytes(raw)
    for path, text in ((tmp_path / "oak.txt.gz", "An oak."), (tmp_path / "fir.md.bz2", "A fir.")):
        assert [one.text for _, one in passages_of(str(path), {}, WORDS).found] == [text]
        assert not is_native(path, PASSAGE, {})
    assert [one.text for _, one in passages_of(str(tmp_path), {}, WORDS).found] == ["A fir.", "An oak."]


def test_one_text_may_begin_with_a_mark(tmp_path: Path) -> None:
    """As Windows' editors write it; what else may be in a file of that name is still refused with one."""
    path, mark = tmp_path / "oak.txt", b"\xef\xbb\xbf"
    path.write_bytes(mark + b"An oak, old.\nIt grows.")
    assert not is_native(path, PASSAGE, {})
    assert [one.text for _, one in passages_of(str(path), {}, WORDS).found] == ["An oak, old. It grows."]
    with pytest.raises(UnknownFormatError, match="a text is no file of questions"):
        questions_of(str(path), "train", {})  # as another format: `convert` then reads its passages
    for raw in (b'{"id": "1", "title": "", "text": "x"}', b"1\tan oak"):
        path.write_bytes(mark + raw)
        for look in (lambda: is_native(path, PASSAGE, {}), lambda: passages_of(str(path), {}, WORDS)):
            with pytest.raises(OpenBookError, match="byte order mark"):
                look()


@pytest.mark.parametrize("alone", [True, False])
def test_a_name_that_is_not_utf8_is_named(tmp_path: Path, alone: bool) -> None:
    (tmp_path / "f").mkdir()
    name = tmp_path / "f" / os.fsdecode(b"caf\xe9.txt")
    try:
        name.write_text("A cafe.")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(OpenBookError, match=r"the name of a file is not UTF-8: got '.*caf\\xe9\.txt'.*Rename it"):
        convert_passages(str(name if alone else tmp_path / "f"), tmp_path / "cache", columns={}, splitter=WORDS)


def test_a_heading_with_many_signs_is_read_at_once(tmp_path: Path) -> None:
    """With an expression that tries each place of each sign these would take hours."""
    headings = ["a" + " " * 9000 + "b", "c" + " #" * 9000 + "d", "e" + " " * 9000 + "###  ", "f#", "C ##"]
    (tmp_path / "a.md").write_text("".join(f"## {one}\ntext\n" for one in headings))
    found = [one.headings[0] for one in read(tmp_path / "a.md")[1]]
    assert found == ["a b", "c" + " #" * 9000 + "d", "e", "f", "C"]
