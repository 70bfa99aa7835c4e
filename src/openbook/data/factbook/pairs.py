"""Questions that two passages answer together: what stands in one country's list and is missing from another's.

    Which main export partner of Croatia is not among those of Serbia?

The first country's passage holds the answer among items that the second country has too, the second country's passage
says which of them those are. No reader of one passage can tell: it knows either what may answer or what may not, and
the sum of two such readings still has all of the first list in it. HotpotQA (Yang et al. 2018) and the compositional
questions of 2WikiMultihopQA ask for this on Wikipedia.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import permutations
from pathlib import Path
from typing import Any

import yaml

from openbook.data.factbook.build import FactbookFiles, Files, built_once
from openbook.data.factbook.facts import SPLITS, hashed
from openbook.data.factbook.text import Country, book_files, find_book, read_country
from openbook.utils.json_lines import read_json_lines

VERSION = 1  # raise it whenever the same book gives other bytes

MOST_ANSWERS = 2  # items that the second country lacks
LEAST_SHARED = 2  # items that it has too
LONGEST_ITEM = 3  # words

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ListField:
    """A field of the book that lists things. phrasings: with {first} and {second}, the two countries."""

    name: str
    section: str
    field: str
    phrasings: tuple[str, ...]


@dataclass(frozen=True)
class Listed:
    """What a country's field lists, and the passage that holds the field whole."""

    country: Country
    items: tuple[str, ...]
    passage: str


@dataclass(frozen=True)
class PairFiles:
    """The jsonl files of the questions and what is in them (counts.json)."""

    folder: Path
    train: Path
    validation: Path
    test: Path
    counts: dict[str, Any]


def build_pairs(book: FactbookFiles, progress: Callable[[str], None] | None = None) -> PairFiles:
    """The questions about pairs of countries of one split of a built book, beside it, from the cache if they are there.

    Raises DiskError where the folder cannot be written.
    """
    say = progress or (lambda _: None)
    folder = book.folder.with_name(f"factbook-pairs-{hashed(f'{VERSION} {book.folder.name}')[:12]}")

    def make() -> tuple[Files, dict[str, Any]]:
        countries = [read_country(path) for path in book_files(find_book())]
        asked = {split: {_code(row) for row in read_json_lines(getattr(book, split))[0]} for split in SPLITS}
        return pairs(countries, read_json_lines(book.passages)[0], asked, list_fields())

    counts = built_once(folder, make, "questions about pairs of countries", say)
    say(describe(counts))
    return PairFiles(folder, *(folder / f"{split}.jsonl" for split in SPLITS), counts=counts)


def describe(counts: Mapping[str, Any]) -> str:
    """One line for people: questions per split, what guessing would give, pairs left out and why."""
    questions = ", ".join(f"{counts['questions'][split]} {split}" for split in SPLITS)
    left_out = ", ".join(f"{number} {reason}" for reason, number in counts["left_out"].items()) or "none"
    return (
        f"pairs of countries: {questions} questions; any item of the first list answers {counts['chance']['test']:.3f} "
        f"of the test's; of {counts['pairs']} pairs left out: {left_out}"
    )


def pairs(
    countries: Sequence[Country],
    passages: Sequence[Row],
    asked: Mapping[str, Iterable[str]],
    fields: Sequence[ListField],
) -> tuple[Files, dict[str, Any]]:
    """(rows of each file by its name without ending, counts).

    passages: id `CODE-number` and text. asked: codes of the countries of each split. Training asks each pair in every
    phrasing, validation and test in one, chosen by a hash; the order is a hash's. A pair is asked about where the
    second country's list has at least LEAST_SHARED of the first country's items, and lacks at most MOST_ANSWERS.
    """
    left_out: Counter[str] = Counter()
    files: Files = {split: [] for split in SPLITS}
    n_pairs, chances = 0, {split: list[float]() for split in SPLITS}
    for field in fields:
        listed = _listed(field, countries, passages, left_out)
        for split in SPLITS:
            here = [listed[code] for code in sorted(asked[split]) if code in listed]
            for first, second in permutations(here, 2):
                shared = len(set(map(_key, first.items)) & set(map(_key, second.items)))
                if shared < LEAST_SHARED or not 0 < len(first.items) - shared <= MOST_ANSWERS:
                    continue
                n_pairs += 1
                answers, problem = _difference(first, second)
                if problem:
                    left_out[problem] += 1
                    continue
                chances[split].append(len(answers) / len(first.items))
                files[split] += _ask(field, first, second, answers, every_phrasing=split == "train")
    for rows in files.values():
        rows.sort(key=lambda row: hashed(row["id"]))
    counts = {
        "version": VERSION,
        "questions": {split: len(rows) for split, rows in files.items()},
        "chance": {split: round(sum(some) / max(len(some), 1), 4) for split, some in chances.items()},
        "pairs": n_pairs,
        "left_out": dict(sorted(left_out.items())),
        "relations": {
            field.name: {split: sum(row["relation"] == field.name for row in files[split]) for split in SPLITS}
            for field in fields
        },
    }
    return files, counts


