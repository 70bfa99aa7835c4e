"""JSON Lines as this project writes them: one object per line, and nothing but a line feed ends a line."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from openbook.utils.atomic import write_text


def write_json_lines(path: Path, objects: Iterable[Any]) -> None:
    """Replace the file by these objects, one per line, in UTF-8."""
    write_text(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects))


def read_json_lines(path: Path, make: Callable[[Any], Any] = lambda one: one) -> tuple[list[Any], list[int]]:
    """What `make` makes of the objects of such a file, and the numbers of the lines that are none: cut, damaged, not
    UTF-8, or such that it cannot.

    str.splitlines would also cut at U+2028, U+2029 and U+0085, which stand in texts."""
    objects, bad = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            try:
                objects.append(make(json.loads(line.decode("utf-8"))))
            except (ValueError, KeyError, TypeError, AttributeError):
                bad.append(number)
    return objects, bad


def why_unreadable(error: Exception) -> str:
    """In words, why a file is not the text or the JSON that it should be."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 from byte {error.start:,} on"
    if isinstance(error, json.JSONDecodeError):
        end = error.pos >= len(error.doc.rstrip())
        return ("it is cut" if error.doc.strip() else "it is empty") if end else f"no JSON from line {error.lineno} on"
    return str(error) or type(error).__name__
