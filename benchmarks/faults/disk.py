"""A disk that is full, limited, read-only or forbidden, in every place that a run writes to: one sentence that names
the path, exit code 2, nothing half-written, and the run goes on to the same answers once the disk is well again."""

from __future__ import annotations

import builtins
import errno
import io
import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import islice
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest import mock

from benchmarks.faults.small import small_system, spoken

NAME = "disk"
QUICK, FULL = 3, 18

# What is called when the disk fails, and at which of its calls.
PLACES = {
    "a checkpoint": ("openbook.tracking.checkpoint_io.WholeCheckpoints.save_checkpoint", 2),
    "the corpus": ("openbook.setup.inputs.data.build_corpus", 1),
    "the configuration": ("openbook.tracking.run_folder.RunFolder.create", 1),
    "the report": ("openbook.commands.stages.write_report", 1),
    "the predictions": ("openbook.tracking.run_folder.write_json_lines", 1),
    "the curves": ("openbook.tracking.metrics_csv.MetricsCsv.flush", 2),
    "the summary": ("openbook.commands.stages.write_json", 2),
    "stored vectors": ("openbook.index.vector_store.VectorStore.save", 1),
}
GOES_ON = {"stored vectors"}  # what is only a cache costs a warning
# What is said of it; of what the file system is asked, and by which number it refuses.
KINDS = {
    "full": ("the file grows beyond", errno.EFBIG),
    "read-only": ("the file system is read-only", errno.EROFS),
    "forbidden": ("there is no permission", errno.EACCES),
}


@contextmanager
def planted(place: str, meet: Callable[[], None]) -> Iterator[None]:
    """`meet` is called as soon as the place is reached; afterwards everything is as it was, the disk too."""
    address, at = PLACES[place]
    owner, name = resolve_name(address.rpartition(".")[0]), address.rpartition(".")[2]
    original, calls, limit = getattr(owner, name), list[int](), resource.getrlimit(resource.RLIMIT_FSIZE)

    def met(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            meet()
        try:
            return original(*arguments, **named)
        finally:
            if place in GOES_ON:  # whatever is written next is no cache
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    kept = [mock.patch.object(*one) for one in ((builtins, "open", open), (io, "open", open), (os, "mkdir", os.mkdir))]
    with mock.patch.object(owner, name, met), kept[0], kept[1], kept[2]:
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(calls) >= at, f"{place} was never reached"


def refuse(number: int, folder: Path) -> None:
    """From here on nothing can be written below the folder: by the kernel's own limit, or as it would answer."""
    if number == errno.EFBIG:
        resource.setrlimit(resource.RLIMIT_FSIZE, (90, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return
    opens, makes = open, os.mkdir

    def check(path: Any) -> None:
        if str(path).startswith(str(folder)) and not str(path).endswith(".lock"):
            raise OSError(number, os.strerror(number), str(path))

    def opened(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        if set(mode) & set("wxa+"):
            check(path)
        return opens(path, mode, *more, **named)

    def made(path: Any, *more: Any, **named: Any) -> None:
        check(path)
        makes(path, *more, **named)

    builtins.open = io.open = opened
    os.mkdir = made


def tries(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    order = [(kind, place) for place in PLACES for kind in KINDS if kind == "full" or place not in GOES_ON]
    order = [order[number] for number in sorted(range(len(order)), key=lambda number: (number % 3, number))]
    if mounts():
        order.insert(2, ("out of space", "a checkpoint"))
        order.insert(3, ("too small", "the start"))
    for kind, place in islice(order, count):
        yield f"{kind}: {place}", partial(met, folder / f"{kind} {place}".replace(" ", "-"), kind, place)


def met(folder: Path, kind: str, place: str) -> None:
    folder.mkdir(parents=True)
    system = small_system(folder.parent / "system")
    words = [*system.words(folder / "run", "index.keep_vectors=1", "evaluate.bootstrap=0")]
    if kind in ("out of space", "too small"):
        with file_system(folder / "disk", 8 if kind == "out of space" else 1) as disk:
            words = [*words, f"run.dir={disk / 'run'}"]
            if kind == "too small":
                check(*spoken(["train", *words]), folder, "the disk is too small")
                return
            with planted(place, lambda: fill(disk / "filler")):
                ended = spoken(["train", *words])
            check(*ended, folder, "the disk is full")
            (disk / "filler").unlink()
            goes_on(folder, disk / "run", words)
        return
    expected, number = KINDS[kind]
    with planted(place, lambda: refuse(number, folder)):
        code, said = spoken(["train", *words])
    if place in GOES_ON:
        assert code == 0, said[-3000:]
    else:
        check(code, said, folder, expected)
        goes_on(folder, folder / "run", words)
    assert (folder / "run" / "predictions.jsonl").read_bytes() == straight(folder.parent)


def fill(path: Path) -> None:
    """With zeros until there is no room left."""
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass


def check(code: int, said: str, folder: Path, expected: str) -> None:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "Traceback" not in said, (code, said[-3000:])
    assert expected in errors[0] or (expected == "the file grows beyond" and "the disk is full" in errors[0]), errors
    assert str(folder) in errors[0] and " free" in errors[0], errors
    left = [path for path in folder.rglob(".*") if path.name not in (".locks", ".lock")]
    assert not left and not list(folder.rglob(".lock")), left
    empty = [path for path in (folder / "run").glob("*") if path.is_file() and not path.stat().st_size]
    assert not empty, empty


def goes_on(folder: Path, run: Path, words: list[str]) -> None:
    command = ["resume", str(run)] if (run / "config.yaml").is_file() else ["train", *words]
    code, said = spoken(command)
    assert code == 0, said[-3000:]
    assert (run / "predictions.jsonl").read_bytes() == straight(folder.parent)


@cache
def straight(folder: Path) -> bytes:
    """The answers of the run that nothing happened to."""
    (folder / "straight").mkdir()
    words = small_system(folder / "system").words(folder / "straight" / "run", "evaluate.bootstrap=0")
    code, said = spoken(["train", *words])
    assert code == 0, said[-3000:]
    return (folder / "straight" / "run" / "predictions.jsonl").read_bytes()


@contextmanager
def file_system(folder: Path, mebibytes: int) -> Iterator[Path]:
    """One of its own of that size, in memory."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "openbook-faults", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@cache
def mounts() -> bool:
    """Whether this user may mount."""
    try:
        with tempfile.TemporaryDirectory() as folder, file_system(Path(folder) / "disk", 1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
