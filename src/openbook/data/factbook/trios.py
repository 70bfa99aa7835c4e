"""Questions that only passages read together answer: the value of a fact that one of three countries has alone.

    Two of Belize, Chile and Kenya have the same main import partner. Which one does the other country have?

Each of three passages gives one value, and none says that it is the one which the others do not share. A mixture of
readings of one passage (RAG-Sequence, RAG-Token) gives every passage the same question and cannot tell them apart. Nor
does it help to know which values are common: for every two values, as many questions have the one for their answer as
the other, so whoever always prefers one of them is right half of the time. HotpotQA (Yang et al. 2018) asks for
comparisons of passages on Wikipedia.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import yaml

from openbook.data.factbook.build import FactbookFiles, Files, built_once, known_facts
from openbook.data.factbook.facts import SPLITS, Fact, hashed, occurs
from openbook.utils.json_lines import read_json_lines

VERSION = 1  # raise it whenever the same book gives other bytes

MOST = {"train": 40, "validation": 4, "test": 6}  # questions for each two values, by which one is asked for

Trio = tuple[Fact, Fact, Fact]  # two that share a value, and the one that has another


@dataclass(frozen=True)
class TrioWords:
    """relations: how a question calls the fact, by the relation's name."""

    phrasings: tuple[str, ...]
    relations: Mapping[str, str]


@dataclass(frozen=True)
class TrioFiles:
    """The jsonl files of the questions and what is in them (counts.json)."""

    folder: Path
    train: Path
    validation: Path
    test: Path
    counts: dict[str, Any]


def build_trios(book: FactbookFiles, progress: Callable[[str], None] | None = None) -> TrioFiles:
    """The questions about three countries of one split of a built book, beside it, from the cache if they are there.

    Raises DiskError where the folder cannot be written.
    """
    say = progress or (lambda _: None)
    folder = book.folder.with_name(f"factbook-trios-{hashed(f'{VERSION} {book.folder.name}')[:12]}")

    def make() -> tuple[Files, dict[str, Any]]:
        split_of = {
            str(row["id"]).partition("-")[0]: split
            for split in SPLITS
            for row in read_json_lines(getattr(book, split))[0]
        }
        texts = {str(row["id"]): str(row["text"]) for row in read_json_lines(book.passages)[0]}
        return trios(known_facts(book), texts, split_of, trio_words())

    counts = built_once(folder, make, "questions about three countries", say)
    say(describe(counts))
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    return TrioFiles(folder, **paths, counts=counts)


def describe(counts: Mapping[str, Any]) -> str:
    """One line for people: questions per split, and pairs of values left out."""
    questions = ", ".join(f"{counts['questions'][split]} {split}" for split in SPLITS)
    return (
        f"trios of countries: {questions} questions; of {counts['pairs']} pairs of values left out: "
        f"{counts['left_out']} that stand in a passage of the other value too, or in a country's name"
    )


def trios(
    facts: Sequence[Fact], texts: Mapping[str, str], split_of: Mapping[str, str], words: TrioWords
) -> tuple[Files, dict[str, Any]]:
    """(rows of each file by its name without ending, counts).

    texts: of passages by id. split_of: by country's code. For two values that at least two countries of a split have
    each, as many questions ask for the one as for the other, at most MOST[split]; a hash draws them, the order of the
    countries and the phrasing. No passage of a value holds the other one.
    """
    rows: Files = {split: [] for split in SPLITS}
    pairs, left_out = 0, 0
    for relation in words.relations:
        for split in SPLITS:
            by_value: dict[str, list[Fact]] = defaultdict(list)
            for fact in facts:
                if fact.relation.name == relation and split_of.get(fact.country.code) == split:
                    by_value[fact.answers[0].casefold()].append(fact)
            shared = [_Value(some, texts) for _, some in sorted(by_value.items()) if len(some) > 1]
            for one, other in combinations(shared, 2):
                pairs += 1
                both = [list(islice(_apart(*pair), MOST[split])) for pair in ((one, other), (other, one))]
                number = min(map(len, both))
                left_out += not number
                rows[split] += [_ask(trio, words) for some in both for trio in some[:number]]
    for split in SPLITS:
        rows[split].sort(key=lambda row: hashed(row["id"]))
    counts = {
        "version": VERSION,
        "questions": {split: len(rows[split]) for split in SPLITS},
        "pairs": pairs,
        "left_out": left_out,
        "relations": {
            relation: {split: sum(row["relation"] == relation for row in rows[split]) for split in SPLITS}
            for relation in words.relations
        },
    }
    return rows, counts


@cache
def trio_words() -> TrioWords:
    """Everything that trios.yaml lists, in its order."""
    read = yaml.safe_load((files(__package__) / "trios.yaml").read_text(encoding="utf-8"))
    return TrioWords(tuple(read["phrasings"]), read["relations"])


class _Value:
    """The facts of one value, and what their passages say."""

    def __init__(self, facts: Sequence[Fact], texts: Mapping[str, str]):
        self.facts = facts
        self.answers = {answer.casefold() for fact in facts for answer in fact.answers}
        self.said = {
            fact.id: " | ".join([fact.country.title, *(texts[id_] for id_ in fact.positive_ids)]).casefold()
            for fact in facts
        }

    def without(self, other: "_Value") -> list[Fact]:
        """Those of its facts whose passages and names do not hold the other value, nor the names its own."""
        return [
            fact
            for fact in self.facts
            if not any(occurs(answer, self.said[fact.id]) for answer in other.answers)
            and not any(occurs(answer, fact.country.title.casefold()) for answer in self.answers)
        ]


def _apart(shared: _Value, alone: _Value) -> Iterator[Trio]:
    """Trios of two facts of the shared value and one of the other, in an order drawn by a hash."""
    two, one = shared.without(alone), alone.without(shared)
    drawn = [(first, second, third) for first, second in combinations(two, 2) for third in one]
    yield from sorted(drawn, key=lambda trio: hashed("-".join(fact.id for fact in trio)))


def _ask(trio: Trio, words: TrioWords) -> dict[str, Any]:
    answer = trio[-1]
    name = f"{'-'.join(fact.country.code for fact in trio)}-{answer.relation.name}"
    facts = sorted(trio, key=lambda fact: hashed(f"{name}-{fact.id}"))
    question = words.phrasings[int(hashed(name), 16) % len(words.phrasings)]
    for place, fact in zip(("{first}", "{second}", "{third}"), facts, strict=True):
        question = question.replace(place, fact.country.name_in_question)
    return {
        "id": name,
        "question": question.replace("{fact}", words.relations[answer.relation.name]),
        "answers": list(answer.answers),
        "positive_ids": list(dict.fromkeys(id_ for fact in facts for id_ in fact.positive_ids)),
        "relation": answer.relation.name,
    }
