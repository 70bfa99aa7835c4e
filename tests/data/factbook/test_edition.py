"""The other edition of the book: what it changes, what it leaves, and that it is made whole or not at all."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from openbook.config.checks import problems_of
from openbook.config.data import FactbookConfig
from openbook.config.load import load_experiment
from openbook.config.schema import Config
from openbook.data.factbook import edition as factbook_edition
from openbook.data.factbook.build import FactbookFiles, FactbookOptions, build_factbook
from openbook.data.factbook.edition import EXCHANGED, EditionFiles, build_edition, describe, edition
from openbook.errors import OpenBookError
from openbook.metrics.matching import has_answer, normalize_answer
from openbook.setup.inputs import data as setup_data

Rows = list[dict[str, Any]]


def rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# A book by hand


def passage(code: str, number: int, text: str, title: str = "") -> dict[str, Any]:
    return {"id": f"{code}-{number:03d}", "title": title or code.upper(), "text": text}


def question(code: str, relation: str, *answers: str, at: int = 0) -> dict[str, Any]:
    return {
        "id": f"{code}-{relation}-trained1",
        "question": f"{relation} of {code.upper()}?",
        "answers": list(answers),
        "positive_ids": [f"{code}-{at:03d}"],
        "relation": relation,
        "phrasing": "trained",
    }


def change(passages: Rows, questions: Rows) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """({passage id: text}, {fact: new answer}, counts) of the edition with seed 3."""
    files, counts = edition(passages, questions, 3)
    new = {row["id"].removesuffix("-trained1"): row["answers"][0] for row in files["changed_other"]}
    return {row["id"]: row["text"] for row in files["passages_changed"]}, new, counts


def test_two_capitals_change_places_wherever_their_countries_name_them() -> None:
    texts, new, counts = change(
        [
            passage("aa", 0, "Capital: name: Rome. Romed, not Rome's."),
            passage("aa", 1, "Urban: 3 million ROME (here)"),
            passage("aa", 2, "Nothing"),
            passage("bb", 0, "Capital: name: Oslo"),
            passage("cc", 0, "near Oslo and Rome"),
        ],
        [question("aa", "capital", "Rome"), question("bb", "capital", "Oslo"), question("bb", "crop", "oats")],
    )
    assert new == {"aa-capital": "Oslo", "bb-capital": "Rome"}
    assert texts == {
        "aa-000": "Capital: name: Oslo. Romed, not Oslo's.",
        "aa-001": "Urban: 3 million OSLO (here)",
        "aa-002": "Nothing",
        "bb-000": "Capital: name: Rome",
        "cc-000": "near Oslo and Rome",
    }
    assert (counts["facts"], counts["facts_changed"], counts["countries"], counts["passages_changed"]) == (3, 2, 2, 3)
    assert counts["relations"]["crop"] == {
        "changed": 0,
        "left_out": {"for which no answer fits that is new to the country": 1},
    }


def test_one_answer_to_two_questions_changes_for_both() -> None:
    """Belgium's capital is its largest city; a city written in capitals gives its plain name."""
    texts, new, _ = change(
        [passage("aa", 0, "largest: ROME; capital: Rome"), passage("bb", 0, "capital: Oslo")],
        [question("aa", "largest_city", "ROME"), question("aa", "capital", "Rome"), question("bb", "capital", "Oslo")],
    )
    assert new == {"aa-largest_city": "Oslo", "aa-capital": "Oslo", "bb-capital": "Rome"}
    assert texts["aa-000"] == "largest: OSLO; capital: Oslo"


