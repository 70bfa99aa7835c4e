"""Damaged files of a run: what is wrong is said in a sentence, and report, answers and resume go on where they can;
a damaged configuration would train something else, and is refused. Damaged arrays of the cache, tokens, texts and
vectors: named, and made again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path

from benchmarks.faults.small import small_system, spoken
from tests.tracking.test_checkpoint import flipped, zeroed

NAME = "run files and cached arrays"
N_RUN_FILES, N_ARRAYS = 14, 30
QUICK, FULL = 5, N_RUN_FILES + N_ARRAYS
STEPS, MORE = 3, 6  # with a validation at either
SETTINGS = (f"trainer.max_steps={STEPS}", "index.keep_vectors=2")


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


# By pattern below the cache; how many of the files that match, in their order, are damaged each in both ways.
ARRAYS = {"corpus-*/*/*": 9, "vectors/*/*/*": 6}
ARRAY_DAMAGE = {"a flipped bit": flipped, "a zeroed page": zeroed}


def tries(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """An array after every third file of the run, then the rest of them."""
    order = [(file, how) for how in DAMAGE for file in FILES if (file, how) != ("provenance.jsonl", "empty")]
    files = [(f"{one}: {how}", partial(damaged, folder / _named(f"{one}-{how}"), one, how)) for one, how in order]
    places = [(pattern, number) for pattern, n in ARRAYS.items() for number in range(n)]
    arrays = [
        (f"{how} in file {number + 1} of {pattern}", partial(rebuilt, folder, pattern, number, how))
        for how in ARRAY_DAMAGE
        for pattern, number in places
    ]
    turns = [one for at in range(0, len(files), 3) for one in (*files[at : at + 3], arrays[at // 3])]
    yield from islice(turns + arrays[len(turns) - len(files) :], count)


def rebuilt(folder: Path, pattern: str, number: int, how: str) -> None:
    """A run that finds the cache so says it, and has the answers of the one that made the cache."""
    whole, own = trained(folder), folder / _named(f"{pattern}-{number}-{how}".replace("/", "-").replace("*", ""))
    own.mkdir(parents=True)
    shutil.copytree(whole.parent / "cache-of-it-alone", own / "cache")
    path = sorted((own / "cache").glob(pattern))[number]
    content, chance = bytearray(path.read_bytes()), random.Random(f"{pattern}{number}{how}")
    ARRAY_DAMAGE[how](content, chance, 0, len(content))
    path.write_bytes(content)
    code, said = spoken(["train", *small_system(folder / "system").words(own / "run", *SETTINGS)])
    assert code == 0, said[-3000:]
    if path.name != "manifest.json" or "damaged (" in said:  # of a manifest not all counts
        assert said.count("damaged (") == 1 and str(path.parent) in said, said[-3000:]
    assert (own / "run/predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()


def _named(text: str) -> str:
    return text.replace(" ", "-")


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
    words = small_system(folder / "system").words(folder / "whole" / "run", *SETTINGS)
    code, said = spoken(["train", *words])
    assert code == 0, said[-3000:]
    shutil.copytree(folder / "whole" / "cache", folder / "whole" / "cache-of-it-alone")  # resumed runs write to it too
    return folder / "whole" / "run"
