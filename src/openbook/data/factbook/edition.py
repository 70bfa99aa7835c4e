"""Another edition of the embedded book: facts of the test split's countries exchanged between them, word for word.

What Lewis et al. 2020 (section 4.5, index hot-swapping) have in two dumps of Wikipedia, whose world leaders differ:
two corpora that agree in nearly everything, and questions that each of them answers otherwise. Whoever knows a fact by
heart answers the same from both; whoever reads answers what the corpus says.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from openbook.data.factbook.build import FactbookFiles, Files, built_once
from openbook.data.factbook.facts import hashed
from openbook.metrics.matching import has_answer, normalize_answer
from openbook.utils.json_lines import read_json_lines

VERSION = 1  # raise it whenever the same book and seed give other bytes

# Names and measures that mean the same in any country. Left out are bare numbers, percentages and short codes, which
# stand in a text for many things, and what is made from the country's own name (its long form, its people's).
EXCHANGED = """
    capital largest_city highest_point lowest_point longest_river mean_elevation area coastline population
    median_age life_expectancy official_language chief_of_state head_of_government ambassador legislature
    highest_court independence_date national_colors anthem_title currency currency_code export_partner
    import_partner export_commodity crop gdp_per_capita armed_forces
""".split()

Row = Mapping[str, Any]


@dataclass(frozen=True)
class EditionFiles:
    """The jsonl files of one edition and what was changed (counts.json): all passages, with the same ids, titles and
    order as the book's; the questions about changed facts with the book's answers; the same with this edition's."""

    folder: Path
    passages: Path
    original_facts: Path
    changed_facts: Path
    counts: dict[str, Any]


@dataclass(frozen=True)
class Exchange:
    """One answer of one country and what stands in its place; several facts may have the same answer."""

    country: str  # code
    old: str
    facts: tuple[str, ...]  # relations
    new: str = ""


def build_edition(book: FactbookFiles, seed: int = 0, progress: Callable[[str], None] | None = None) -> EditionFiles:
    """The other edition of a built book, beside it, from the cache if it is there.

    A pure function of the book's files and the seed. Raises DiskError where the folder cannot be written.
    """
    say = progress or (lambda _: None)
    key = f"{VERSION} {book.folder.name} {seed}"
    folder = book.folder.with_name(f"factbook-edition-{hashed(key)[:12]}")
    counts = built_once(
        folder,
        lambda: edition(_read(book.passages), _read(book.test), seed),
        "the other edition of the World Factbook",
        say,
    )
    say(describe(counts))
    return EditionFiles(
        folder,
        passages=folder / "passages_changed.jsonl",
        original_facts=folder / "changed.jsonl",
        changed_facts=folder / "changed_other.jsonl",
        counts=counts,
    )


def describe(counts: Mapping[str, Any]) -> str:
    """One line for people: what was changed, what was left out and why."""
    left_out = ", ".join(f"{number} {reason}" for reason, number in counts["left_out"].items()) or "none"
    return (
        f"another edition: {counts['facts_changed']} facts of {counts['countries']} countries exchanged in "
        f"{counts['passages_changed']} of {counts['passages']} passages, {counts['questions']} questions; "
        f"of {counts['facts']} facts left out: {left_out}"
    )


def edition(
    passages: Sequence[Row], questions: Sequence[Row], seed: int, relations: Sequence[str] = EXCHANGED
) -> tuple[Files, dict[str, Any]]:
    """(rows of each file by its name without ending, counts).

    passages: id `CODE-number`, title, text. questions: id `CODE-relation-phrasing`, answers, positive_ids, relation.
    A changed fact is said in its country's passages with the new answer alone: the new one stood nowhere in them
    before, in any letter case, the old one stands nowhere in them afterwards.
    """
    facts: dict[tuple[str, str], Row] = {}  # (country, relation) -> one of its questions
    for question in questions:
        if question["relation"] in relations:
            facts.setdefault((_code(question), question["relation"]), question)
    of_country = {code: list(rows) for code, rows in groupby(sorted(passages, key=_code), key=_code)}
    text_of = {code: "\n".join(f"{row['title']} {row['text']}" for row in rows) for code, rows in of_country.items()}
    left_out: Counter[tuple[str, str]] = Counter()  # (relation, reason)
    plan = _chosen(_grouped(facts, left_out), facts, text_of, seed, left_out)
    applied = [
        _applied([one for one in plan if one.country == code], rows, facts, left_out)
        for code, rows in of_country.items()
    ]
    kept = [one for exchanges, _ in applied for one in exchanges]
    new_text = {id_: text for _, texts in applied for id_, text in texts.items()}
    new_answer = {(one.country, relation): one.new for one in kept for relation in one.facts}
    original = [dict(row) for row in questions if (_code(row), row["relation"]) in new_answer]
    files = {
        "passages_changed": [{**row, "text": new_text[row["id"]]} for row in passages],
        "changed": original,
        "changed_other": [{**row, "answers": [new_answer[_code(row), row["relation"]]]} for row in original],
    }
    by_reason: Counter[str] = Counter()
    for (_, reason), number in sorted(left_out.items()):
        by_reason[reason] += number
    counts = {
        "version": VERSION,
        "seed": seed,
        "passages": len(passages),
        "passages_changed": sum(new_text[row["id"]] != row["text"] for row in passages),
        "countries": len({one.country for one in kept}),
        "facts": len(facts),
        "facts_changed": len(new_answer),
        "questions": len(original),
        "left_out": dict(by_reason),
        "relations": {
            name: {
                "changed": sum(relation == name for _, relation in new_answer),
                "left_out": {reason: n for (relation, reason), n in sorted(left_out.items()) if relation == name},
            }
            for name in relations
        },
    }
    return files, counts