@pytest.mark.parametrize(
    ("extra", "asked", "reason"),
    [
        # the other country's capital is named here already: both answers would stand in the passages
        ("twin town: Oslo", ("Rome",), "for which no answer fits that is new to the country"),
        ("", ("Rome", "Roma"), "with several answers"),
    ],
)
def test_what_would_be_ambiguous_is_left_out_and_counted(extra: str, asked: tuple[str, ...], reason: str) -> None:
    passages = [passage("aa", 0, "capital: Rome"), passage("aa", 1, f"more {extra}"), passage("bb", 0, "capital: Oslo")]
    questions = [question("aa", "capital", *asked), question("bb", "capital", "Oslo")]
    texts, new, counts = change(passages, questions)
    assert "aa-capital" not in new and texts["aa-000"] == "capital: Rome"
    assert counts["relations"]["capital"]["left_out"][reason] >= 1
    assert counts["left_out"][reason] == sum(r["left_out"].get(reason, 0) for r in counts["relations"].values())
    assert f"{counts['left_out'][reason]} {reason}" in describe(counts)


def test_an_old_answer_that_would_remain_is_not_changed() -> None:
    """The title is never changed; an answer in it would go on saying the old fact."""
    texts, new, counts = change(
        [passage("aa", 0, "capital: Rome", title="Greater Rome"), passage("bb", 0, "capital: Oslo")],
        [question("aa", "capital", "Rome"), question("bb", "capital", "Oslo")],
    )
    assert new == {"bb-capital": "Rome"} and texts["aa-000"] == "capital: Rome"
    assert counts["relations"]["capital"]["left_out"] == {"whose old answer would remain": 1}


def test_an_answer_within_another_one_is_left_out() -> None:
    _, new, counts = change(
        [passage("aa", 0, "money: Danish kroner; partner: Danish"), passage("bb", 0, "money: euros; partner: UK")],
        [
            question("aa", "currency", "Danish kroner"),
            question("aa", "export_partner", "Danish"),
            question("bb", "currency", "euros"),
            question("bb", "export_partner", "UK"),
        ],
    )
    assert new == {"aa-currency": "euros", "bb-currency": "Danish kroner"}
    assert counts["left_out"]["part of another answer"] == 1


def test_new_answers_are_not_exchanged_again() -> None:
    """aa gets a new partner that is nowhere else, and each string is replaced once."""
    texts, new, _ = change(
        [passage("aa", 0, "to UK; from Chad"), passage("bb", 0, "to Peru"), passage("cc", 0, "from Mali")],
        [
            question("aa", "export_partner", "UK"),
            question("aa", "import_partner", "Chad"),
            question("bb", "export_partner", "Peru"),
            question("cc", "import_partner", "Mali"),
        ],
    )
    assert texts == {"aa-000": "to Peru; from Mali", "bb-000": "to UK", "cc-000": "from Chad"}
    assert len(new) == 4


# The real book


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> FactbookFiles:
    return build_factbook(FactbookOptions(), tmp_path_factory.mktemp("book"))


@pytest.fixture(scope="module")
def other(book: FactbookFiles) -> EditionFiles:
    return build_edition(book)


def test_passages_keep_their_ids_titles_and_order(book: FactbookFiles, other: EditionFiles) -> None:
    before, after = rows(book.passages), rows(other.passages)
    assert [(row["id"], row["title"]) for row in before] == [(row["id"], row["title"]) for row in after]
    changed = [old["id"] for old, new in zip(before, after, strict=True) if old["text"] != new["text"]]
    assert len(changed) == other.counts["passages_changed"] > 300
    asked = {row["id"][:2] for row in rows(other.original_facts)}
    assert {id_[:2] for id_ in changed} == asked, "only countries that are asked about change"
    assert asked <= {row["id"][:2] for row in rows(book.test)}


def test_every_fact_is_said_anew_and_the_old_one_nowhere(book: FactbookFiles, other: EditionFiles) -> None:
    before, after = (
        {row["id"]: f"{row['title']} {row['text']}" for row in rows(path)} for path in (book.passages, other.passages)
    )
    of_country: dict[str, list[str]] = {}
    for id_ in before:
        of_country.setdefault(id_[:2], []).append(id_)
    original, changed = rows(other.original_facts), rows(other.changed_facts)
    for was, now in zip(original, changed, strict=True):
        assert {**was, "answers": []} == {**now, "answers": []}
        (old,), (new,) = was["answers"], now["answers"]
        assert normalize_answer(old) != normalize_answer(new)
        here = of_country[was["id"][:2]]
        assert not any(has_answer(before[id_], [new]) or has_answer(after[id_], [old]) for id_ in here), was["id"]
        assert all(has_answer(before[id_], [old]) and has_answer(after[id_], [new]) for id_ in was["positive_ids"])
        assert not has_answer(was["question"], [new])


