"""The embedded data set's pure parts: cleaning, reading answers word for word, cutting passages."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from openbook.data.factbook.facts import occurs, read_facts
from openbook.data.factbook.relations import (
    read_divisions,
    read_landform,
    read_largest_city,
    read_person,
    read_symbols,
    relations,
)
from openbook.data.factbook.text import Country, Cut, Unit, clean, cut_passages

READ = {relation.name: relation.read for relation in relations()}


def cut(**settings: Any) -> Cut:
    kept: dict[str, Any] = {
        "sections": ("S",),
        "left_out": (),
        "passage_words": 20,
        "field_words": 0,
        "field_parts": 0,
    } | settings
    return Cut(**kept)


def country(*units: Unit) -> Country:
    return Country("uy", "Uruguay", units, True)


# Cleaning


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("Yamand&uacute; ORSI Mart&iacute;nez", "Yamandú ORSI Martínez"),
        ("<strong>note:</strong>&nbsp;a&amp;b", "note: a&b"),
        ("White 5% (2011)<br><br>Black 4%", "White 5% (2011); Black 4%"),
        ("<br>a@b.uy<br><br>https://b.uy/", "a@b.uy; https://b.uy/"),
        ("<p>one.</p><p>two</p> (2022 est.)", "one. two (2022 est.)"),
        ("58 provinces (<em>wilayas</em>, singular)", "58 provinces (wilayas, singular)"),
        ("a \u200b  b\n c", "a b c"),
        ("less than 5 < 6", "less than 5 < 6"),
    ],
)
def test_html_becomes_plain_text(raw: str, text: str) -> None:
    assert clean(raw) == text


# Reading answers


@pytest.mark.parametrize(
    ("read", "text", "answers"),
    [
        (read_landform, "Cerro Catedral 514 m", ("Cerro Catedral",)),
        (read_landform, "K2 (Mt. Godwin-Austen) 8,611 m", ("K2",)),
        (read_landform, "Dead Sea -431 m", ("Dead Sea",)),
        (read_landform, "unnamed location on Cato Island 9 m", ()),
        (
            READ["longest_river"],
            "Rio Zambeze (Zambezi) (shared with Zambia [s]) - 2,740 km; Congo - 1 km",
            ("Rio Zambeze",),
        ),
        (READ["longest_river"], "Niger river source (shared with Mali) - 4,200 km", ("Niger",)),
        (READ["official_language"], "Hungarian (official) 98.8%, English 25.3%", ("Hungarian",)),
        (READ["official_language"], "Albanian 98.8% (official - derived from Tosk dialect), Greek", ("Albanian",)),
        (READ["official_language"], "French (official), Creole (official)", ()),
        (read_largest_city, "1.432 million Zurich, 441,000 BERN (capital) (2023)", ("Zurich",)),
        (read_largest_city, "900,000 Small, 1.2 million BIG (capital) (2023)", ()),
        (READ["capital"], "Montevideo", ("Montevideo",)),
        (READ["capital"], "Porto-Novo (constitutional capital); Cotonou (seat of government)", ()),
        (READ["highest_court"], "Supreme Court or Hoyesterett (consists of 19 judges)", ("Supreme Court",)),
        (read_divisions, "19 departments (departamentos, singular - departamento); Artigas", ("19 departments",)),
        (read_divisions, "28 counties and 3 cities*; Carlow", ()),
        (read_person, "President William RUTO (since 13 September 2022)", ("William RUTO",)),
        (read_person, "Ambassador (vacant); Chargé d'Affaires James ROSCOE (since 11 September 2025)", ()),
        (READ["national_holiday"], "Independence Day, 25 August (1825)", ("25 August",)),
        (READ["national_holiday"], "Independence Day, 5 July (1962); Revolution Day, 1 November (1954)", ()),
        (read_symbols, "a mounted knight (the Chaser), white stork", ("mounted knight", "white stork")),
        (read_symbols, "no official symbol", ()),
        (READ["anthem_lyrics"], "TIAN Han/NIE Er", ("TIAN Han",)),
        (READ["anthem_music"], "TIAN Han/NIE Er", ("NIE Er",)),
        (READ["anthem_music"], "Sekula DRLJEVIC/unknown, arranged by Zarko MIKOVIC", ()),
    ],
)
def test_answers_are_read_word_for_word(read: Any, text: str, answers: tuple[str, ...]) -> None:
    assert read(text) == answers


@pytest.mark.parametrize(
    ("answer", "text", "found"),
    [
        (".uy", "Internet country code: .uy. Internet users", True),
        ("660 km", "Coastline: 1,660 km", False),
        ("514", "514.5 m", False),
        ("Niger", "Nigeria", False),
        ("1,200", "1,200,300", False),
        ("660 km", "Coastline: 660 km. Climate", True),
        ("Lima", "lima", False),
    ],
)
def test_an_answer_occurs_only_whole(answer: str, text: str, found: bool) -> None:
    assert occurs(answer, text) is found


# Passages


def test_a_passage_names_each_field_once_and_joins_its_parts() -> None:
    units = (
        Unit("S", "Capital", "name", "Montevideo"),
        Unit("S", "Capital", "time", "UTC-3"),
        Unit("S", "Flag", "", "blue"),
    )
    [passage] = cut_passages(country(*units), cut())
    assert passage.text == "Capital: name: Montevideo; time: UTC-3. Flag: blue"


def test_fields_are_cut_to_their_first_parts_and_words() -> None:
    units = (
        Unit("S", "GDP", "GDP 2024", "one two three four"),
        Unit("S", "GDP", "GDP 2023", "older"),
        Unit("S", "GDP", "per head", "five six"),
        Unit("S", "GDP", "note", "said by editors"),
        Unit("S", "Left", "", "out"),
    )
    [passage] = cut_passages(country(*units), cut(field_words=5, field_parts=2, left_out=("Left",)))
    assert passage.text == "GDP: 2024: one two three four; per head: five"
    whole = cut_passages(country(*units), cut())
    assert "older" in " ".join(made.text for made in whole) and "editors" in " ".join(made.text for made in whole)


def test_a_long_field_keeps_every_word_in_order() -> None:
    words = " ".join(f"w{number}{';' if number % 7 == 0 else ''}" for number in range(101))
    made = cut_passages(country(Unit("S", "History", "", words)), cut(passage_words=20))
    assert [unit.text for passage in made for unit in passage.units] and len(made) > 5
    assert " ".join(unit.text for passage in made for unit in passage.units) == words
    assert all(len(passage.text.split()) <= 20 for passage in made)


def test_an_answer_cut_off_by_the_passage_is_dropped_and_counted() -> None:
    capital = Unit("Government", "Capital", "name", "one two San Jose")
    relation = next(relation for relation in relations() if relation.name == "capital")
    asked = replace(relation, read=lambda text: ("San Jose",))
    settings = cut(sections=("Government",), field_words=3)
    dropped: Counter[str] = Counter()
    made = {"uy-000": cut_passages(country(capital), settings)[0]}
    assert read_facts(country(capital), [asked], made, dropped) == []
    assert dropped == {"not in the passages as cut": 1}
    kept = {"uy-000": cut_passages(country(capital), replace(settings, field_words=4))[0]}
    assert [fact.positive_ids for fact in read_facts(country(capital), [asked], kept, dropped)] == [("uy-000",)]


def test_a_passage_that_states_the_fact_in_another_field_is_positive_too() -> None:
    units = (
        Unit(
            "People and Society",
            "Major urban areas",
            "population",
            "1.2 million Port San Jose, 3 million SAN JOSE (capital)",
        ),
        Unit("People and Society", "Population", "distribution", "most people live around San Jose"),
        Unit("People and Society", "Ports", "", "Port San Jose (capital works)"),
        Unit("Government", "Capital", "name", "San Jose"),
    )
    asked = [relation for relation in relations() if relation.name == "capital"]
    settings = cut(sections=("Government", "People and Society"))
    made = {f"uy-00{place}": cut_passages(country(unit), settings)[0] for place, unit in enumerate(units)}
    [fact] = read_facts(country(*units), asked, made, Counter())
    assert fact.positive_ids == ("uy-003", "uy-000")
    [unnamed] = read_facts(country(*units), [replace(one, stated="") for one in asked], made, Counter())
    assert unnamed.positive_ids == ("uy-003",)
