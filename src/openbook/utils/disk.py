"""Disks that are full, read-only, forbidden or failing: one sentence with the path and the space left, and checks of
both before anything expensive starts."""

import errno
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from openbook.errors import OpenBookError

_OTHER = "Choose a folder on another disk (data.cache, run.dir)"
_ROOM = f"Free some space. {_OTHER}"
_RIGHTS = f"Mend its permissions. {_OTHER}"
# What a number of the system means for whoever writes, and what to do.
_MEANING = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EFBIG: ("the file grows beyond what this process may write (`ulimit -f`)", "Raise the limit"),
    errno.EROFS: ("the file system is read-only", _OTHER),
    errno.EACCES: ("there is no permission", _RIGHTS),
    errno.EPERM: ("there is no permission", _RIGHTS),
    errno.EIO: ("the disk fails", _OTHER),
    errno.ENOTDIR: ("a file stands where a folder is needed", "Move it away. " + _OTHER),
    errno.EEXIST: ("a file stands where a folder is needed", "Move it away. " + _OTHER),
}
# How libraries that write by themselves say that they could not: torch's zip writer, numpy's tofile.
_UNNUMBERED = (
    (RuntimeError, "PytorchStreamWriter failed"),
    (RuntimeError, "unexpected pos"),
    (OSError, " requested and "),
)


class DiskError(OpenBookError):
    """A file could not be written (or read) for a reason that lies with the disk."""


@contextmanager
def writing(path: str | Path = ".") -> Iterator[None]:
    """What the disk refuses inside the block is raised as a DiskError that names the path, whichever library met it;
    everything else is raised as it is."""
    try:
        yield
    except Exception as error:
        raised = None if isinstance(error, OpenBookError) else disk_error(error, path)
        if raised is None:
            raise
        raise raised from error


def disk_error(error: BaseException, path: str | Path) -> DiskError | None:
    """The error in words where the disk is its cause. path: what was written, as far as the error does not name it."""
    one: BaseException | None = error
    while one is not None:
        if (number := _number(one)) is not None:
            what, action = _MEANING[number]
            named = getattr(one, "filename2", None) or getattr(one, "filename", None)
            elsewhere = isinstance(named, str) and Path(path).absolute().parent not in Path(named).absolute().parents
            where = str(named) if elsewhere else str(path)  # not the temporary name beside the path
            free = _free(where)
            got = "" if free is None else f"{free} free there"
            return DiskError(what, where=where, got=got, action=f"{action}; a run that was begun can be resumed.")
        one = one.__cause__  # not its context: an error may be met while another, of no consequence, is handled
    return None


def _number(error: BaseException) -> int | None:
    """Which of the known numbers an error stands for."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _MEANING else None
    if any(isinstance(error, kind) and text in str(error) for kind, text in _UNNUMBERED):
        return errno.ENOSPC
    return next((number for number in _MEANING if f"{os.strerror(number)} (os error {number})" in str(error)), None)


class Need(NamedTuple):
    """n_bytes that will be written below a folder. what: in words. key: the setting that says where."""

    folder: Path
    n_bytes: int
    what: str
    key: str


def check_space(needs: Sequence[Need]) -> None:
    """OpenBookError where a file system has less room than all that will be written to it."""
    from openbook.utils.host_memory import disk_free, human

    on: dict[int, list[Need]] = {}
    for need in needs:
        on.setdefault(device_of(need.folder), []).append(need)
    for together in on.values():
        free, needed = disk_free(together[0].folder), sum(need.n_bytes for need in together)
        if free is not None and needed > free:
            raise DiskError(
                "the disk is too small for the run",
                where=", ".join(f"{need.key}: {need.folder}" for need in together),
                got=f"{human(free)} free",
                expected=f"{human(needed)} ({', '.join(f'{human(one.n_bytes)} of {one.what}' for one in together)})",
                action=_ROOM + ".",
            )


def check_writable(folder: str | Path, key: str) -> None:
    """OpenBookError where no file can be written into a folder, which is made where it is not there."""
    folder = Path(folder)
    probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                probe.write_bytes(b"\0" * 4096)
            finally:
                with suppress(OSError):
                    probe.unlink(missing_ok=True)
    except DiskError as error:
        raise DiskError(f"nothing can be written here: {error}", where=key) from error


def device_of(folder: str | Path) -> int:
    """Which file system a folder lies on, or will lie on once it is made."""
    folder = Path(folder).absolute()
    return next(one.stat().st_dev for one in (folder, *folder.parents) if one.exists())


def size_of(folder: str | Path) -> int:
    """Bytes of the files below a folder; 0 where there is none."""
    total = 0
    for path in Path(folder).rglob("*"):
        with suppress(OSError):  # another process has just removed it
            total += path.stat().st_size if path.is_file() else 0
    return total


def _free(where: str) -> str | None:
    from openbook.utils.host_memory import disk_free, human

    try:
        free = disk_free(where)
    except OSError:
        return None
    return None if free is None else human(free)
