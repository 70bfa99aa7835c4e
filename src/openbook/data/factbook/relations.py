"""What is asked about each country: a field of the book, how its answer is read off, and how people ask for it.

Every reading is a pure function from the field's clean text to the answers, word for word as they stand in it; no
answer means that the field cannot be asked about (several capitals, an unnamed hill).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files

import yaml

from openbook.data.factbook.text import Unit

Reading = Callable[[str], tuple[str, ...]]

LONGEST_ANSWER = 7  # words
_TITLE = re.compile(
    r"^(?:(?:Acting|Interim|Transition|Transitional) )?(?:President|King|Queen|Prime Minister|Premier|Chief Minister"
    r"|Chancellor|Emir|Amir|Sultan|Grand Duke|Crown Prince|Prince|Governor|Governor General|Taoiseach|Pope|Ambassador) "
)


@dataclass(frozen=True)
class Relation:
    """One kind of fact. `sub_fields` are the names it goes by; a yearly series is named without its year. `stated`:
    words, with {answer}, in which other fields of the book state the same fact; empty: none does."""

    name: str
    section: str
    field: str
    sub_fields: tuple[str, ...]
    read: Reading
    trained: tuple[str, ...]  # with {country}
    varied: tuple[str, ...]  # for the training split only, with {country}
    held_out: str  # with {country}
    stated: str = ""

    def reads(self, unit: Unit) -> bool:
        """Whether this piece of the book is the one that holds the answer."""
        here = unit.field == self.field and unit.section == self.section
        return here and (unit.sub_field in self.sub_fields or re.sub(r" \d{4}$", "", unit.sub_field) in self.sub_fields)


def matched(pattern: str) -> Reading:
    """The pattern's first group where the text begins with it."""
    compiled = re.compile(pattern)

    def read(text: str) -> tuple[str, ...]:
        found = compiled.match(text)
        return (found.group(1).strip(),) if found else ()

    return read


def read_landform(text: str) -> tuple[str, ...]:
    """`Cerro Catedral 514 m` -> Cerro Catedral; places without a name give nothing."""
    found = re.match(r"([^;]+?),? -?[\d,.]+ m\b", text)
    name = re.sub(r" \(.*", "", found.group(1)) if found else ""
    unnamed = not name[:1].isupper() or re.search(r"(?i)\bunnamed|location|\bnear\b|\bcoast\b", name)
    return () if unnamed else (name,)


def read_largest_city(text: str) -> tuple[str, ...]:
    """The first city of the list when its population is the largest; the book writes capitals in capital letters."""
    cities = re.findall(r"(?:^|, )(\d[\d.,]*)( million)? ([^\d(]+?)(?= \(|, \d|$)", text)
    sizes = [float(size.replace(",", "")) * (1e6 if million else 1) for size, million, _ in cities]
    return (cities[0][2],) if sizes and sizes[0] == max(sizes) else ()


def read_divisions(text: str) -> tuple[str, ...]:
    """`19 departments (departamentos, ...); Artigas, ...` -> 19 departments, when there is one kind only."""
    kinds = re.sub(r" ?\([^()]*\)", "", text.split(";", maxsplit=1)[0])
    return (kinds,) if re.fullmatch(r"\d+ [a-z]+(?:[ -][a-z]+)*", kinds) and " and " not in kinds else ()


def read_person(text: str) -> tuple[str, ...]:
    """`President William RUTO (since 13 September 2022)` -> William RUTO; vacant offices give nothing."""
    person = re.split(r" \(|;|,", text)[0]
    name = _TITLE.sub("", person)
    plain = name != person and re.search(r"[A-Z]{2}", name) and not re.search(r"\b(and|of|the|Minister)\b", name)
    return (name,) if plain else ()


def read_symbols(text: str) -> tuple[str, ...]:
    """Each symbol of the list without its explanation; any of them answers."""
    bare = re.sub(r" ?\([^()]*\)", "", text).split("note")[0]
    names = (re.sub(r"^(and|an?|the) ", "", part.strip()) for part in re.split(r"[;,]", bare))
    return tuple(name for name in names if 0 < len(name.split()) <= 5 and not name.startswith(("no ", "none")))


def read_author(text: str, part: int) -> tuple[str, ...]:
    """One author of an anthem from `words/music`: part 0 wrote the words, part 1 the music."""
    authors = text.split("/")
    name = re.sub(r" \(.*", "", authors[part]).strip() if len(authors) == 2 else ""
    known = not re.search(r"(?i)unknown|tradition|none|no lyrics|arranged|disputed|\b(?:and|or)\b|[,;]", name)
    return (name,) if name and known else ()


def read_codes(text: str) -> tuple[str, ...]:
    """Registration prefixes; any of them answers."""
    codes = text.split(", ")
    return tuple(codes) if all(re.fullmatch(r"[A-Z0-9]{1,3}(-[A-Z]{1,2})?", code) for code in codes) else ()


READINGS: dict[str, Reading] = {
    "author_0": partial(read_author, part=0),
    "author_1": partial(read_author, part=1),
    "codes": read_codes,
    "divisions": read_divisions,
    "landform": read_landform,
    "largest_city": read_largest_city,
    "person": read_person,
    "symbols": read_symbols,
}


@cache
def relations() -> tuple[Relation, ...]:
    """Everything that is asked, from relations.yaml, in its order."""
    rows = yaml.safe_load((files(__package__) / "relations.yaml").read_text(encoding="utf-8"))
    return tuple(
        Relation(
            name=row["name"],
            section=row["section"],
            field=row["field"].split(" > ")[0],
            sub_fields=tuple(row["field"].partition(" > ")[2].split("|")),
            read=matched(row["pattern"]) if "pattern" in row else READINGS[row["read"]],
            trained=tuple(row["trained"]),
            varied=tuple(row["varied"]),
            held_out=row["held_out"],
            stated=row.get("stated", ""),
        )
        for row in rows
    )
