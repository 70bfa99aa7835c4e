"""One process at a time builds what all of them need; the others wait, and find it there."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openbook.utils.console import say

_SAID_AFTER = 5.0  # seconds


@contextmanager
def in_turn(cache: str | Path, name: str) -> Iterator[None]:
    """Inside the block no other process of this machine (or of the cluster, where the file system locks for all of it)
    builds `name` in the cache folder.

    Whoever comes first builds; the others then find the result, or, where the first has failed or was killed, build in
    their turn and meet the same error: nobody waits for a process that is gone. Where the folder cannot be written or
    the file system has no locks, nobody waits at all.
    """
    handle = _opened(Path(cache) / ".locks" / name)
    try:
        if handle is not None:
            _wait_for(handle, name)
        yield
    finally:
        if handle is not None:
            os.close(handle)  # which gives the lock back, as the end of the process would


def _opened(path: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError:
        return None


def _wait_for(handle: int, name: str) -> None:
    try:
        import fcntl
    except ImportError:  # no locks on this system
        return
    started, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:  # a file system without locks
            return
        if not said and time.monotonic() - started > _SAID_AFTER:
            said = True
            say(f"waiting for another process that is building {name}")
