"""One writer per run folder: a lock that names the live run's process and host, and that a kill leaves harmless.

The kernel holds the lock for the process, so that it ends with it, however it ends; the file that stays behind says
only who it was. Where the file system has no locks, a process of this host that is still running counts as one.
"""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from openbook.utils.console import say
from openbook.utils.disk import writing

NAME = ".lock"


def take(folder: Path) -> int | None:
    """A handle of the folder's lock, for `give_back`; None where another process (or another run of this one) holds it.

    DiskError where it cannot be written; FileNotFoundError where the folder is gone."""
    path = folder / NAME
    for attempt in range(5):
        with writing(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        locked = _lock(handle)
        if locked is None:
            owner = _owner(path)
            locked = not _runs_here(owner)
            if owner and locked:
                say(f"warning: {folder} is on a file system without locks; {owner} has written to it: is it gone?")
        if locked and _is_file(handle, path):
            with writing(path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return handle
        os.close(handle)
        if attempt < 4:  # whoever only looks holds it for no time at all
            time.sleep(0.05)
    return None


def give_back(folder: Path, handle: int) -> None:
    """After `take`, when the run has ended."""
    with suppress(OSError):
        (folder / NAME).unlink()
    os.close(handle)


def holder(folder: Path) -> str:
    """Who writes to the folder now, like `process 4711 on node-3`; empty where nobody does."""
    path = folder / NAME
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        locked = _lock(handle)
    finally:
        os.close(handle)
    owner = _owner(path) or "another process"
    return owner if locked is False or (locked is None and _runs_here(owner)) else ""


def _lock(handle: int) -> bool | None:
    """Whether the lock is ours now; None where there are no locks."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _is_file(handle: int, path: Path) -> bool:
    """Whether the locked file is still the one that stands there: its holder removes it when the run ends."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _owner(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _runs_here(owner: str) -> bool:
    words = owner.split()
    if len(words) != 4 or words[3] != socket.gethostname() or not words[1].isdigit():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
