"""Files and folders that are written whole or not at all: under a temporary name beside the target, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the target's folder; it is synced and renamed on success, removed on failure."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield new
        with open(new, "rb") as file:
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside the target, which it replaces on success; removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield new
        new.chmod(0o755)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as new:
        new.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Indented, with characters beyond ASCII as they are."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