def test_counts_add_up(book: FactbookFiles, other: EditionFiles) -> None:
    counts = other.counts
    assert counts["facts_changed"] + sum(counts["left_out"].values()) == counts["facts"]
    assert counts["questions"] == len(rows(other.original_facts)) == 2 * counts["facts_changed"]
    assert sum(relation["changed"] for relation in counts["relations"].values()) == counts["facts_changed"] > 300
    assert all(counts["relations"][name]["changed"] > 0 for name in EXCHANGED), "every relation gives facts"
    # each is one of the book's own test questions
    asked = {row["id"]: row for row in rows(book.test)}
    assert all(asked[row["id"]] == row for row in rows(other.original_facts))


def test_the_same_book_and_seed_give_the_same_bytes_and_another_seed_others(
    book: FactbookFiles, other: EditionFiles
) -> None:
    passages, questions = rows(book.passages), rows(book.test)
    again, _ = edition(passages, questions, 0)
    assert again["passages_changed"] == rows(other.passages) and again["changed_other"] == rows(other.changed_facts)
    another, _ = edition(passages, questions, 1)
    assert another["changed_other"] != again["changed_other"]
    assert build_edition(book, 1).folder != other.folder


def test_it_is_built_once(book: FactbookFiles, other: EditionFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("built a second time")

    monkeypatch.setattr(factbook_edition, "edition", never)
    said: list[str] = []
    assert build_edition(book, progress=said.append) == other
    assert said == [describe(other.counts)]
    assert not [path.name for path in other.folder.parent.iterdir() if path.name.startswith(".")]


def test_what_breaks_while_it_is_written_leaves_nothing(
    book: FactbookFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / book.folder.name
    shutil.copytree(book.folder, folder)
    copy = FactbookFiles(
        folder,
        folder / "passages.jsonl",
        folder / "train.jsonl",
        folder / "validation.jsonl",
        folder / "test.jsonl",
        book.counts,
    )

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("openbook.utils.atomic.os.replace", full)
    with pytest.raises(OpenBookError, match=r"the disk is full \(.*factbook-edition-.*data.cache"):
        build_edition(copy)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


# Its names


def test_the_names_stand_for_its_files(book: FactbookFiles, other: EditionFiles) -> None:
    named = {
        ("corpus", "factbook"): book.passages,
        ("corpus", "factbook_changed"): other.passages,
        ("test", "factbook"): book.test,
        ("test", "factbook_changed"): other.changed_facts,
        ("test", "factbook_original_facts"): other.original_facts,
    }
    config = load_experiment("rag_token", [f"data.cache={book.folder.parent}", "data.factbook.varied=false"])
    assert config.data.factbook == FactbookConfig()
    for (key, name), path in named.items():
        found = setup_data.named_file(config, key, name)
        assert found is not None and found.resolve() == path.resolve(), (key, name)
    assert setup_data.named_file(config, "train", str(book.train)) == book.train


def test_they_count_as_embedded() -> None:
    right = ["data.corpus=factbook_changed", "data.test=factbook_changed"]
    assert problems_of(load_experiment("rag_token", right)) == []
    with pytest.raises(OpenBookError, match=r"embedded questions over a corpus of your own \(data.test\)"):
        load_experiment(
            "rag_token",
            [
                "data.corpus=mine.jsonl",
                "data.train=mine.jsonl",
                "data.validation=",
                "data.test=factbook_original_facts",
            ],
        )
    with pytest.raises(OpenBookError, match=r"questions of your own over the embedded corpus"):
        load_experiment(
            "rag_token", ["data.corpus=factbook_changed", "data.train=mine.jsonl", "data.validation=", "data.test="]
        )
    assert Config().hot_swap.corpus == "factbook_changed"
