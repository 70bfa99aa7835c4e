"""Queries with relevance judgements: BEIR and MTEB folders (corpus, queries, qrels), MS MARCO's and TREC's pairs of
files. A judgement above 0 makes a passage positive, with that grade; one of 0 makes it a negative."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openbook.batch import Example
from openbook.data.readers.checked_lines import BadLineError, read_lines
from openbook.data.readers.fields import Asked, string, text
from openbook.data.readers.tables import Found, Place, records
from openbook.errors import OpenBookError

SPLITS = {"train": ("train",), "validation": ("dev", "validation", "val", "dev.small"), "test": ("test",)}
_NAMES = [(kind, name) for kind, names in SPLITS.items() for name in names]
_HEADER = frozenset(("query-id", "corpus-id", "_id"))
_TYPES = (".jsonl", ".tsv", ".parquet", ".json")


class Ranking(NamedTuple):
    """A file of queries and the file of its judgements."""

    queries: Path
    qrels: Path


def folder_file(folder: Path, stem: str) -> Path | None:
    """The file of this name in a folder, however it is written and packed."""
    found = [path for path in sorted(folder.glob(f"{stem}.*")) if path.name[len(stem) :].startswith(_TYPES)]
    return found[0] if found else None


def is_beir(folder: Path) -> bool:
    return folder.is_dir() and folder_file(folder, "corpus") is not None and folder_file(folder, "queries") is not None


def ranking_of(path: Path, split: str) -> Ranking | None:
    """The two files that a path stands for: a BEIR folder (with the judgements of `split`), one of its files of
    judgements, or queries.NAME.tsv or qrels.NAME.tsv beside the other. None: it is no such path."""
    if is_beir(path):
        return Ranking(_existing(folder_file(path, "queries")), _of_split(path, split))
    queries = folder_file(path.parent.parent, "queries") if path.parent.name == "qrels" else None
    if queries is not None:
        return Ranking(queries, path)
    for one, other in (("queries", "qrels"), ("qrels", "queries")):
        beside = path.with_name(path.name.replace(one, other))
        if one in path.name and path.is_file() and beside.is_file():
            return Ranking(path, beside) if one == "queries" else Ranking(beside, path)
    return None


def of_split(files: Sequence[Path], split: str, notes: Counter[str]) -> list[Path]:
    """Of files whose names begin with the names of several splits those of this one, the others counted; else all."""

    def named(path: Path) -> str:
        begins = (re.match(rf"{re.escape(name)}(?![a-z])", path.name.lower()) and kind for kind, name in _NAMES)
        return next(filter(None, begins), "")

    if len({named(path) for path in files} - {""}) < 2:
        return list(files)
    mine = [path for path in files if named(path) == split]
    if not mine:
        raise OpenBookError(
            "the folder holds files of other splits only",
            where=files[0].parent,
            got=", ".join(path.name for path in files[:4]),
            expected=" or ".join(f"{name}*" for name in SPLITS[split]),
        )
    notes["files of other splits are passed over"] += len(files) - len(mine)
    return mine


def first_split(folder: Path) -> str:
    """The split that stands for a folder as a whole: test, or the first there is."""
    there = [split for split in ("test", *SPLITS) if any(folder_file(folder / "qrels", name) for name in SPLITS[split])]
    return there[0] if there else "train"


def _existing(path: Path | None) -> Path:
    assert path is not None
    return path


def _of_split(folder: Path, split: str) -> Path:
    for name in SPLITS.get(split, (split,)):
        if found := folder_file(folder / "qrels", name):
            return found
    there = sorted(path.name for path in (folder / "qrels").glob("*")) if (folder / "qrels").is_dir() else []
    raise OpenBookError(
        f"the folder has no judgements for {split}",
        where=folder,
        got=", ".join(there) or "no folder qrels",
        expected=" or ".join(f"qrels/{name}.tsv" for name in SPLITS.get(split, (split,))),
        action=f"Name one: data.{split}={folder / 'qrels' / there[0]}." if there else "",
    )


def judgements(path: Path) -> Iterator[tuple[Place, tuple[str, str, int] | BadLineError]]:
    """(query, passage, grade) of each line: BEIR's three columns with a header, TREC's four (the second is ignored), or
    two of ids alone, which are relevant."""
    for place, row in records(path, _HEADER):
        try:
            if isinstance(row, BadLineError):
                raise row
            if isinstance(row, dict):
                found = [row.get("query-id"), row.get("corpus-id"), row.get("score", 1)]
            else:
                cells = row[0].split() if len(row) == 1 else row
                found = [cells[0], *(cells[2:4] if len(cells) == 4 else cells[1:3])] + ([1] if len(cells) == 2 else [])
            if len(found) != 3 or None in found or (isinstance(row, dict) and "query-id" not in row):
                raise BadLineError("a judgement is incomplete", got=f"{row!r}"[:80], expected="query, passage, grade")
            yield (
                place,
                (
                    string(found[0], "query-id", numbers=True),
                    string(found[1], "corpus-id", numbers=True),
                    _grade(found[2]),
                ),
            )
        except BadLineError as fault:
            yield place, fault


def _grade(value: Any) -> int:
    try:
        if float(value) == int(float(value)):
            return int(float(value))
    except (ValueError, TypeError, OverflowError):
        pass
    raise BadLineError("a grade is no whole number", got=f"{value!r}"[:80], expected="0, 1, 2, ...")


def ranked(ranking: Ranking, notes: Counter[str]) -> Iterator[Found]:
    """Queries as `Asked`, in the order of their file, those without a judgement left out and counted in `notes`; faults
    of both files as they come."""
    judged: dict[str, dict[str, int]] = {}
    for place, one in judgements(ranking.qrels):
        if isinstance(one, BadLineError):
            yield place, one
        else:
            judged.setdefault(one[0], {})[one[1]] = one[2]
    for place, query in queries(ranking.queries):
        if isinstance(query, BadLineError):
            yield place, query
        elif query[0] not in judged:
            notes["queries without a judgement are left out"] += 1
        else:
            grades = judged.pop(query[0])
            right = {identity: grade for identity, grade in grades.items() if grade > 0}
            wrong = tuple(identity for identity, grade in grades.items() if grade <= 0)
            graded = tuple(right.values()) if any(grade > 1 for grade in right.values()) else ()
            yield place, Asked(Example(*query, (), tuple(right), negative_ids=wrong, grades=graded))
    notes["judged queries that the queries do not have are left out"] += len(judged)


def queries(path: Path) -> Iterator[tuple[Place, tuple[str, str] | BadLineError]]:
    """(id, query) of each line: `_id` and `text` in JSON, or two columns."""
    for place, row in records(path, _HEADER):
        try:
            if isinstance(row, BadLineError):
                raise row
            if isinstance(row, dict):
                key = "text" if "text" in row else "query"
                yield place, (text(row, "_id" if "_id" in row else "id"), text(row, key))
            elif len(row) == 2:
                yield place, (row[0], string(row[1], "query", empty=False))
            else:
                raise BadLineError("a query is no pair", got=f"{len(row)} columns", expected="id and query")
        except BadLineError as fault:
            yield place, fault


def looks_like_judgements(path: Path) -> bool:
    """Whether a file is one of judgements: three or four columns of which the last is a small number."""
    first = next((line for _, _, line in read_lines(path)), b"").decode(errors="replace").split()
    return first[:2] == ["query-id", "corpus-id"] or (
        len(first) == 4 and first[1] in ("0", "Q0") and first[3].isdigit()
    )