def read_list(text: str) -> tuple[str, ...]:
    """`Uganda 10%, USA 10% (2023)` -> Uganda, USA: what stands between commas, without shares and brackets."""
    plain = re.sub(r" ?\([^()]*\)", "", text).split("note:")[0]
    parts = (re.sub(r" [<~]?\d[\d.]*%.*", "", part.strip(" .")) for part in re.split(r"[,;]", plain))
    return tuple(dict.fromkeys(re.sub(r"^and ", "", part) for part in parts if part))


@cache
def list_fields() -> tuple[ListField, ...]:
    """Everything that pairs.yaml lists, in its order."""
    rows = yaml.safe_load((files(__package__) / "pairs.yaml").read_text(encoding="utf-8"))
    return tuple(ListField(row["name"], row["section"], row["field"], tuple(row["phrasings"])) for row in rows)


def _listed(
    field: ListField, countries: Sequence[Country], passages: Sequence[Row], left_out: Counter[str]
) -> dict[str, Listed]:
    """By country's code, where one passage holds the field whole and every item of it can be asked for."""
    texts: dict[str, list[Row]] = {}
    for row in passages:
        texts.setdefault(_code(row), []).append(row)
    found: dict[str, Listed] = {}
    for country in countries:
        place = (field.section, field.field, "")
        unit = next((unit for unit in country.units if unit.place == place), None)
        if unit is None or not country.is_country:
            continue
        items, whole = read_list(unit.text), f"{field.field}: {unit.text}"
        passage = next((row["id"] for row in texts.get(country.code, []) if whole in row["text"]), None)
        if passage is None:
            left_out["lists not whole in a passage"] += 1
        elif all(item.isascii() and len(item.split()) <= LONGEST_ITEM for item in items):
            found[country.code] = Listed(country, items, passage)
        else:
            left_out[f"lists with items over {LONGEST_ITEM} words or with accented letters"] += 1
    return found


def _difference(first: Listed, second: Listed) -> tuple[list[str], str]:
    """Items of the first list alone, and the reason why they cannot be asked for (empty when they can)."""
    others = {_key(item) for item in second.items}
    answers = [item for item in first.items if _key(item) not in others]
    words = [set(re.findall(r"\w+", _key(item))) for item in second.items]
    for answer in answers:
        own = set(re.findall(r"\w+", _key(answer)))
        if any(own <= other or other <= own for other in words):
            return [], "where an item is part of another country's item"
        if any(own & set(re.findall(r"\w+", _key(one.country.name_in_question))) for one in (first, second)):
            return [], "whose question names the answer"
    return answers, ""


def _ask(
    field: ListField, first: Listed, second: Listed, answers: list[str], every_phrasing: bool
) -> list[dict[str, Any]]:
    name = f"{first.country.code}-{second.country.code}-{field.name}"
    numbers: Sequence[int] = range(len(field.phrasings))
    if not every_phrasing:
        numbers = [int(hashed(name), 16) % len(field.phrasings)]
    names = (first.country.name_in_question, second.country.name_in_question)
    return [
        {
            "id": f"{name}-{number + 1}",
            "question": field.phrasings[number].replace("{first}", names[0]).replace("{second}", names[1]),
            "answers": answers,
            "positive_ids": [first.passage, second.passage],
            "relation": field.name,
            "phrasing": "trained",
        }
        for number in numbers
    ]


def _key(item: str) -> str:
    return item.casefold().removeprefix("the ")


def _code(row: Row) -> str:
    return str(row["id"]).partition("-")[0]
