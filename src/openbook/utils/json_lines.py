"""JSON Lines as this project writes them: one object per line, and nothing but a line feed ends a line."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openbook.utils.atomic import write_text


def write_json_lines(path: Path, objects: Iterable[Any]) -> None:
    """Replace the file by these objects, one per line, in UTF-8."""
    write_text(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects))


def lines_of(path: Path) -> list[str]:
    """The lines of such a file. str.splitlines would also cut at U+2028, U+2029 and U+0085, which stand in texts."""
    return [line for line in path.read_bytes().decode("utf-8").split("\n") if line.strip()]
