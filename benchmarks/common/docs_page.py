"""The published results: docs/results.json, and the tables of docs/results.md between their marks."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from openbook.errors import OpenBookError
from openbook.utils.atomic import write_json, write_text


def publish(docs: Path, name: str, text: str, figures: Mapping[str, Any], gone: Collection[str] = ()) -> list[Path]:
    """Put the text between the marks of this name and the figures under their keys; returns both files.

    gone: keys to remove from results.json. Everything else is kept; unreadable files are refused before anything is
    written.
    """
    page, results = docs / "results.md", docs / "results.json"
    kept = {key: value for key, value in read_results(results).items() if key not in gone}
    content = between_marks(page, text, name)
    docs.mkdir(parents=True, exist_ok=True)
    write_json(results, {**kept, **figures})
    write_text(page, content)
    return [page, results]


def read_results(path: Path) -> dict[str, Any]:
    """The object in results.json; {} where there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise OpenBookError("not readable as JSON", where=path, expected="an object", action="Repair or delete it.")
    return content


def between_marks(page: Path, new: str, name: str) -> str:
    """The page with what stands between the marks of this name replaced; at its end where it has none yet."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = page.read_text(encoding="utf-8") if page.is_file() else "# Results\n"
    counts = old.count(begin), old.count(end)
    if counts == (0, 0):
        return f"{old.rstrip()}\n\n{begin}\n{new.rstrip()}\n{end}\n"
    if counts != (1, 1) or old.index(begin) > old.index(end):
        raise OpenBookError(
            "the marks are not a pair",
            where=page,
            got=f"{counts[0]} of '{begin}' and {counts[1]} of '{end}'",
            expected="one of each",
            action="Repair them, or delete all of them to append the tables at the end.",
        )
    before, rest = old.split(begin)
    return f"{before}{begin}\n{new.rstrip()}\n{end}{rest.split(end)[1]}"
