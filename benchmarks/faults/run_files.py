"""Damaged files of a run: what is wrong is said in a sentence, and report, answers and resume go on where they can;
a damaged configuration would train something else, and is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path

from benchmarks.faults.small import small_system, spoken

NAME = "run files"
QUICK, FULL = 4, 14
STEPS, MORE = 3, 6  # with a validation at either


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def empty(content: bytes) -> bytes:
    return b""


def not_utf8(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + b"\xff\xfe" + content[middle:]


FILES = ("summary.json", "metrics.csv", "predictions.jsonl", "provenance.jsonl", "config.yaml")
DAMAGE = {"cut": cut, "empty": empty, "not UTF-8": not_utf8}
# Who reads the file, so that it has to name it; the others do not meet it.
READ_BY = {
    "summary.json": {"report", "resume"},
    "metrics.csv": {"report", "resume"},
    "predictions.jsonl": {"report", "answers"},
    "provenance.jsonl": {"resume"},
}


def tries(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    order = [(file, how) for how in DAMAGE for file in FILES if (file, how) != ("provenance.jsonl", "empty")]
    for file, how in islice(order, count):
        yield f"{file}: {how}", partial(damaged, folder / f"{file}-{how}".replace(" ", "-"), file, how)


def damaged(folder: Path, file: str, how: str) -> None:
    folder.mkdir(parents=True)
    run = folder / "run"
    shutil.copytree(trained(folder.parent), run)
    path = run / file
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    for command in ("report", "answers", "resume"):
        words = [command, str(run), *([f"trainer.max_steps={MORE}"] if command == "resume" else [])]
        code, said = spoken(words)
        assert "Traceback" not in said, said[-3000:]
        if file == "config.yaml":
            assert command != "resume" or (code == 2 and "config.yaml" in said), said[-3000:]
            continue
        nothing_left = file == "predictions.jsonl" and how == "empty" and command == "answers"
        assert code == (2 if nothing_left else 0), (code, said[-3000:])
        if command in READ_BY[file]:
            assert file in said and any(word in said for word in ("cannot be read", "is empty", "has no rows")), said
    if file in ("summary.json", "metrics.csv"):  # what was damaged is kept for whoever can read more of it
        assert (run / f"{file}.damaged").exists()
    if file == "config.yaml":
        assert sorted(one.name for one in run.iterdir() if ".damaged" in one.name) == []


@cache
def trained(folder: Path) -> Path:
    """A finished run of a few steps."""
    (folder / "whole").mkdir(parents=True)
    words = small_system(folder / "system").words(folder / "whole" / "run", f"trainer.max_steps={STEPS}")
    code, said = spoken(["train", *words])
    assert code == 0, said[-3000:]
    return folder / "whole" / "run"
