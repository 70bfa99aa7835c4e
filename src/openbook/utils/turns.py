"""One process at a time builds what all of them need; the others wait, and find it there."""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openbook.errors import OpenBookError
from openbook.utils.console import say

_SAID_AFTER = 5.0  # seconds


@contextmanager
def in_turn(cache: str | Path, name: str, work: str = "") -> Iterator[bool]:
    """Inside the block no other process of this machine (or of the cluster, where the file system locks for all of it)
    builds `name` in the cache folder; gives whether that is so.

    Whoever comes first builds; the others then find the result, or, where the first has failed or was killed, build in
    their turn and meet the same error: nobody waits for a process that is gone. work: all that decides the outcome;
    where it is given and the first has met an OpenBookError over it, those that were waiting raise that instead of
    trying the same again, perhaps for hours. Where the folder cannot be written or the file system has no locks, nobody
    waits at all.
    """
    handle = _opened(Path(cache) / ".locks" / name)
    try:
        before = _failure(handle)
        locked = handle is not None and _wait_for(handle, name)
        if locked and (failure := _failure(handle)) != before and work and failure.get("work") == work:
            raise OpenBookError(failure["error"])
        try:
            yield locked
        except OpenBookError as error:
            if handle is not None and locked and work:
                told = json.dumps({"attempt": uuid.uuid4().hex, "work": work, "error": str(error)}).encode()
                os.ftruncate(handle, 0)
                os.pwrite(handle, told, 0)
            raise
    finally:
        if handle is not None:
            os.close(handle)  # which gives the lock back, as the end of the process would


def _failure(handle: int | None) -> dict[str, str]:
    """What the last attempt that failed has written down."""
    if handle is None:
        return {}
    try:
        found = json.loads(os.pread(handle, os.fstat(handle).st_size, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "error" in found else {}


def _opened(path: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError:
        return None


def _wait_for(handle: int, name: str) -> bool:
    try:
        import fcntl
    except ImportError:  # no locks on this system
        return False
    started, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:  # a file system without locks
            return False
        if not said and time.monotonic() - started > _SAID_AFTER:
            said = True
            say(f"waiting for another process that is building {name}")
