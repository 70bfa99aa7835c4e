"""Which format a path is in, by its content; the questions or passages in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from openbook.data.readers.checked_lines import BadLineError, read_lines
from openbook.data.readers.columns import PASSAGE, QUESTION, chosen, renamed
from openbook.data.readers.compressed import packing
from openbook.data.readers.fields import Asked
from openbook.data.readers.json_stream import Element
from openbook.data.readers.passages import families as passages
from openbook.data.readers.passages.documents import documents, has_mark
from openbook.data.readers.passages.families import PassageFamily
from openbook.data.readers.passages.file_names import files_of, kind_of_text, visible
from openbook.data.readers.passages.folders import is_of_documents
from openbook.data.readers.passages.splitter import Splitter
from openbook.data.readers.questions import dpr, kilt, msmarco, multihop, open_domain, plain, squad
from openbook.data.readers.questions.family import Family
from openbook.data.readers.questions.pair import pair
from openbook.data.readers.questions.ranking import (
    folder_file,
    is_beir,
    looks_like_judgements,
    of_split,
    ranked,
    ranking_of,
)
from openbook.data.readers.tables import CSV, HUB, LINES, TSV, Found, hub_records, kind_of, records
from openbook.errors import OpenBookError, UnknownFormatError

QUESTIONS: tuple[Family, ...] = tuple(
    chain.from_iterable(module.FAMILIES for module in (dpr, squad, multihop, kilt, msmarco, open_domain, plain))
)
PASSAGES: tuple[PassageFamily, ...] = passages.FAMILIES
RANKING, DOCUMENTS, PAIR = "queries with judgements", "text, Markdown and HTML", "a pair of .source and .target"

# Names of columns by which a table's first row is known to be its header.
HEADER = frozenset(
    "id _id title text contents question query answer answers golden_answers possible_answers passage docid qid pid "
    "qText targetValue utterance claim label query-id corpus-id score input output positive_ctxs context".split()
)
_LOOKED_AT = 50  # records among which the first good one says which format a file is in
_NAMED = "Set data.columns=question:NAME,answers:NAME (of passages text:NAME,title:NAME); `openbook keys data.columns`."


class Reading(NamedTuple):
    """format: its name in docs/data.md. found: questions (`Asked`) or passages with their places, or what is wrong
    there. files: whose content decides it. notes: what is counted while it is read."""

    format: str
    found: Iterator[Found]
    files: Sequence[Path]
    notes: Counter[str]


def exists(name: str) -> bool:
    """Whether a path (or a data set's name) can be asked for."""
    return name.startswith(HUB) or Path(name).is_file() or Path(name).is_dir()


def is_native(path: Path, ours: tuple[str, ...], columns: dict[str, str]) -> bool:
    """Whether a file of questions or passages (`QUESTION` or `PASSAGE`) is read where it lies."""
    if not path.is_file() or chosen(columns, ours) or (ours is QUESTION and packing(path)):
        return False
    if ours is PASSAGE and kind_of_text(path) and has_mark(path):
        return False
    first_line = next((line for _, _, line in read_lines(path)), b"")
    if not first_line:  # an empty file is one of every format, and refused
        return True
    kind = kind_of(path, HEADER)
    if ours is PASSAGE and kind == TSV:
        return first_line.rstrip() == b"id\ttext\ttitle"
    if kind != LINES:
        return False
    first = _peek(records(path, HEADER))[0]
    if ours is PASSAGE:
        return first is None or first.keys() >= {"id", "title", "text"}
    family = _family(QUESTIONS, first)
    return first is None or (family is not None and family.name == plain.OWN)


def questions_of(name: str, split: str, columns: dict[str, str]) -> Reading:
    """The questions that a name stands for; split: "train", "validation" or "test", of folders and data sets that have
    several. OpenBookError where no format fits."""
    path, notes = Path(name), Counter[str]()
    if not name.startswith(HUB):
        if path.suffix in (".source", ".target"):
            both = [path.with_suffix(".source"), path.with_suffix(".target")]
            return Reading(PAIR, pair(*both), both, notes)
        if ranking := ranking_of(path, split):
            return Reading(RANKING, ranked(ranking, notes), list(ranking), notes)
        if path.is_file() and kind_of_text(path) and has_mark(path):
            raise UnknownFormatError("a text is no file of questions", where=path, expected="JSON, or a table")
        if path.is_file() and kind_of(path, HEADER) == TSV and looks_like_judgements(path):
            expected = (
                "queries beside them: qrels/NAME.tsv under queries.jsonl, or qrels.NAME.tsv beside queries.NAME.tsv"
            )
            raise OpenBookError("judgements without queries", where=path, expected=expected)
    files, stream = _records(name, split, columns, notes)
    first, stream = _peek(stream)
    if own := chosen(columns, QUESTION):
        family = Family("data.columns", lambda _: True, lambda record, number: plain.own(renamed(record, own), number))
    else:
        found = None if _has_no_header(files, first) else _family(QUESTIONS, first)
        if found is None and first is not None:
            raise _unknown(name, "question", first, QUESTIONS)
        family = found or QUESTIONS[0]
    return Reading(family.name, _asked(stream, family, notes), files, notes)


def passages_of(name: str, columns: dict[str, str], splitter: Splitter, split: str = "train") -> Reading:
    """The passages that a name stands for, those that its questions carry among them."""
    path, notes = Path(name), Counter[str]()
    if path.is_dir() and is_beir(path):
        name, path = str(folder_file(path, "corpus")), folder_file(path, "corpus") or path
    if path.is_dir() and is_of_documents(path, HEADER):
        every = visible(path)
        if others := len(every) - len(files_of(path)):
            notes[f"files that are no {DOCUMENTS} are passed over"] += others
        return Reading(DOCUMENTS, documents(path, splitter), files_of(path), notes)
    if path.is_file() and kind_of_text(path) and _is_prose(path):
        return Reading(DOCUMENTS, documents(path, splitter), [path], notes)
    files, stream = _records(name, split, columns, notes, of_one=False)
    first, stream = _peek(stream)
    if own := chosen(columns, PASSAGE):
        family: PassageFamily | None = PassageFamily(
            "data.columns", lambda _: True, lambda record, number: passages.own(renamed(record, own), number)
        )
    else:
        known = () if _has_no_header(files, first) else PASSAGES
        family = next((one for one in known if one.reads(first)), None)
    if family is None and (asked := _family(QUESTIONS, first)) and not isinstance(first, list):
        carried = ((place, passage) for place, one in _asked(stream, asked, notes) for passage in _carried(one))
        return Reading(f"passages of {asked.name}", carried, files, notes)
    if family is None and first is not None:
        raise _unknown(name, "passage", first, PASSAGES)
    seen = list(islice(stream, _LOOKED_AT))
    family = passages.by_rows(family or PASSAGES[0], (record for _, record in seen))
    return Reading(family.name, _read(chain(seen, stream), family.passages), files, notes)


def _is_prose(path: Path) -> bool:
    return has_mark(path) or kind_of(path, HEADER) not in (LINES, TSV)


def _has_no_header(files: Sequence[Path], first: Any) -> bool:
    """Whether a record is a row between commas whose columns nothing names. Formats that go by the places of columns
    are all between tabs; of a table out of a spreadsheet they would take the header for data, and one column for
    another."""
    return isinstance(first, list) and any(kind_of(path, HEADER) == CSV for path in files)


def _carried(one: Any) -> Sequence[Any]:
    return one.passages if isinstance(one, Asked) else [one]


def _records(
    name: str, split: str, columns: dict[str, str], notes: Counter[str], of_one: bool = True
) -> tuple[list[Path], Iterator[Found]]:
    """The files and records of a name; of a folder, those of all its files, in the order of their names, or those of
    one split alone."""
    if name.startswith(HUB):
        return [], hub_records(name, split)
    path, names = Path(name), HEADER | set(columns.values())
    if not path.is_dir():
        return [path], _of_file(path, names)
    every, texts = visible(path), set(files_of(path))
    shards = [one for one in every if one not in texts and one.suffix != ".py"]
    if not shards:
        raise UnknownFormatError("the folder holds no file of records", where=path, expected="files of one format")
    if len(every) > len(shards):
        notes["files of text among those of records are passed over"] += len(every) - len(shards)
    if of_one:
        shards = of_split(shards, split, notes)
    return shards, chain.from_iterable(_of_file(one, names) for one in shards)


def _of_file(path: Path, names: frozenset[str]) -> Iterator[Found]:
    stream = records(path, names)
    first = next(stream, None)
    if first is not None and msmarco.is_columns(first[1]):
        return msmarco.columns(path)
    return chain([] if first is None else [first], stream)


def _peek(stream: Iterator[Found]) -> tuple[Any, Iterator[Found]]:
    """The first record that is one, and all of them."""
    seen = list(islice(stream, _LOOKED_AT))
    return next((one for _, one in seen if not isinstance(one, BadLineError)), None), chain(seen, stream)


def _family(families: Sequence[Family], first: Any) -> Family | None:
    if plain.is_own(first):  # other keys beside this project's own say nothing
        return plain.FAMILIES[0]
    return next((one for one in families if one.reads(first)), None)


def _asked(stream: Iterator[Found], family: Family, notes: Counter[str]) -> Iterator[Found]:
    for place, one in _read(stream, family.questions):
        if isinstance(one, Asked) and one.notes:
            notes.update(one.notes)
        yield place, one


def _read(stream: Iterator[Found], read: Callable[[Any, str], Iterable[Any]]) -> Iterator[Found]:
    """What a format makes of each record; one without an id goes by its number among them."""
    kind: type | None = None
    for number, (place, record) in enumerate(stream, 1):
        try:
            if isinstance(record, BadLineError):
                raise record
            kind = kind or type(record)
            if type(record) is not kind:
                raise BadLineError(
                    "a record is not written as the others", got=f"{record!r}"[:80], expected=kind.__name__
                )
            for one in read(record, str(number)):
                yield place, one
        except BadLineError as fault:
            yield place, fault
        except KeyError as missing:
            got = f"the keys {', '.join(map(repr, record))}"[:200]
            yield place, BadLineError(f"a record has no `{missing.args[0]}`", got=got, expected="as in the first one")


def _unknown(name: str, what: str, first: Any, families: Sequence[Family | PassageFamily]) -> UnknownFormatError:
    value = first.value if isinstance(first, Element) else first
    if isinstance(value, dict):
        got = f"records with {', '.join(map(repr, value))}"[:200]
    else:
        got = f"a row of {len(value)}: {value!r}"[:120] if isinstance(value, list) else f"{value!r}"[:80]
    known = ", ".join(one.name for one in families)
    return UnknownFormatError(
        f"this {what} format is not known", where=name, got=got, expected=f"one of {known}", action=_NAMED
    )
