"""A stranger's first hour: 200 files of text and 100 questions, by two commands a trained, evaluated run with answers.

    python -m benchmarks.training.from_texts FOLDER

The texts are 200 countries of the embedded World Factbook, one file each; of 100 questions about them 60 are trained
on, 20 choose the checkpoint and 20 are the test. FOLDER gets the files, the run and times.json: wall and CPU seconds of
each command, in processes of their own, and what the run measured.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from openbook.config.data import FactbookConfig
from openbook.setup.inputs.data import factbook
from openbook.utils.atomic import write_json

TEXTS, QUESTIONS = 200, {"train": 60, "dev": 20, "test": 20}


def write_files(folder: Path) -> None:
    """The 200 files, and three tables of questions whose answers stand in them."""
    book = factbook(FactbookConfig(), str(folder / "cache"))
    texts: dict[str, list[str]] = defaultdict(list)
    country_of: dict[str, str] = {}
    for line in book.passages.read_text(encoding="utf-8").splitlines():
        passage = json.loads(line)
        texts[passage["title"]].append(passage["text"])
        country_of[passage["id"]] = passage["title"]
    chosen = sorted(texts)[:TEXTS]
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    for country in chosen:
        name = "".join(sign if sign.isalnum() else "_" for sign in country)
        (folder / "texts" / f"{name}.txt").write_text("\n\n".join(texts[country]), encoding="utf-8")
    asked = [json.loads(line) for line in book.train.read_text(encoding="utf-8").splitlines()]
    about = [one for one in asked if country_of.get((one["positive_ids"] or [""])[0]) in set(chosen)]
    n = sum(QUESTIONS.values())
    some = iter([about[place * len(about) // n] for place in range(n)])
    for split, size in QUESTIONS.items():
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["question", "answers"])
            for _ in range(size):
                one = next(some)
                table.writerow([one["question"], repr(one["answers"])])


def timed(words: list[str], log: Path) -> dict[str, float]:
    """Wall and CPU seconds of one command; what it says goes to a file."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with open(log, "w", encoding="utf-8") as file:
        subprocess.run([sys.executable, "-m", "openbook", *words], check=True, stdout=file, stderr=subprocess.STDOUT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = sum(getattr(after, key) - getattr(before, key) for key in ("ru_utime", "ru_stime"))
    return {"seconds": round(time.perf_counter() - started, 1), "cpu_seconds": round(cpu, 1)}


def main(folder: Path) -> None:
    write_files(folder)
    run = folder / "run"
    files = [
        f"data.{key}={folder / name}.csv" for key, name in (("train", "train"), ("validation", "dev"), ("test", "test"))
    ]
    words = ["train", "rag_token", f"data.corpus={folder / 'texts'}", *files, f"run.dir={run}"]
    times = {
        "train": timed([*words, f"data.cache={folder / 'cache'}", "wandb.mode=disabled"], folder / "train.log"),
        "answers": timed(["answers", str(run)], folder / "answers.log"),
    }
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    kept = {key: summary[key] for key in ("steps", "seconds", "test", "before_training", "index")}
    write_json(folder / "times.json", {"cores": len(os.sched_getaffinity(0)), **times, **kept})
    print((folder / "times.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
