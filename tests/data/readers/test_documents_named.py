"""Gold ids that name a document: which of its passages they come to stand for, and what is said of it."""

import json
from pathlib import Path

import pytest

from openbook.data.readers.convert import convert_passages
from openbook.data.readers.passages.documents_named import Named, with_passages_of_documents
from openbook.data.readers.passages.splitter import Splitter


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    """oak.txt#1 (an oak), #2 (grows old), fir.txt#1 (a fir), b#2.txt#1 (odd name)."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, text in {"oak.txt": "an oak grows old", "fir.txt": "a fir", "b#2.txt": "odd name"}.items():
        (folder / name).write_text(text)
    made = convert_passages(str(folder), tmp_path / "cache", columns={}, splitter=Splitter("words", 2, 0)).passages
    assert made is not None
    return made


def written(tmp_path: Path, **record: object) -> Path:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "q?", "answers": ["oak"]} | record) + "\n")
    return path


def read(path: Path) -> dict[str, list[object]]:
    return json.loads(path.read_text())


def test_all_passages_of_a_document_are_positive(tmp_path: Path, passages: Path) -> None:
    questions = written(tmp_path, positive_ids=["oak.txt", "b#2.txt", "no.txt"], negative_ids=["fir.txt", "oak.txt"])
    path, found = with_passages_of_documents(questions, passages, tmp_path)
    assert read(path)["positive_ids"] == ["oak.txt#1", "oak.txt#2", "b#2.txt#1", "no.txt"]
    assert read(path)["negative_ids"] == ["fir.txt#1"]  # what is positive is no negative
    assert found == Named(named=4, documents=3, passages=4, without=0)
    assert with_passages_of_documents(questions, passages, tmp_path) == (path, found)


def test_those_with_an_answer_are_trained_on(tmp_path: Path, passages: Path) -> None:
    """The rest of the document is neither positive nor negative."""
    questions = written(tmp_path, positive_ids=["oak.txt", "fir.txt#1"], negative_ids=["oak.txt"])
    path, found = with_passages_of_documents(questions, passages, tmp_path, narrow=True)
    assert read(path)["positive_ids"] == ["oak.txt#1", "fir.txt#1"]
    assert "negative_ids" not in read(path)
    assert found == Named(named=2, documents=1, passages=1)


def test_where_no_passage_has_an_answer_all_are_kept_and_counted(tmp_path: Path, passages: Path) -> None:
    questions = written(tmp_path, positive_ids=["oak.txt"], answers=["elm"])
    path, found = with_passages_of_documents(questions, passages, tmp_path, narrow=True)
    assert read(path)["positive_ids"] == ["oak.txt#1", "oak.txt#2"]
    assert found == Named(named=1, documents=1, passages=2, without=1)


def test_a_grade_is_that_of_every_passage(tmp_path: Path, passages: Path) -> None:
    questions = written(tmp_path, positive_ids=["oak.txt#2", "oak.txt"], grades=[3, 1])
    path, _ = with_passages_of_documents(questions, passages, tmp_path)
    assert dict(zip(read(path)["positive_ids"], read(path)["grades"], strict=True)) == {"oak.txt#2": 3, "oak.txt#1": 1}


def test_questions_that_name_passages_are_read_where_they_lie(tmp_path: Path, passages: Path) -> None:
    for ids in (["oak.txt#1"], ["no.txt"], []):
        questions = written(tmp_path, positive_ids=ids)
        assert with_passages_of_documents(questions, passages, tmp_path) == (questions, Named())