def _grouped(facts: Mapping[tuple[str, str], Row], left_out: Counter[tuple[str, str]]) -> list[Exchange]:
    """Facts of one country with the same answer change together; an answer within another one's cannot change."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}  # (country, answer) -> (relation, answer as written)
    for (country, relation), question in facts.items():
        if len(question["answers"]) > 1:
            left_out[relation, "with several answers"] += 1
        else:
            answer = question["answers"][0]
            groups.setdefault((country, answer.casefold()), []).append((relation, answer))
    exchanges = [
        Exchange(code, min((answer for _, answer in found), key=str.isupper), tuple(name for name, _ in found))
        for (code, _), found in groups.items()
    ]  # the book writes capitals in capital letters, in some of its fields
    whole = []
    for one in exchanges:
        others = (other.old for other in exchanges if other.country == one.country and other is not one)
        if any(has_answer(other, [one.old]) for other in others):
            left_out.update((name, "part of another answer") for name in one.facts)
        else:
            whole.append(one)
    return whole


def _chosen(
    exchanges: Sequence[Exchange],
    facts: Mapping[tuple[str, str], Row],
    text_of: Mapping[str, str],
    seed: int,
    left_out: Counter[tuple[str, str]],
) -> list[Exchange]:
    """With new answers: those of other countries to the same question, each given as often as it was there."""
    plan: list[Exchange] = []
    olds = {code: [one.old for one in exchanges if one.country == code] for code in text_of}
    for relation in dict.fromkeys(one.facts[-1] for one in exchanges):
        asked_here = [one for one in exchanges if one.facts[-1] == relation]
        here = sorted(asked_here, key=lambda one: hashed(f"{seed}-edition-{one.facts[-1]}-{one.country}"))
        pool = [one.old for one in here]
        for place, one in enumerate(here):
            taken = [other.new for other in plan if other.country == one.country]
            asked = " ".join(facts[one.country, name]["question"] for name in one.facts)
            # The next country's first: where all fit, the answers go round once.
            for new in [*pool[place + 1 :], *pool[: place + 1]]:
                ambiguous = (
                    normalize_answer(new) == normalize_answer(one.old)
                    or has_answer(f"{text_of[one.country]}\n{asked}", [new])
                    or has_answer(new, [*olds[one.country], *taken])
                    or any(has_answer(other, [new]) for other in taken)
                )
                used = sum(other.new == new for other in plan if other.facts[-1] == relation)
                if not ambiguous and used < pool.count(new):
                    plan.append(Exchange(one.country, one.old, one.facts, new))
                    break
            else:
                left_out.update((name, "for which no answer fits that is new to the country") for name in one.facts)
    return plan


def _applied(
    exchanges: list[Exchange],
    rows: Sequence[Row],
    facts: Mapping[tuple[str, str], Row],
    left_out: Counter[tuple[str, str]],
) -> tuple[list[Exchange], dict[str, str]]:
    """One country's exchanges that are clean once all are made, and its texts by passage id."""
    while True:
        texts = {row["id"]: _exchanged(row["text"], exchanges) for row in rows}
        whole = "\n".join(f"{row['title']} {texts[row['id']]}" for row in rows)
        bad: dict[Exchange, str] = {}
        for one in exchanges:
            places = [id_ for relation in one.facts for id_ in facts[one.country, relation]["positive_ids"]]
            if has_answer(whole, [one.old]):
                bad[one] = "whose old answer would remain"
            elif not all(has_answer(texts[id_], [one.new]) for id_ in places):
                bad[one] = "that are not in their passages as one piece"
        if not bad:
            return exchanges, texts
        left_out.update((relation, reason) for one, reason in bad.items() for relation in one.facts)
        exchanges = [one for one in exchanges if one not in bad]


def _exchanged(text: str, exchanges: Sequence[Exchange]) -> str:
    """All at once, so that no new answer is exchanged again; the longest first, for it may hold a shorter one."""
    if not exchanges:
        return text
    ordered = sorted(exchanges, key=lambda one: -len(one.old))
    either = "|".join(f"({re.escape(one.old)})" for one in ordered)

    def swap(found: re.Match[str]) -> str:
        one = ordered[(found.lastindex or 1) - 1]
        shouted = found.group().isupper() and not one.old.isupper()
        return one.new.upper() if shouted else one.new

    return re.sub(rf"(?i)(?<!\w)(?<!\d[.,])(?:{either})(?!\w|[.,]\d)", swap, text)


def _code(row: Row) -> str:
    return str(row["id"]).partition("-")[0]


def _read(path: Path) -> list[dict[str, Any]]:
    return read_json_lines(path)[0]
