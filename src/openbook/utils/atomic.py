"""Files and folders that appear whole or not at all: written under a temporary name beside the target, then renamed.

What the disk refuses is raised as a DiskError (disk.py) that names the target.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from openbook.errors import OpenBookError
from openbook.utils.disk import writing


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`, with its suffix; what the block writes there replaces `path`,
    flushed to disk first. If the block fails, the temporary file is removed and `path` stays as it was. A link that is
    planted at either name is not followed."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        with writing(path):
            _create(temporary)
            yield temporary
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # the block's own error is the one to raise
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path, complete: Callable[[Path], bool] = Path.exists) -> Iterator[Path]:
    """Yields a new temporary folder that becomes `path` when the block succeeds and is removed when it fails.

    complete: whether a folder already at `path` may stay. An incomplete one is replaced; a complete one, by another
    process that was first, is kept and this one discarded.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    before = temporary.with_suffix(".before")
    try:
        with writing(path):
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists() and not complete(path):
                os.replace(path, before)  # deleted only once the new one stands: killed in between, neither is lost
            try:
                os.replace(temporary, path)
            except OSError:
                if not (path.exists() and complete(path)):
                    if before.exists() and not path.exists():
                        os.replace(before, path)
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(before, ignore_errors=True)


def new_folder(path: str | Path, what: str) -> Path:
    """The absolute path of a folder to write to, in which nothing is yet. OpenBookError on one with something in it and
    on the one that this process is in, which cannot be replaced. what: it is for, "export to"."""
    path = Path(path).absolute()
    here = path.resolve() in (Path.cwd(), *Path.cwd().parents)
    if here or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise OpenBookError(
            f"the folder to {what} " + ("is the one that this runs in" if here else "has something in it"),
            where=path,
            expected="a new or an empty folder",
        )
    return path


def _create(path: Path) -> None:
    """An empty file that was not there: what another user has planted at the name, a link above all, is refused."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o666))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the file by these bytes."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Replace the file by this text, in UTF-8 with its newlines as they are."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, content: Any) -> None:
    """Replace the file by `content` as JSON indented by two spaces."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
