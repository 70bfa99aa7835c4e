"""Folders of arrays: written whole or not at all, with a manifest that knows size and sha256 of every file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from openbook.utils.atomic import replacing_folder
from openbook.utils.console import progress
from openbook.utils.files.file_sums import file_sum, remember

# The version of the files; raised when they change, so that older ones are rebuilt.
LAYOUT = 2
MANIFEST = "manifest.json"

_log = logging.getLogger(__name__)


class GrowingArray:
    """A one-dimensional .npy file whose length is known at its end."""

    def __init__(self, path: Path, dtype: np.dtype):
        self._dtype, self._n = dtype, 0
        self._file = open(path, "wb")  # noqa: SIM115  (closed in __exit__)
        self._header = self._write_header()

    def __enter__(self) -> GrowingArray:
        return self

    def append(self, values: np.ndarray) -> None:
        self._n += len(values)
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)

    def __exit__(self, *error: object) -> None:
        self._file.seek(0)
        # numpy leaves room for a longer shape in every header.
        assert self._write_header() == self._header
        self._file.close()

    def _write_header(self) -> int:
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self._n,)}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()


def is_whole(folder: Path, cache: Path) -> bool:
    """Whether the folder is there and as its manifest says; where it is damaged, a warning names the file.

    Sizes are compared always, sums of the files that were touched since they were last hashed (utils/file_sums.py).
    """
    if not folder.exists():
        return False
    fault = _fault(folder, cache)
    if fault:
        _log.warning("the cached corpus %s is damaged (%s); it is built again", folder, fault)
    return not fault


def _fault(folder: Path, cache: Path) -> str:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["layout"] != LAYOUT:
            return "it is of another version"
        for name, facts in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != facts["size"]:
                return f"{name} has {size:,} bytes instead of {facts['size']:,}"
        for name, facts in manifest["files"].items():
            if file_sum(folder / name, cache) != facts["sha256"]:
                return f"the bytes of {name} are not as they were written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@contextmanager
def new_folder(target: Path, cache: Path, facts: dict[str, str | int]) -> Iterator[Path]:
    """A temporary folder that becomes `target`, with a manifest of these facts and its files, when the block ends well
    and vanishes when it does not. Raises DiskError where it cannot be written."""
    with replacing_folder(target, complete=lambda folder: not _fault(folder, cache)) as new:
        yield new
        files = _summed(new)
        manifest = {"layout": LAYOUT, **facts, "files": files}
        (new / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for name, known in files.items():
        remember(target / name, str(known["sha256"]), cache)


def _summed(folder: Path) -> dict[str, dict[str, str | int]]:
    files: dict[str, dict[str, str | int]] = {}
    paths = sorted(folder.iterdir())
    total, before = sum(path.stat().st_size for path in paths), 0
    with progress("summing up the arrays", "MB", brief=True) as told:

        def tick(done: int, size: int) -> None:
            told((before + done) >> 20, total >> 20)

        for path in paths:
            files[path.name] = {"size": path.stat().st_size, "sha256": file_sum(path, tick=tick)}
            before += path.stat().st_size
    return files
