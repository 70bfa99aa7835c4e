"""Records of a file as they stand in it, before it is known what they mean: one place for every kind of file.

A record is a dict (JSON, a table with a header, Parquet, a Hugging Face data set), a list of fields (a table without a
header) or an `Element` of a JSON document. Which kind a file is, is read off its first bytes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from openbook.data.readers.checked_lines import MAX_LINE_BYTES, BadLineError, decoded, read_lines
from openbook.data.readers.compressed import packing, unpacked
from openbook.data.readers.dpr_tsv import plain_rows
from openbook.data.readers.fields import json_object
from openbook.data.readers.json_stream import Element, elements
from openbook.errors import OpenBookError

HUB = "hf:"  # hf:NAME[@CONFIG][:SPLIT], a data set of the Hugging Face hub
LINES, DOCUMENT, TSV, CSV, PARQUET, TEXT = "JSON lines", "JSON", "tsv", "csv", "Parquet", "text"
_LONGEST_NAME = 40  # characters of a column's name


class Place(NamedTuple):
    """Where a record begins: a file (or a data set's name) and the number of its line (or record), from 1."""

    source: str
    number: int

    def __str__(self) -> str:
        return f"{self.source}:{self.number}"


Found = tuple[Place, Any]  # the record, or the BadLineError of its line


def kind_of(path: Path, header: frozenset[str] = frozenset()) -> str:
    """How a file is written. header: see `records`."""
    if not packing(path):
        with open(path, "rb") as handle:
            if handle.read(4) == b"PAR1":
                return PARQUET
    lines = (line for _, _, line in read_lines(path))
    first, second = next(lines, b"").lstrip(), next(lines, b"").lstrip()
    if first.startswith(b"["):
        return DOCUMENT
    if first.startswith(b"{"):
        return LINES if second.startswith(b"{") or _is_record(first, alone=not second) else DOCUMENT
    if b"\t" in first:
        return TSV
    named = _names([cell.strip(' "\r') for cell in first.decode(errors="replace").split(",")], header)
    return CSV if b"," in first and (named or ".csv" in path.name.lower()) else TEXT


def _names(row: list[str], header: frozenset[str]) -> list[str]:
    """The names of a table's columns, known ones as `header` writes them whatever their case here (spreadsheets write
    Question, and ID); [] where the row names none. Other capitals count only in a row of short cells: a text or a title
    may be such a word too."""
    if header.isdisjoint(row) and any(len(cell) > _LONGEST_NAME for cell in row):
        return []
    known = {name.casefold(): name for name in sorted(header)}
    found = [cell if cell in header else known.get(cell.casefold(), cell) for cell in row]
    if header.isdisjoint(found):
        return []
    return found if len(set(found)) == len(set(row)) else row


def _is_record(line: bytes, alone: bool) -> bool:
    """Whether a line that begins an object is one of a file's records, and not the begin of a document. alone: it is
    the file's only one, which may also be a whole document (SQuAD's `data`, MS MARCO's columns)."""
    if len(line) > MAX_LINE_BYTES:
        return not alone
    try:
        fields = json_object(decoded(line))
    except BadLineError:
        return alone
    columns = isinstance(fields.get("query"), dict) and isinstance(fields.get("answers"), dict)
    return not (alone and (columns or any(isinstance(fields.get(key), list) for key in ("data", "Data"))))


def records(path: Path, header: frozenset[str] = frozenset()) -> Iterator[Found]:
    """The records of a file. header: names of columns; a table whose first row holds one of them, in whatever case,
    has a header."""
    kind, name = kind_of(path, header), str(path)
    if kind == PARQUET:
        yield from _parquet(path)
    elif kind == DOCUMENT:
        for one in elements(path):
            if not isinstance(one, Element):
                yield Place(name, one[0]), one[1]
            else:  # an element of a list at the top is a record; others are known by where they stand
                yield Place(name, one.line), one if one.column or one.name else one.value
    elif kind in (TSV, CSV):
        yield from _table(path, kind, header)
    else:
        for number, _, raw in read_lines(path):
            try:
                line = decoded(raw)
                yield Place(name, number), json_object(line) if kind == LINES else [line]
            except BadLineError as fault:
                yield Place(name, number), fault


def _table(path: Path, kind: str, names: frozenset[str]) -> Iterator[Found]:
    rows = _tsv(path) if kind == TSV else _csv(path)
    first = next(rows, None)
    if first is None:
        return
    head = _names([cell.strip() for cell in first[1]], names) if isinstance(first[1], list) else []
    for number, row in rows if head else chain([first], rows):
        named = bool(head) and isinstance(row, list)
        yield Place(str(path), number), dict(zip(head, row, strict=True)) if named else row  # type: ignore[arg-type]


def _tsv(path: Path) -> Iterator[tuple[int, list[str] | BadLineError]]:
    first = next((line for _, _, line in read_lines(path)), b"")
    return plain_rows(path, first.count(b"\t") + 1)


def _csv(path: Path) -> Iterator[tuple[int, list[str] | BadLineError]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    with unpacked(path) as handle:
        number, width = 0, 0

        def lines() -> Iterator[str]:
            nonlocal number
            while raw := handle.readline(MAX_LINE_BYTES + 2):
                number += 1
                yield decoded(raw)

        rows = csv.reader(lines(), strict=True)
        while True:
            begun = number + 1
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield begun, BadLineError("a row is no csv", got=str(error), expected="fields quoted as csv does")
                return
            except BadLineError as fault:
                yield begun, fault
                return
            if row is None:
                return
            width = width or len(row)
            if row and len(row) != width:
                expected = f"{width}, separated by commas"
                yield (
                    begun,
                    BadLineError("a line has the wrong number of columns", got=f"{len(row)}", expected=expected),
                )
            elif row:
                yield begun, row


def _parquet(path: Path) -> Iterator[Found]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise OpenBookError(
            "Parquet files need pyarrow", where=path, action="pip install 'openbook[formats]'."
        ) from None
    try:
        file, number = pyarrow.parquet.ParquetFile(path), 0
        for batch in file.iter_batches(batch_size=256):
            for record in batch.to_pylist():
                number += 1
                yield Place(str(path), number), record
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise OpenBookError(
            "the Parquet file is damaged", where=path, got=str(error), action="Fetch it again."
        ) from None


def hub_records(name: str, split: str) -> Iterator[Found]:
    """The records of a data set of the Hugging Face hub, fetched as they are read."""
    try:
        import datasets
    except ImportError:
        raise OpenBookError(
            "data sets of the Hugging Face hub need the package datasets",
            where=name,
            action="pip install 'openbook[hub]'.",
        ) from None
    where, _, named = name.removeprefix(HUB).partition(":")
    repository, _, config = where.partition("@")
    try:
        rows = datasets.load_dataset(repository, config or None, split=named or split, streaming=True)
        for number, record in enumerate(rows, 1):
            yield Place(name, number), record
    except Exception as error:  # what datasets, its network and its files raise is of many kinds
        if isinstance(error, OpenBookError | BadLineError):
            raise
        expected = "hf:NAME, hf:NAME@CONFIG or hf:NAME@CONFIG:SPLIT"
        raise OpenBookError(
            "the data set cannot be read", where=name, got=f"{type(error).__name__}: {error}"[:300], expected=expected
        ) from None
