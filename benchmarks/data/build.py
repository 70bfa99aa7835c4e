"""The store of a million passages: tokenising beside `tokenizers`, time, memory and disk, the second run, questions.

    python -m benchmarks.data.build [--out FILE] [--quick] [--passages N] [--processes N]

Passages are 100 words drawn from the embedded book's, each as often as it stands there, under titles of two words. The
encoder's tokenizer is MiniLM's WordPiece, the generator's a byte-level BPE of 32,000 tokens trained on such passages.
Each build runs in a process of its own (`--case`), whose memory is summed over it and its workers.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.common.figures import Value, finish, median, options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIKIPEDIA = 21_015_324  # passages of psgs_w100.tsv (Karpukhin et al. 2020)
ROUNDS = 3


def texts(n: int, length: int, seed: int) -> Iterator[list[str]]:
    """n times so many words, drawn as often as they stand in the book."""
    from openbook.data.factbook.build import MAIN_SECTIONS, FactbookOptions, build_factbook
    from openbook.data.readers.formats import read_passages

    with tempfile.TemporaryDirectory() as folder:
        book = build_factbook(FactbookOptions(50, 24, 3, MAIN_SECTIONS), Path(folder))
        counts = Counter(word for one in read_passages(book.passages) for word in one.text.split())
    vocabulary, weights = np.array(list(counts)), np.array(list(counts.values())) / counts.total()
    draw = np.random.default_rng(seed)
    for start in range(0, n, 1000):
        yield from vocabulary[draw.choice(len(vocabulary), (min(1000, n - start), length), p=weights)].tolist()


def write_passages(path: Path, n: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for number, one in enumerate(texts(n, 102, seed=0)):
            record = {"id": str(number), "title": " ".join(one[:2]), "text": " ".join(one[2:])}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_questions(path: Path, n: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for number, one in enumerate(texts(n, 14, seed=1)):
            record = {"id": f"q{number}", "question": " ".join(one[:11]), "answers": [" ".join(one[11:]), one[0]]}
            file.write(json.dumps(record | {"positive_ids": [str(number)]}, ensure_ascii=False) + "\n")


def tokenizers(folder: Path) -> dict[str, object]:
    """The encoder's and the generator's."""
    from transformers import PreTrainedTokenizerFast

    from openbook.config.models import MINILM
    from openbook.models.encoders import load_tokenizer

    return {
        "encoder": load_tokenizer(MINILM),
        "generator": PreTrainedTokenizerFast(tokenizer_file=str(folder / "bpe.json"), pad_token="<pad>"),
    }


def train_bpe(passages: Path, target: Path) -> None:
    from itertools import islice

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from openbook.data.readers.formats import read_passages

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=32_000, special_tokens=["<pad>"], show_progress=False)
    bpe.train_from_iterator((one.text for one in islice(read_passages(passages), 20_000)), trainer)
    bpe.save(str(target))


def share_of_tokenizers(folder: Path, texts: Path, rounds: int) -> dict[str, Value]:
    """Passages per CPU second of a worker over those of encode_batch, piece by piece in turn, both on one thread."""
    from tokenizers import Tokenizer

    from openbook.data.store.pieces import Texts, Writing, n_pieces, rows_of, write_piece
    from openbook.data.store.tokens import backend_of
    from openbook.data.store.worker import fast_ids

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    corpus, figures = Texts(texts), dict[str, Value]()
    for role, tokenizer in tokenizers(folder).items():
        backend = Tokenizer.from_str(backend_of(tokenizer))  # type: ignore[arg-type]
        ids, shares, theirs = fast_ids(backend), list[float](), list[float]()
        for turn in range(rounds):
            number = turn % n_pieces(len(corpus))
            passages = corpus(rows_of(number, len(corpus)))
            started = time.process_time()
            for start in range(0, len(passages), 1024):
                backend.encode_batch(Writing().texts(passages[start : start + 1024]), add_special_tokens=False)
            between = time.process_time()
            for _ in write_piece(folder, number, corpus, Writing(), ids, np.dtype(np.uint16)):
                pass
            ended = time.process_time()
            shares.append((between - started) / (ended - between))
            theirs.append(len(passages) / (between - started))
        figures[f"data.tokenise.{role}.share_of_tokenizers"] = median(shares)
        figures[f"data.tokenise.{role}.tokenizers_passages_per_cpu_second"] = median(theirs)
    each = [figures[f"data.tokenise.{role}.share_of_tokenizers"] for role in ("encoder", "generator")]
    return figures | {"data.tokenise.share_of_tokenizers": min(each)}  # type: ignore[type-var]


def case(kind: str, folder: Path, processes: int) -> None:
    """What a process of its own does; prints what it has measured."""
    from openbook.data.corpus_build import build_corpus

    if kind == "questions":
        from openbook.data.question_file import QuestionFile
        from openbook.data.question_lengths import Limits, Reader, check_lengths

        encoder = tokenizers(folder)["encoder"]
        started, used = time.perf_counter(), time.process_time()
        file = QuestionFile(folder / "questions.jsonl", folder / "cache")
        opened = {"checked_seconds": time.perf_counter() - started, "checked_cpu_seconds": time.process_time() - used}
        check_lengths(file, [Reader(encoder)], Limits(64, "error", 24, strict=False))  # type: ignore[arg-type]
        extra = opened
    else:
        read = tokenizers(folder)
        started, used = time.perf_counter(), time.process_time()
        build_corpus(folder / "passages.jsonl", read, folder / "cache", processes=processes)  # type: ignore[arg-type]
        extra = {}
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() - used + children.ru_utime + children.ru_stime
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu_seconds": cpu, **extra}))


@contextmanager
def peak_of(process: int) -> Iterator[list[int]]:
    """Gives a list whose one number is the largest sum of anonymous memory of a process and its children, in KiB,
    looked at ten times a second."""
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            peak[0] = max(peak[0], sum(map(_anonymous, [process, *_children(process)])))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def _children(process: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return found


def _anonymous(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def measured(kind: str, folder: Path, processes: int) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.data.build",
        "--case",
        kind,
        str(folder),
        "--processes",
        str(processes),
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with peak_of(child.pid) as peak:
        said = child.communicate()[0]
    if child.returncode:
        raise SystemExit(f"{kind} failed:\n{said}")
    print(said, end="")
    return json.loads(said.splitlines()[-1]) | {"peak_mib": peak[0] / 1024}


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("corpus-*/**/*") if path.is_file())


def sizes_of_lengths(sizes: Sequence[int]) -> dict[str, Value]:
    """CPU microseconds a passage of what runs over numbers of all passages at once: ids sorted by hash, offsets, the
    99th percentile of lengths."""
    figures: dict[str, Value] = {}
    for n in sizes:
        drawn = np.random.default_rng(0)
        hashes = drawn.integers(0, 2**63, n, dtype=np.uint64)
        lengths = np.clip(drawn.normal(130, 25, n), 20, 256).astype(np.int32)
        started = time.process_time()
        np.argsort(hashes, kind="stable")
        np.cumsum(lengths, dtype=np.int64)
        np.percentile(lengths, 99)
        figures[f"data.lengths.{n}.us_per_passage"] = (time.process_time() - started) / n * 1e6
    return figures


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=0, help="that tokenise; 0: one for each core")
    parser.add_argument("--case", nargs=2, metavar=("KIND", "FOLDER"), help="used by the script itself")
    asked = parser.parse_args()
    if asked.case:
        case(asked.case[0], Path(asked.case[1]), asked.processes)
        return
    n = 20_000 if asked.quick else asked.passages
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_passages(folder / "passages.jsonl", n)
        write_questions(folder / "questions.jsonl", n)
        train_bpe(folder / "passages.jsonl", folder / "bpe.json")
        time.sleep(2.5)  # what has just been written is not trusted by its times (utils/file_sums.py)
        built, on_disk = measured("build", folder, asked.processes), folder_bytes(folder / "cache")
        again, questions = measured("again", folder, asked.processes), measured("questions", folder, asked.processes)
        (stored,) = folder.glob("cache/corpus-*/texts")
        figures = share_of_tokenizers(folder, stored, 2 if asked.quick else ROUNDS)
    per = 1_000_000 / n
    figures |= {
        "data.million.passages_measured": n,
        "data.million.seconds": built["seconds"] * per,
        "data.million.cpu_seconds": built["cpu_seconds"] * per,
        "data.million.peak_mib": built["peak_mib"],
        "data.million.disk_gb": on_disk * per / 1e9,
        "data.million.processes": asked.processes or len(os.sched_getaffinity(0)),
        "data.second_run.cpu_seconds": again["cpu_seconds"],
        "data.questions.million.seconds": questions["checked_seconds"] * per,
        "data.questions.million.cpu_seconds": questions["checked_cpu_seconds"] * per,
        "data.questions.million.cpu_seconds_with_lengths": questions["cpu_seconds"] * per,
        "data.questions.million.peak_mib": questions["peak_mib"],
        "data.plan.21m.seconds": built["seconds"] / n * WIKIPEDIA,
        "data.plan.21m.cpu_hours": built["cpu_seconds"] / n * WIKIPEDIA / 3600,
        "data.plan.21m.disk_gb": on_disk / n * WIKIPEDIA / 1e9,
    }
    finish(asked, figures | sizes_of_lengths((100_000, 300_000) if asked.quick else (1_000_000, WIKIPEDIA)))


if __name__ == "__main__":
    main()
