"""`data.columns`: which columns (or keys) of a file are what, for files that no format here knows."""

from collections.abc import Mapping
from typing import Any

from openbook.data.readers.checked_lines import BadLineError
from openbook.errors import OpenBookError

QUESTION = ("question", "answers", "positive_ids", "negative_ids", "relation", "phrasing")
PASSAGE = ("text", "title")


def parse_columns(written: str) -> dict[str, str]:
    """{our name: the file's} of `question:query,answers:golds`. OpenBookError on anything else."""
    columns: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in written.split(","))):
        ours, colon, theirs = (piece.strip() for piece in part.partition(":"))
        if not (colon and theirs and ours in ("id", *QUESTION, *PASSAGE)) or ours in columns:
            raise OpenBookError(
                "not a list of columns",
                where="data.columns",
                got=repr(part),
                expected=f"OURS:THEIRS, each of ours once, among id, {', '.join((*QUESTION, *PASSAGE))}",
                action="For example data.columns=question:query,answers:golds.",
            )
        columns[ours] = theirs
    if columns and not ({"question", "text"} & columns.keys()):
        raise OpenBookError(
            "the columns name neither questions nor passages",
            where="data.columns",
            got=repr(written),
            expected="question:... for files of questions, text:... for the corpus",
        )
    return columns


def chosen(columns: Mapping[str, str], ours: tuple[str, ...]) -> dict[str, str]:
    """The columns of one kind of record; {} where its main one (the first) is not named."""
    return {key: theirs for key, theirs in columns.items() if key in (*ours, "id")} if ours[0] in columns else {}


def renamed(record: Any, columns: Mapping[str, str]) -> dict[str, Any]:
    """A record under our names."""
    if not isinstance(record, dict):
        raise BadLineError("a record has no named columns", got=f"{record!r}"[:80], expected="a header, or JSON")
    for theirs in columns.values():
        if theirs not in record:
            got = f"the columns {', '.join(map(repr, sorted(map(str, record))))}"[:200]
            raise BadLineError(f"a record has no `{theirs}`", got=got, expected="what data.columns names")
    return {ours: record[theirs] for ours, theirs in columns.items()}
