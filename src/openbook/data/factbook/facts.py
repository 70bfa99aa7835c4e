"""From the book's fields to questions: facts found in the passages, thinned, split by country, phrased."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from openbook.data.factbook.relations import LONGEST_ANSWER, Relation
from openbook.data.factbook.text import Country, FactbookPassage

SPLITS = ("train", "validation", "test")
PARAPHRASES = 8  # of a question


@dataclass(frozen=True)
class Fact:
    """One relation of one country: the answers, best first, and the passages whose field holds them, before others that
    state the same."""

    country: Country
    relation: Relation
    answers: tuple[str, ...]
    positive_ids: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.country.code}-{self.relation.name}"


def occurs(answer: str, text: str) -> bool:
    """Whether the answer stands in the text literally and is not a part of a longer word or number."""
    if answer not in text:  # most often so, and far cheaper than a pattern
        return False
    return re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(answer)}(?!\w|[.,]\d)", text) is not None


def read_facts(
    country: Country, relations: Sequence[Relation], passages: Mapping[str, FactbookPassage], dropped: Counter[str]
) -> list[Fact]:
    """All facts of a country that its passages can answer; what is dropped is counted by reason."""
    facts: list[Fact] = []
    for relation in relations if country.is_country else ():
        field = next(filter(relation.reads, country.units), None)
        if field is None:
            continue
        answers, problem = _answers(country, relation, field.text)
        if not problem:
            # Only the field's own piece counts: the same number or name elsewhere does not answer the question, unless
            # it stands in words that say so.
            held = {
                id_: {answer for answer in answers if occurs(answer, unit.text) and occurs(answer, passage.text)}
                for id_, passage in passages.items()
                for unit in passage.units
                if unit.place == field.place
            }
            positive = tuple(id_ for id_, found in held.items() if found)
            answers = tuple(answer for answer in answers if all(answer in held[id_] for id_ in positive))
            problem = "" if positive and answers else "not in the passages as cut"
        if problem:
            dropped[problem] += 1
        else:
            others = (id_ for id_ in passages if id_ not in positive)
            stating = (id_ for id_ in others if _states(relation, answers, passages[id_].text))
            facts.append(Fact(country, relation, answers, (*positive, *stating)))
    return facts


def _states(relation: Relation, answers: Iterable[str], text: str) -> bool:
    words = (relation.stated.format(answer=answer).casefold() for answer in answers)
    return bool(relation.stated) and all(occurs(each, text.casefold()) for each in words)


def _answers(country: Country, relation: Relation, text: str) -> tuple[tuple[str, ...], str]:
    """The answers to ask for, and the reason why there are none (empty when there are)."""
    answers = tuple(dict.fromkeys(relation.read(text)))
    asked_for: dict[str, Callable[[str], bool]] = {
        "no single clear answer": bool,
        f"longer than {LONGEST_ANSWER} words": lambda answer: len(answer.split()) <= LONGEST_ANSWER,
        "accented letters, which an uncased English vocabulary loses": str.isascii,
    }
    for problem, good in asked_for.items():
        answers = tuple(filter(good, answers))
        if not answers:
            return (), problem
    if _names_an_answer(" | ".join((*relation.trained, relation.held_out)), country, answers):
        return (), "the question names the answer"
    return answers, ""


def _names_an_answer(phrasing: str, country: Country, answers: Iterable[str]) -> bool:
    question = _worded(phrasing, country).casefold()
    return any(occurs(answer.casefold().removeprefix("the "), question) for answer in answers)


def thin(
    facts: Sequence[Fact], max_share: float, seed: int, dropped: Counter[str]
) -> tuple[list[Fact], dict[str, float]]:
    """Facts with no answer above `max_share` of its relation, and each relation's share of its commonest answer.

    Otherwise guessing the commonest answer would look like knowledge. Which facts go is decided by a hash.
    """
    kept: set[str] = set()
    majority: dict[str, float] = {}
    for relation in dict.fromkeys(fact.relation for fact in facts):
        here = sorted((fact for fact in facts if fact.relation is relation), key=_first_answer)
        groups = [_shuffled(group, f"{seed}-thin") for _, group in groupby(here, _first_answer)]
        limit = max(map(len, groups))
        while limit > 1 and limit > max_share * sum(min(len(group), limit) for group in groups):
            limit -= 1
        left = {fact.id for group in groups for fact in group[:limit]}
        dropped["too common an answer"] += len(here) - len(left)
        majority[relation.name] = round(limit / len(left), 4)
        kept |= left
    return [fact for fact in facts if fact.id in kept], majority


def split_countries(
    facts: Sequence[Fact], validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, str]:
    """The split of every country asked about, by code: each country is wholly in one split."""
    codes = sorted({fact.country.code for fact in facts}, key=lambda code: hashed(f"{seed}-split-{code}"))
    test = max(1, round(test_fraction * len(codes)))
    validation = max(1, round(validation_fraction * len(codes)))
    names = ["test"] * test + ["validation"] * validation + ["train"] * len(codes)
    return dict(zip(codes, names, strict=False))


def ask(
    facts: Sequence[Fact],
    split: str,
    split_of: Mapping[str, str],
    limit: int,
    seed: int,
    dropped: Counter[str],
    varied: bool = False,
) -> list[dict[str, Any]]:
    """The questions of one split as rows of its file, at most `limit` of them (0: all).

    Training asks every fact in all its trained phrasings, and where `varied` in as many of its varied ones, chosen by a
    hash, but in none that names the answer; each such question has others of them all as paraphrases. Validation and
    test ask each fact twice: in one trained phrasing, chosen by a hash, and in the held-out one.
    """
    here = [fact for fact in facts if split_of[fact.country.code] == split]
    if split != "train" and limit and 2 * len(here) > limit:
        chosen = {fact.id for fact in _shuffled(here, f"{seed}-limit")[: max(1, limit // 2)]}
        dropped[f"over the limit of {split} questions"] += len(here) - len(chosen)
        here = [fact for fact in here if fact.id in chosen]
    rows: list[dict[str, Any]] = []
    for fact in here:
        phrasings = [(f"trained{number}", text) for number, text in enumerate(fact.relation.trained, 1)]
        others: list[tuple[str, str]] = []
        if split != "train":
            pick = int(hashed(f"{seed}-phrasing-{fact.id}"), 16) % len(phrasings)
            phrasings = [phrasings[pick], ("held_out", fact.relation.held_out)]
        elif varied:
            more = [(f"varied{number}", text) for number, text in enumerate(fact.relation.varied, 1)]
            more = [one for one in more if not _names_an_answer(one[1], fact.country, fact.answers)]
            more = _by_hash(more, f"{seed}-{fact.id}")
            others = [*phrasings, *more]
            phrasings += more[: len(phrasings)]
        rows += [
            {
                "id": f"{fact.id}-{phrasing}",
                "question": _worded(text, fact.country),
                "answers": list(fact.answers),
                "positive_ids": list(fact.positive_ids),
                "relation": fact.relation.name,
                "phrasing": "held_out" if phrasing == "held_out" else "trained",
                **_paraphrases(f"{seed}-{fact.id}-{phrasing}", fact, [other for other in others if other[1] != text]),
            }
            for phrasing, text in phrasings
        ]
    return rows


def _paraphrases(salt: str, fact: Fact, others: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """PARAPHRASES other wordings of a fact's question, chosen by a hash."""
    wordings = [_worded(text, fact.country) for _, text in _by_hash(others, salt)[:PARAPHRASES]]
    return {"paraphrases": wordings} if wordings else {}


def _by_hash(phrasings: Iterable[tuple[str, str]], salt: str) -> list[tuple[str, str]]:
    """Names and texts of phrasings in an order that the salt and their names decide."""
    before = f"{salt}-".encode()  # the order of `hashed`, millions of times
    return sorted(phrasings, key=lambda one: hashlib.sha256(before + one[0].encode()).digest())


def _worded(phrasing: str, country: Country) -> str:
    return phrasing.replace("{country}", country.name_in_question)


def _first_answer(fact: Fact) -> str:
    return fact.answers[0].casefold()


def _shuffled(facts: Iterable[Fact], salt: str) -> list[Fact]:
    return sorted(facts, key=lambda fact: hashed(f"{salt}-{fact.id}"))


def hashed(text: str) -> str:
    """The sha256 of a text, in hexadecimal: what chances are decided by, the same on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()
