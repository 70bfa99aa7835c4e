"""The sha256 of files, known by size and times: what nobody has touched since is not read a second time.

Under `cache/.sums/` one small file for each large one. A change that leaves size and both times as they were (a bit
that flips on the disk) is found only by hashing everything: `forget` first.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from openbook.utils.atomic import write_text

_LARGE = 1 << 20  # bytes; a smaller file is hashed in no time
_CHUNK = 1 << 20
_UNSURE = 2 * 10**9  # ns: a file changed so shortly ago may change again within one tick of its file system's clock

Tick = Callable[[int, int], None]


def file_sum(path: str | Path, cache: str | Path | None = None, tick: Tick | None = None) -> str:
    """The sha256 of a file's bytes, in hexadecimal; from the cache folder where it knows the file as it is. tick:
    called with (bytes so far, bytes in all)."""
    path = Path(path)
    before = _state(path)
    size = int(before["size"])
    memo = _memo(path, cache) if cache is not None and size >= _LARGE else None
    if memo is not None and (known := _known(memo)) is not None and known.items() >= before.items():
        return str(known["sha256"])
    digest, done = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if tick:
                tick(done, size)
    if memo is not None and before == _state(path) and time.time_ns() - int(before["mtime_ns"]) > _UNSURE:
        _write(memo, before, digest.hexdigest())
    return digest.hexdigest()


def remember(path: str | Path, sha256: str, cache: str | Path) -> None:
    """Take the sum of a file that this process has just written as known."""
    state = _state(Path(path))
    if int(state["size"]) >= _LARGE:
        _write(_memo(Path(path), cache), state, sha256)


def forget(cache: str | Path) -> None:
    """From now on every file is hashed anew at its first use."""
    shutil.rmtree(Path(cache) / ".sums", ignore_errors=True)


def _state(path: Path) -> dict[str, str | int]:
    found = os.stat(path)
    # ctime too: a copy that keeps the time of its original, or a restored one, has one of its own.
    return {"path": str(path.resolve())} | {
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }


def _memo(path: Path, cache: str | Path) -> Path:
    return Path(cache) / ".sums" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.json"


def _known(memo: Path) -> dict[str, str | int] | None:
    try:
        known = json.loads(memo.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and "sha256" in known else None


def _write(memo: Path, state: dict[str, str | int], sha256: str) -> None:
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_text(memo, json.dumps(state | {"sha256": sha256}) + "\n")
    except OSError:  # a cache that cannot be written costs the next run some time, nothing else
        pass
