"""DPR's passage file, `psgs_w100.tsv`: a header, then id, text and title between tabs, with or without csv quoting."""

from collections.abc import Iterator
from pathlib import Path

from openbook.data.readers.checked_lines import MAX_LINE_BYTES, BadLineError, decoded, read_lines
from openbook.errors import OpenBookError

HEADER = ["id", "text", "title"]
_COLUMNS = "3, separated by tabs: id, text, title"


def tsv_rows(path: Path) -> Iterator[tuple[int, dict[str, str] | BadLineError]]:
    """(line number, {column: value} or what is wrong with the line) of every row behind DPR's header."""
    rows = plain_rows(path, len(HEADER))
    first = next(rows, None)
    if first is None:
        return
    header = first[1]
    if header != HEADER:
        if isinstance(header, BadLineError):
            raise header.at(f"{path}:1")
        raise OpenBookError(
            "the header is not DPR's",
            where=f"{path}:1",
            got=repr("\t".join(header))[:120],
            expected=repr("\t".join(HEADER)),
            action="Put that line first, or convert the file to .jsonl.",
        )
    for number, row in rows:
        yield number, row if isinstance(row, BadLineError) else dict(zip(HEADER, row, strict=True))


def plain_rows(path: Path, width: int) -> Iterator[tuple[int, list[str] | BadLineError]]:
    """(line number, the row's fields or what is wrong with it) of every row, the first one whatever its width; the
    others have `width` fields.

    Whether a quotation mark quotes is decided for the whole file, by how its other fields are written: Python's csv
    module quotes every field that holds one and doubles it inside; where fields hold marks that are not so, marks are
    text. Other signs stand for themselves, carriage returns inside a line included.
    """
    quoted = _is_quoted(path, width)
    first = True
    for number, row in _quoted_rows(path) if quoted else _unquoted_rows(path):
        if isinstance(row, list) and len(row) != width and not first:
            action = "A tab or quotation mark inside a field must be quoted as csv does." if quoted else ""
            expected = _COLUMNS if width == len(HEADER) else f"{width}, separated by tabs"
            what = "a line has the wrong number of columns"
            yield number, BadLineError(what, got=f"{len(row)}", expected=expected, action=action)
        else:
            yield number, row
        first = False


def _is_quoted(path: Path, width: int) -> bool:
    """False where a field holds a quotation mark as text and no line can only be read as quoted."""
    as_text = as_csv = False
    for _, _, raw in read_lines(path):
        if b'"' in raw:
            fields = raw.decode("latin-1").split("\t")
            marked = [field for field in fields if '"' in field]
            quoted = [field for field in marked if field.startswith('"') and _is_closed(field)]
            as_csv = as_csv or len(fields) != width or any('""' in field[1:-1] for field in quoted)
            as_text = as_text or len(quoted) < len(marked)
    return as_csv or not as_text


def _unquoted_rows(path: Path) -> Iterator[tuple[int, list[str] | BadLineError]]:
    for number, _, raw in read_lines(path):
        try:
            yield number, decoded(raw).split("\t")
        except BadLineError as fault:
            yield number, fault


def _quoted_rows(path: Path) -> Iterator[tuple[int, list[str] | BadLineError]]:
    """A quoted field may hold tabs and line breaks; the number is that of the line it begins on."""
    row: list[str] = []
    open_field, opened_on, length = "", 0, 0
    for number, _, raw in read_lines(path):
        try:
            pieces = decoded(raw).split("\t")
            length += len(raw)
            if open_field and length > MAX_LINE_BYTES:
                raise BadLineError("a quotation mark is never closed", got=f"on line {opened_on}", expected="its end")
            for place, piece in enumerate(pieces):
                field = f"{open_field}{chr(10) if place == 0 else chr(9)}{piece}" if open_field else piece
                open_field = field if field.startswith('"') and not _is_closed(field) else ""
                opened_on = opened_on or number
                if not open_field:
                    row.append(_unquoted(field))
        except BadLineError as fault:
            row, open_field = [], ""
            yield number, fault
        if not open_field:
            if row:
                yield opened_on or number, row
            row, opened_on, length = [], 0, 0
    if open_field:
        unclosed = BadLineError(
            "a quotation mark is never closed",
            got=open_field[:40],
            expected="its end",
            action="Quote fields as csv does (marks inside doubled), or quote none.",
        )
        yield opened_on, unclosed


def _is_closed(field: str) -> bool:
    """Whether a field that begins with a quotation mark ends with the one that closes it."""
    inner = field[1:-1]
    return len(field) > 1 and field.endswith('"') and '"' not in inner.replace('""', "")


def _unquoted(field: str) -> str:
    if field.startswith('"'):
        return field[1:-1].replace('""', '"')
    if '"' in field:
        raise BadLineError(
            "a quotation mark stands in a field that is not quoted",
            got=repr(field[:60]),
            expected="fields quoted as csv does throughout, as other fields of the file are, or nowhere",
        )
    return field
