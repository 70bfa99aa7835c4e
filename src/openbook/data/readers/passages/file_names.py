"""Folders of text, Markdown and HTML: which files are read, and what their names say of them."""

from __future__ import annotations

import os
from pathlib import Path

from openbook.errors import OpenBookError

TEXT, MARKDOWN, HTML = (".txt", ".text"), (".md", ".markdown"), (".html", ".htm", ".xhtml")
_PACKED = (".gz", ".bz2", ".xz", ".zst")


def files_of(folder: Path) -> list[Path]:
    """The files that are read, in the order of their names; hidden ones are not."""
    return [path for path in visible(folder) if kind_of_text(path)]


def visible(folder: Path) -> list[Path]:
    """All files of a folder but hidden ones. OpenBookError where the name of one cannot be written."""
    found = (path for path in folder.rglob("*") if path.is_file())
    paths = sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    for path in paths:
        check_name(path)
    return paths


def check_name(path: Path) -> None:
    """Old archives bring names in other encodings; ids and errors hold the name, and are written as UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        got, action = f"{os.fsencode(path)!r}"[1:], "Rename it."
        raise OpenBookError("the name of a file is not UTF-8", got=got, expected="UTF-8", action=action) from None


def kind_of_text(path: Path) -> tuple[str, ...]:
    """The suffixes of what a file is by its name, packed or not (`TEXT`, `MARKDOWN` or `HTML`); () for no text."""
    suffix = _without_packing(path).suffix.lower()
    return next((kind for kind in (TEXT, MARKDOWN, HTML) if suffix in kind), ())


def title_of(path: Path) -> str:
    """What a text is called that has no title of its own."""
    return _without_packing(path).stem.replace("_", " ").replace("-", " ")


def _without_packing(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in _PACKED else path
