"""The embedded data set: passages and questions from the World Factbook, split by country, built once and cached.

What is written are plain jsonl files, so everything else reads them exactly like a user's own.
"""

import difflib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openbook.data.factbook.facts import SPLITS, Fact, ask, hashed, read_facts, split_countries, thin
from openbook.data.factbook.relations import relations
from openbook.data.factbook.text import Country, Cut, book_digest, book_files, cut_passages, find_book, read_country
from openbook.errors import OpenBookError, raise_all
from openbook.utils.atomic import replacing_folder
from openbook.utils.files.signed import sign, sound

Files = dict[str, list[dict[str, Any]]]  # the rows of each file by its name without ending

VERSION = 5  # raise it whenever the same options give other bytes

MAIN_SECTIONS = (
    "Geography",
    "People and Society",
    "Government",
    "Economy",
    "Communications",
    "Transportation",
    "Military and Security",
)
ALL_SECTIONS = ("Introduction", "Environment", "Energy", "Space", "Terrorism", "Transnational Issues", *MAIN_SECTIONS)

# Tables of percentages that no relation asks about.
TABLES = (
    "Age structure",
    "Alcohol consumption per capita",
    "Broadband - fixed subscriptions",
    "Child marriage",
    "Current account balance",
    "Debt - external",
    "Dependency ratios",
    "Drinking water source",
    "Education expenditure",
    "GDP - composition, by end use",
    "Health expenditure",
    "Household income or consumption by percentage share",
    "Remittances",
    "Reserves of foreign exchange and gold",
    "Sanitation facility access",
    "School life expectancy (primary to tertiary education)",
    "Sex ratio",
    "Telephones - fixed lines",
    "Telephones - mobile cellular",
    "Tobacco use",
    "Youth unemployment rate (ages 15-24)",
)


@dataclass(frozen=True)
class FactbookOptions:
    """Everything that decides the bytes written, apart from the book itself."""

    passage_words: int = 50  # words in one passage at most
    field_words: int = 24  # words kept of one field; 0 keeps the whole text
    field_parts: int = 3  # sub-fields kept of one field, without notes and older years; 0 keeps all of them
    sections: tuple[str, ...] = MAIN_SECTIONS  # of the book
    left_out: tuple[str, ...] = TABLES  # fields of the book
    seed: int = 0  # decides which countries are validation and test
    validation_fraction: float = 0.08  # of the countries asked about
    test_fraction: float = 0.17  # of the countries asked about
    validation_questions: int = 400  # at most; 0 keeps all
    test_questions: int = 1200  # at most; 0 keeps all
    max_answer_share: float = 0.12  # of one relation's facts that one answer may hold
    varied: bool = False  # training questions in twice as many phrasings, each with paraphrases


WHOLE_BOOK = FactbookOptions(passage_words=100, field_words=0, field_parts=0, sections=ALL_SECTIONS, left_out=())


@dataclass(frozen=True)
class FactbookFiles:
    """The jsonl files of one build and what is in them (counts.json)."""

    folder: Path
    passages: Path
    train: Path
    validation: Path
    test: Path
    counts: dict[str, Any]


def build_factbook(
    options: FactbookOptions, cache: Path, progress: Callable[[str], None] | None = None
) -> FactbookFiles:
    """The data set for these options, from `cache` if it is there; raises OpenBookError before anything is written."""
    check_options(options)
    say = progress or (lambda _: None)
    sources = book_files(find_book())
    key = json.dumps([VERSION, book_digest(sources), asdict(options)], sort_keys=True)
    folder = Path(cache) / f"factbook-{hashed(key)[:12]}"
    counts = built_once(
        folder, lambda: _compose(options, [read_country(path) for path in sources]), "the World Factbook", say
    )
    say(describe(counts))
    paths = {name: folder / f"{name}.jsonl" for name in ("passages", *SPLITS)}
    return FactbookFiles(folder, **paths, counts=counts)


def describe(counts: Mapping[str, Any]) -> str:
    """One line for people: passages, questions per split, facts left out and why."""
    questions = ", ".join(f"{counts['questions'][split]} {split}" for split in SPLITS)
    dropped = ", ".join(f"{number} {reason}" for reason, number in counts["dropped"].items())
    return (
        f"World Factbook: {counts['passages']} passages of {counts['countries']['all']} entries, questions: "
        f"{questions}; of {counts['facts_read']} facts left out: {dropped}"
    )


