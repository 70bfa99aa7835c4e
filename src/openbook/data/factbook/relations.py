"""What is asked about each country: a field of the book, how its answer is read off, and how people ask for it.

Every reading is a pure function from the field's clean text to the answers, word for word as they stand in it; no
answer means that the field cannot be asked about (several capitals, an unnamed hill).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

Reading = Callable[[str], tuple[str, ...]]

LONGEST_ANSWER = 7  # words
_TITLE = re.compile(
    r"^(?:(?:Acting|Interim|Transition|Transitional) )?(?:President|King|Queen|Prime Minister|Premier|Chief Minister"
    r"|Chancellor|Emir|Amir|Sultan|Grand Duke|Crown Prince|Prince|Governor|Governor General|Taoiseach|Pope|Ambassador) "
)


@dataclass(frozen=True)
class Relation:
    """One kind of fact. `sub_fields` are the names it goes by; a yearly series is named without its year."""

    name: str
    section: str
    field: str
    sub_fields: tuple[str, ...]
    read: Reading
    trained: tuple[str, ...]  # with {country}
    held_out: str  # with {country}

    def reads(self, sub_field: str) -> bool:
        """Whether this piece of the relation's field is the one that holds the answer."""
        return sub_field in self.sub_fields or re.sub(r" \d{4}$", "", sub_field) in self.sub_fields


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


def read_river(text: str) -> tuple[str, ...]:
    """The first, which is the longest, of the rivers listed."""
    name = re.split(r" \(| river (?:mouth|source)| [-\u2013] ", text)[0]
    return (name,) if name[:1].isupper() and "/" not in name and ":" not in name else ()


def read_official_language(text: str) -> tuple[str, ...]:
    """The language marked official, when exactly one is."""
    names = re.findall(r"([A-Z][\w'-]*(?: [A-Z][\w'-]*)*)(?: [\d.<]+%)? \(official", text)
    return tuple(names) if len(names) == text.count("official") == 1 else ()


def read_largest_city(text: str) -> tuple[str, ...]:
    """The first city of the list when its population is the largest; the book writes capitals in capital letters."""
    cities = re.findall(r"(?:^|, )(\d[\d.,]*)( million)? ([^\d(]+?)(?= \(|, \d|$)", text)
    if not cities:
        return ()
    sizes = [float(size.replace(",", "")) * (1e6 if million else 1) for size, million, _ in cities]
    return (cities[0][2],) if sizes[0] == max(sizes) else ()


def read_head(text: str) -> tuple[str, ...]:
    """The name before any explanation: `Supreme Court or Hoyesterett (consists of ...)` -> Supreme Court."""
    name = re.split(r" \(| or | - | \u2013 | \d|[;:,/]", text)[0].strip()
    return () if re.match(r"(?:the|no|none|na|small|wide|in|administered|regionally)\b", name) else (name,)


def read_capital(text: str) -> tuple[str, ...]:
    """The one capital; countries that share the role among several cities are not asked."""
    return () if re.search(r"[;,]|capital|none|seat of", text) else (re.sub(r" \(.*", "", text),)


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


def read_former_ruler(text: str) -> tuple[str, ...]:
    """`25 August 1825 (from Brazil)` -> Brazil."""
    found = re.match(r"\d{1,2} [A-Z][a-z]+ \d{4} \(from (?:the )?([^(),;]+)\)", text)
    ruler = found.group(1) if found else ""
    return (ruler,) if re.fullmatch(r"[A-Z][A-Za-z.]*(?: [A-Z][a-z]+){0,2}", ruler) else ()


def read_holiday(text: str) -> tuple[str, ...]:
    """The day and month of the only holiday named."""
    days = re.findall(r"\b(\d{1,2} [A-Z][a-z]+)\b", text)
    return tuple(days) if len(days) == 1 else ()


def read_symbols(text: str) -> tuple[str, ...]:
    """Each symbol of the list without its explanation; any of them answers."""
    bare = re.sub(r" ?\([^()]*\)", "", text).split("note")[0]
    names = (re.sub(r"^(and|an?|the) ", "", part.strip()) for part in re.split(r"[;,]", bare))
    return tuple(name for name in names if 0 < len(name.split()) <= 5 and not name.startswith(("no ", "none")))


def read_colors(text: str) -> tuple[str, ...]:
    """All colours as listed."""
    colors = re.split(r";| \(", text)[0]
    return (colors,) if re.fullmatch(r"[a-z]+(?:, [a-z]+){1,5}", colors) else ()


def read_author(part: int) -> Reading:
    """One author of an anthem from `words/music`: part 0 wrote the words, part 1 the music."""

    def read(text: str) -> tuple[str, ...]:
        authors = text.split("/")
        name = re.sub(r" \(.*", "", authors[part]).strip() if len(authors) == 2 else ""
        known = not re.search(r"(?i)unknown|tradition|none|no lyrics|arranged|disputed|\b(?:and|or)\b|[,;]", name)
        return (name,) if name and known else ()

    return read


def read_codes(text: str) -> tuple[str, ...]:
    """Registration prefixes; any of them answers."""
    codes = text.split(", ")
    return tuple(codes) if all(re.fullmatch(r"[A-Z0-9]{1,3}(-[A-Z]{1,2})?", code) for code in codes) else ()


def read_forces(text: str) -> tuple[str, ...]:
    """`Norwegian Armed Forces (Forsvaret ...): ...` -> Norwegian Armed Forces."""
    found = re.match(r"([A-Z][^(:;,/]+?)(?: \(|: )", text)
    return (found.group(1),) if found and "Ministry" not in found.group(1) else ()


READINGS: dict[str, Reading] = {
    "author_0": read_author(0),
    "author_1": read_author(1),
    "capital": read_capital,
    "codes": read_codes,
    "colors": read_colors,
    "divisions": read_divisions,
    "forces": read_forces,
    "former_ruler": read_former_ruler,
    "head": read_head,
    "holiday": read_holiday,
    "landform": read_landform,
    "largest_city": read_largest_city,
    "official_language": read_official_language,
    "person": read_person,
    "river": read_river,
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
            held_out=row["held_out"],
        )
        for row in rows
    )
