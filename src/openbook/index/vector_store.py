"""Passage embeddings kept on disk, so that a run with the same weights encodes only passages that have changed.

    root/vectors-<name>/<part>/  keys.npy [n, 2] uint64, vectors.npy [n, dim] float32, manifest.json

One set (`vectors-<name>`) belongs to one state of the passage encoder; one part to one rank's shard of one corpus. A
rank writes only its own parts and reads all parts of the set. A passage is known by what the encoder reads of it,
never by its row, so a changed corpus finds its unchanged passages. All of it is only a cache: what is damaged is
ignored, what cannot be written is left out, each with one warning. Make one store per process.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import time
import tokenize
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openbook.index.passage_keys import LAYOUT, rows_of
from openbook.utils.atomic import write_json
from openbook.utils.disk import DiskError

_CHUNK = 8192  # passages hashed, written or copied at once: a few MB
_DAY = 24 * 3600
_FORMATS: dict[str, np.dtype] = {"keys.npy": np.dtype("<u8"), "vectors.npy": np.dtype("<f4")}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """A part whose manifest, sizes and keys are sound; its vectors are not read yet."""

    folder: Path
    keys: np.ndarray
    vectors: np.ndarray
    vectors_sha256: str


class VectorStore:
    def __init__(self, root: Path, keep: int):
        """keep: how many sets stay on disk; beyond it the oldest are removed. 0: nothing is read or written."""
        self.root, self.keep = Path(root), keep
        self._checked: dict[Path, tuple[tuple[int, ...], str]] = {}
        self._told: set[Path] = set()

    def find(self, name: str, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """known [n] bool: which of the keys [n, 2] the set `name` holds; and their vectors [known.sum(), dim] float32
        in the order of keys (dim is 0 where nothing is known)."""
        known = np.zeros(len(keys), dtype=bool)
        asked = len(keys) > 0 and self.keep > 0
        matches = [(part, rows_of(part.keys, keys)) for part in self._parts(name)] if asked else []
        chosen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        # The part with the most hits first: a file is checked whole, so one shared passage should not open another.
        for part, rows in sorted(matches, key=lambda match: int((match[1] >= 0).sum()), reverse=True):
            new = np.flatnonzero((rows >= 0) & ~known)
            fits = not chosen or part.vectors.shape[1] == chosen[0][0].shape[1]
            if new.size and fits and self._vectors_sound(part):
                known[new] = True
                chosen.append((part.vectors, rows[new], new))
        if chosen:  # what is used is not the oldest
            with suppress(OSError):
                os.utime(self._set(name))
        vectors = np.empty((int(known.sum()), chosen[0][0].shape[1] if chosen else 0), dtype=np.float32)
        place = np.cumsum(known) - 1
        for source, rows, positions in chosen:
            for start in range(0, len(rows), _CHUNK):
                block = slice(start, start + _CHUNK)
                vectors[place[positions[block]]] = source[rows[block]]
        return known, vectors

    def save(self, name: str, part: str, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Write vectors [n, dim] under keys [n, 2] as one part (a folder name) of the set `name`, and remove the sets
        beyond `keep`. A sound part with the same keys only counts as new again. A full disk costs one warning."""
        if len(keys) != len(vectors) or vectors.ndim != 2:
            raise ValueError(f"{keys.shape} keys and {vectors.shape} vectors, expected [n, 2] and [n, dim]")
        if not part or part.startswith(".") or Path(part).name != part:
            raise ValueError(f"{part!r} is not the name of a folder")
        if self.keep < 1 or not vectors.size:
            return
        target = self._set(name) / part
        try:
            if not self._holds(target, name, keys):
                self._write(target, name, keys, vectors)
            os.utime(target)
            os.utime(target.parent)
            self._remove_old(target.parent)
        except (OSError, DiskError) as error:
            self._warn(
                self.root,
                "passage vectors cannot be saved under %s (%s); the run goes on, and the next one encodes them again. "
                "Free disk space, choose another cache folder or keep fewer sets.",
                error,
            )

    def _set(self, name: str) -> Path:
        return self.root / f"vectors-{name[:16]}"

    def _parts(self, name: str) -> list[_Part]:
        with self._damage_ignored(self._set(name)):
            folders = sorted(folder for folder in self._set(name).iterdir() if not folder.name.startswith("."))
            return [part for folder in folders if (part := self._open(folder, name))]
        return []

    @contextmanager
    def _damage_ignored(self, folder: Path) -> Iterator[None]:
        """What cannot be read of a folder ends the block, with a warning where the folder is still there: otherwise
        there is none, or another process has just removed it."""
        try:
            yield
            return
        except (OSError, ValueError) as error:
            reason = str(error)
        except (KeyError, TypeError, RecursionError, OverflowError, tokenize.TokenError) as error:
            reason = f"it cannot be read: {error!r}"  # the last one: numpy reads array headers as Python text
        if os.path.exists(folder):
            text = "the saved passage vectors %s are damaged (%s); they are ignored and their passages encoded again."
            self._warn(folder, text, reason)

    def _open(self, folder: Path, name: str) -> _Part | None:
        """The part in a folder; None where there is none, or with a warning where it is not as its manifest says."""
        with self._damage_ignored(folder):
            manifest = json.loads((folder / "manifest.json").read_text())
            if (manifest["layout"], manifest["name"]) != (LAYOUT, name):
                raise ValueError("it is of another version or of another encoder")
            if any((folder / file).stat().st_size != manifest["files"][file]["size"] for file in _FORMATS):
                raise ValueError("a file has another size than its manifest says")
            self._check_sha256(folder / "keys.npy", manifest["files"]["keys.npy"]["sha256"])
            # Not np.load: open_memmap knows no pickles at all.
            keys, vectors = (np.lib.format.open_memmap(folder / file, mode="r").view(np.ndarray) for file in _FORMATS)
            if (keys.dtype, vectors.dtype) != tuple(_FORMATS.values()) or vectors.ndim != 2:
                raise ValueError("the arrays are of another type")
            if keys.shape != (len(vectors), 2):
                raise ValueError("keys and vectors do not match in shape")
            return _Part(folder, keys, vectors, str(manifest["files"]["vectors.npy"]["sha256"]))
        return None

    def _vectors_sound(self, part: _Part) -> bool:
        """Asked only of parts that are used, for it reads the whole file."""
        with self._damage_ignored(part.folder):
            self._check_sha256(part.folder / "vectors.npy", part.vectors_sha256)
            return True
        return False

    def _check_sha256(self, path: Path, expected: str) -> None:
        """Raise ValueError where the file is not as its manifest says; computed once for each state of a file."""
        found = path.stat()
        state = (found.st_ino, found.st_size, found.st_mtime_ns)
        if path not in self._checked or self._checked[path][0] != state:
            with open(path, "rb") as handle:
                self._checked[path] = state, hashlib.file_digest(handle, "sha256").hexdigest()
        if self._checked[path][1] != expected:
            raise ValueError(f"{path.name} has another sha256 than its manifest says")

    def _holds(self, target: Path, name: str, keys: np.ndarray) -> bool:
        held = self._open(target, name)
        return held is not None and np.array_equal(held.keys, keys) and self._vectors_sound(held)

    def _write(self, target: Path, name: str, keys: np.ndarray, vectors: np.ndarray) -> None:
        new = self.root / f".vectors-new-{uuid.uuid4().hex[:8]}"
        try:
            new.mkdir(parents=True)
            arrays = {"keys.npy": keys, "vectors.npy": vectors}
            files = {file: _write_array(new / file, array, _FORMATS[file]) for file, array in arrays.items()}
            write_json(new / "manifest.json", {"layout": LAYOUT, "name": name, "files": files})
            _sync_folder(new)
            target.parent.mkdir(exist_ok=True)
            if target.exists() and not self._holds(target, name, keys):
                self._discard(target)
            try:
                os.replace(new, target)
            except OSError:
                if not target.is_dir():  # otherwise another process was first, with the same passages
                    raise
            _sync_folder(target.parent)
            self._told.discard(target)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _remove_old(self, current: Path) -> None:
        others = [folder for folder in self.root.glob("vectors-" + "[0-9a-f]" * 16) if folder != current]
        for folder in sorted(others, key=_modified, reverse=True)[self.keep - 1 :]:
            self._discard(folder)
        # What killed processes have left behind. A part that is still being written is younger than a day.
        for folder in self.root.glob(".vectors-*-*"):
            if folder.name.startswith(".vectors-old-") or _modified(folder) < time.time() - _DAY:
                shutil.rmtree(folder, ignore_errors=True)

    def _discard(self, folder: Path) -> None:
        """Renamed first, so that no reader meets half of it; who has it mapped may read on."""
        old = self.root / f".vectors-old-{uuid.uuid4().hex[:8]}"
        with suppress(FileNotFoundError):  # another process was first
            os.replace(folder, old)
        shutil.rmtree(old, ignore_errors=True)

    def _warn(self, path: Path, text: str, reason: object) -> None:
        if path not in self._told:
            self._told.add(path)
            _log.warning(text, path, reason)


def _write_array(path: Path, array: np.ndarray, dtype: np.dtype) -> dict[str, int | str]:
    """Write a .npy file and force it to the disk; its size and the sha256 of what was meant to be written."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": array.shape}
    )
    digest = hashlib.sha256(header.getvalue())
    with open(path, "wb") as handle:
        handle.write(header.getvalue())
        for start in range(0, len(array), _CHUNK):
            block = np.ascontiguousarray(array[start : start + _CHUNK], dtype=dtype).data.cast("B")
            handle.write(block)
            digest.update(block)
        handle.flush()
        os.fsync(handle.fileno())
        return {"size": handle.tell(), "sha256": digest.hexdigest()}


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process has just removed it
        return 0.0
