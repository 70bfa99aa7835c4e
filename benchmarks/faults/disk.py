"""A disk that is full, limited, read-only or forbidden, in every place that a run writes to: one sentence that names
the path, exit code 2, nothing half-written, and the run goes on to the same answers once the disk is well again."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import islice
from pathlib import Path

from benchmarks.faults.small import ends_of, small_system, start_ranks

NAME = "disk"
QUICK, FULL = 3, 18

# What is called when the disk fails, and at which of its calls.
PLACES = {
    "a checkpoint": ("openbook.tracking.checkpoint.WholeCheckpoints.save_checkpoint", 2),
    "the corpus": ("openbook.setup.inputs.data.build_corpus", 1),
    "the configuration": ("openbook.tracking.run_folder.RunFolder.create", 1),
    "the report": ("openbook.commands.stages.write_report", 1),
    "the predictions": ("openbook.tracking.run_folder.write_json_lines", 1),
    "the curves": ("openbook.tracking.metrics_csv.MetricsCsv.flush", 2),
    "the summary": ("openbook.commands.stages.write_json", 2),
    "stored vectors": ("openbook.index.vector_store.VectorStore.save", 1),
}
GOES_ON = {"stored vectors"}  # what is only a cache costs a warning
KINDS = {
    "full": ("the file grows beyond", "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (90, 90))"),
    "read-only": ("the file system is read-only", "refuse(30)"),
    "forbidden": ("there is no permission", "refuse(13)"),
}
PLANT = """
import builtins
from pkgutil import resolve_name
def refuse(number):
    original, make = builtins.open, os.mkdir
    def under(path):
        return str(path).startswith({folder!r}) and not str(path).endswith(".lock")
    def opened(path, mode="r", *more, **named):
        if under(path) and set(mode) & set("wxa+"):
            raise OSError(number, os.strerror(number), str(path))
        return original(path, mode, *more, **named)
    def made(path, *more, **named):
        if under(path):
            raise OSError(number, os.strerror(number), str(path))
        return make(path, *more, **named)
    import io
    builtins.open = io.open = opened
    os.mkdir = made
owner, name = resolve_name({owner!r}), {name!r}
original, calls = getattr(owner, name), []
def met(*arguments, **named):
    calls.append(1)
    if len(calls) == {at}:
        {fault}
    return original(*arguments, **named)
setattr(owner, name, met)
"""


def tries(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    order = [(kind, place) for place in PLACES for kind in KINDS if kind == "full" or place not in GOES_ON]
    order = [order[number] for number in sorted(range(len(order)), key=lambda number: (number % 3, number))]
    if _mounts(folder):
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
            fault = f"open({str(disk / 'filler')!r}, 'wb').write(bytes(7 << 20))" if kind == "out of space" else "pass"
            code, said = _run(["train", *words], _plant(place if kind == "out of space" else "the report", fault))
            check(code, said, folder, "the disk is full" if kind == "out of space" else "the disk is too small")
            if kind == "out of space":
                (disk / "filler").unlink()
                goes_on(folder, disk / "run", words)
        return
    expected, fault = KINDS[kind]
    code, said = _run(["train", *words], _plant(place, fault, str(folder)))
    if place in GOES_ON:
        assert code == 0 and "passage vectors cannot be saved" in said, said[-3000:]
    else:
        check(code, said, folder, expected)
        goes_on(folder, folder / "run", words)
    assert (folder / "run" / "predictions.jsonl").read_bytes() == straight(folder.parent)


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
    code, said = _run(command)
    assert code == 0, said[-3000:]
    assert (run / "predictions.jsonl").read_bytes() == straight(folder.parent)


@cache
def straight(folder: Path) -> bytes:
    """The answers of the run that nothing happened to."""
    (folder / "straight").mkdir()
    words = small_system(folder / "system").words(folder / "straight" / "run", "evaluate.bootstrap=0")
    code, said = _run(["train", *words])
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


def _mounts(folder: Path) -> bool:
    """Whether this user may mount."""
    try:
        with file_system(folder / "mounts", 1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _plant(place: str, fault: str, folder: str = "") -> str:
    address, at = PLACES[place]
    owner, _, name = address.rpartition(".")
    return PLANT.format(owner=owner, name=name, at=at, fault=fault, folder=folder)


def _run(words: list[str], planted: str = "") -> tuple[int, str]:
    [(code, said)] = ends_of(start_ranks(1, words, planted))
    return code, said