def check_options(options: FactbookOptions) -> None:
    """Raises OpenBookError naming every option out of range at once."""
    held = options.validation_fraction + options.test_fraction
    checks = [
        ("passage_words", options.passage_words >= 20, "20 or more"),
        *(
            (key, getattr(options, key) >= 0, "0 (no limit) or more")
            for key in ("field_words", "field_parts", "validation_questions", "test_questions")
        ),
        *(
            (key, 0 < getattr(options, key) < 1 and held < 1, "fractions above 0 that leave countries to train on")
            for key in ("validation_fraction", "test_fraction")
        ),
        ("max_answer_share", 0 < options.max_answer_share <= 1, "above 0 and at most 1"),
        ("sections", bool(options.sections), "at least one section of the book"),
    ]
    got = asdict(options) | {"sections": "none"}
    problems = [
        OpenBookError("Bad factbook option", where=key, got=got[key], expected=expected)
        for key, good, expected in checks
        if not good
    ]
    raise_all(
        problems + [_unknown("sections", name, ALL_SECTIONS) for name in options.sections if name not in ALL_SECTIONS]
    )


def _unknown(key: str, name: str, known: Sequence[str]) -> OpenBookError:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    action = f"Did you mean `{near[0]}`?" if near else ""
    shown = ", ".join(known) if len(known) < 20 else f"one of the book's {len(known)} names"
    return OpenBookError("Bad factbook option", where=key, got=f"`{name}`", expected=shown, action=action)


def _compose(options: FactbookOptions, countries: Sequence[Country]) -> tuple[Files, dict[str, Any]]:
    """The rows of every file, by file name without its ending, and what is in them."""
    fields = sorted({unit.field for country in countries for unit in country.units})
    raise_all([_unknown("left_out", name, fields) for name in options.left_out if name not in fields])
    dropped: Counter[str] = Counter()
    passages, facts = facts_of(countries, options, dropped)
    facts_read = len(facts) + dropped.total()
    facts, majority = thin(facts, options.max_answer_share, options.seed, dropped)
    split_of = split_countries(facts, options.validation_fraction, options.test_fraction, options.seed)
    limits = {"train": 0, "validation": options.validation_questions, "test": options.test_questions}
    rows = {
        split: ask(facts, split, split_of, limits[split], options.seed, dropped, options.varied) for split in SPLITS
    }
    in_split = Counter(split_of.values())
    asked = {split: Counter(row["relation"] for row in rows[split]) for split in SPLITS}
    counts = {
        "version": VERSION,
        "options": asdict(options),
        "passages": len(passages),
        "words": sum(len(row["text"].split()) for row in passages),
        "countries": {"all": len(countries), **{split: in_split[split] for split in SPLITS}},
        "questions": {split: len(rows[split]) for split in SPLITS},
        "held_out_questions": {split: sum(row["phrasing"] == "held_out" for row in rows[split]) for split in SPLITS},
        "facts_read": facts_read,
        "facts_asked": facts_read - dropped.total(),
        "dropped": dict(sorted(dropped.items())),
        "relations": {
            relation.name: {
                **{split: asked[split][relation.name] for split in SPLITS},
                "majority_rate": majority.get(relation.name, 0.0),
            }
            for relation in relations()
        },
    }
    return {"passages": passages, **rows}, counts


def facts_of(
    countries: Sequence[Country], options: FactbookOptions, dropped: Counter[str]
) -> tuple[list[dict[str, Any]], list[Fact]]:
    """The passages as rows of their file, and all facts that they can answer; what is dropped is counted by reason."""
    cut = Cut(options.sections, options.left_out, options.passage_words, options.field_words, options.field_parts)
    passages: list[dict[str, Any]] = []
    facts: list[Fact] = []
    for country in countries:
        cuts = {f"{country.code}-{number:03d}": made for number, made in enumerate(cut_passages(country, cut))}
        passages += [{"id": id_, "title": country.title, "text": made.text} for id_, made in cuts.items()]
        facts += read_facts(country, relations(), cuts, dropped)
    return passages, facts


def known_facts(book: FactbookFiles) -> list[Fact]:
    """All facts that the passages of a built book can answer, whether it asks about them or not."""
    stated = book.counts["options"].items()
    options: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in stated}
    countries = [read_country(path) for path in book_files(find_book())]
    return facts_of(countries, FactbookOptions(**options), Counter())[1]


def built_once(
    folder: Path,
    make: Callable[[], tuple[Files, dict[str, Any]]],
    what: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The counts of a folder of .jsonl files, which are made and written only where they are not there yet.

    They are written under a temporary name and then renamed, signed with their sha256: the folder is whole or not
    there, and a damaged one, which is called `what`, is made again. Raises DiskError where it cannot be written.
    """
    if not sound(folder, what):
        say(f"building {what} in {folder}")
        files, counts = make()
        texts = {
            f"{name}.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            for name, rows in files.items()
        }
        texts["counts.json"] = json.dumps(counts, ensure_ascii=False, indent=1) + "\n"
        with replacing_folder(folder, complete=sound) as staged:
            for name, text in texts.items():
                (staged / name).write_text(text, encoding="utf-8", newline="\n")
            sign(staged)
    return json.loads((folder / "counts.json").read_text(encoding="utf-8"))
