"""Token ids of a whole corpus: pieces by several processes, kept when the build is killed, joined at the end.

What is half built lies under `.tokens-<name>.building/` beside its target and is taken up by the next run. The arrays
are the same bytes however often a build was interrupted and however many processes worked on it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

import openbook
from openbook.data.inputs import token_ids
from openbook.data.store.arrays import LAYOUT, GrowingArray, new_folder
from openbook.data.store.pieces import PIECE, Texts, Writing, n_pieces, piece_path, read_piece, rows_of, write_piece
from openbook.errors import OpenBookError
from openbook.utils.console import progress, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

FEWEST = 4  # pieces for which other processes are started
MOST = 32  # processes


class Tokens(NamedTuple):
    """What is to be built: the tokenizer, how title and text are written for it, and the sha256 of both."""

    name: str
    tokenizer: Tokenizer
    writing: Writing

    @property
    def dtype(self) -> np.dtype:
        """The smallest that holds every id."""
        return np.dtype(np.uint16 if len(self.tokenizer) <= 1 << 16 else np.uint32)


def build_tokens(target: Path, texts: Path, asked: Tokens, cache: Path, processes: int, private: bool = False) -> None:
    """Make the folder `tokens-<name>` of the texts in a folder. processes: at most so many work beside this one.
    private: another process may be building the same, so no piece of this one is left to be taken up."""
    mine = f"{uuid.uuid4().hex[:8]}." if private else ""
    building, corpus = target.with_name(f".{target.name}.{mine}building"), Texts(texts)
    _begin(building, texts, asked)
    missing = _missing(building, len(corpus), asked.dtype)
    if kept := len(corpus) - sum(len(rows_of(number, len(corpus))) for number in missing):
        say(f"{kept:,} of {len(corpus):,} passages were tokenised before the build was interrupted")
    _write_pieces(building, texts, corpus, asked, missing, processes)
    with new_folder(target, cache, {"tokenizer": asked.name, "n_passages": len(corpus)}) as new:
        _join(new, building, len(corpus), asked.dtype)
    shutil.rmtree(building, ignore_errors=True)


def backend_of(tokenizer: Tokenizer) -> str:
    """The tokenizer as its library's JSON, cutting and padding nothing; empty where the library alone does not give
    its ids: one written in Python, or a class that does something of its own."""
    own = type(tokenizer)
    fast = next((one for one in own.__mro__ if one.__module__ == "transformers.tokenization_utils_tokenizers"), None)
    if fast is None or any(getattr(own, name) is not getattr(fast, name) for name in ("__call__", "_encode_plus")):
        return ""
    described = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    return json.dumps(described, ensure_ascii=False)


def _begin(building: Path, texts: Path, asked: Tokens) -> None:
    """The folder with what its workers need; pieces that lie in it are kept where they are of the same build."""
    manifest = json.loads((texts / "manifest.json").read_text(encoding="utf-8"))
    plan = {
        "layout": LAYOUT,
        "content": manifest["content"],
        "tokenizer": asked.name,
        "piece": PIECE,
        "dtype": asked.dtype.str,
        "writing": list(asked.writing),
        "split_special_tokens": bool(getattr(asked.tokenizer, "split_special_tokens", False)),
    }
    path, text = building / "plan.json", json.dumps(plan, indent=1) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    (building / "tokenizer.json").write_text(backend_of(asked.tokenizer), encoding="utf-8")
    path.write_text(text, encoding="utf-8")


def _missing(building: Path, n_passages: int, dtype: np.dtype) -> list[int]:
    """The pieces that are not there as they were written."""
    numbers = range(n_pieces(n_passages))
    with progress("looking through the pieces", "pieces", brief=True) as told:
        missing = list[int]()
        for number in numbers:
            if not piece_path(building, number).exists() or read_piece(building, number, n_passages, dtype) is None:
                missing.append(number)
            elif len(numbers) > len(missing):
                told(number + 1, len(numbers))
    return missing


def _write_pieces(
    building: Path, texts: Path, corpus: Texts, asked: Tokens, missing: Sequence[int], processes: int
) -> None:
    total = sum(len(rows_of(number, len(corpus))) for number in missing)
    processes = min(processes, MOST, len(missing))
    reader = Path(asked.tokenizer.name_or_path).name or type(asked.tokenizer).__name__
    with progress(f"tokenising the corpus for {reader}", "passages") as told:
        told(0, total)
        done = 0
        if processes > 1 and len(missing) >= FEWEST and (building / "tokenizer.json").stat().st_size:
            for n in _by_workers(building, texts, missing, processes):
                done += n
                told(done, total)
            return
        with _parallel_tokenizers():
            for number in missing:
                n = 0
                for n in write_piece(
                    building, number, corpus, asked.writing, lambda some: token_ids(asked.tokenizer, some), asked.dtype
                ):
                    told(done + n, total)
                done += n


def _by_workers(building: Path, texts: Path, numbers: Sequence[int], processes: int) -> Iterator[int]:
    """Passages that have become done, as they do. OpenBookError where a worker dies: which, and its last words."""
    left, news, lock = iter(numbers), SimpleQueue[int](), Lock()

    def serve() -> None:
        with tempfile.TemporaryFile("w+") as said, _worker(building, texts, said) as worker:
            assert worker.stdin and worker.stdout
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                before, word = 0, ""
                with suppress(BrokenPipeError):  # a dead one is found at the next line
                    worker.stdin.write(f"{number}\n")
                    worker.stdin.flush()
                while (word := worker.stdout.readline().strip()).isdigit():
                    news.put(int(word) - before)
                    before = int(word)
                if word != "piece":
                    said.seek(0)
                    got = said.read().strip().splitlines()[-1:] or [f"exit code {worker.wait()}"]
                    action = "What is done is kept: start again, perhaps with a smaller data.build_processes."
                    raise OpenBookError("a process that tokenises the corpus has died", got=got[0], action=action)

    with ThreadPoolExecutor(processes) as pool:
        served = [pool.submit(serve) for _ in range(processes)]
        try:
            while not all(one.done() for one in served) and not any(one.done() and one.exception() for one in served):
                with suppress(Empty):
                    yield news.get(timeout=0.2)
        finally:
            with lock:
                left = iter(())  # the others end with the piece that they are at
    for one in served:
        one.result()
    while not news.empty():
        yield news.get()


@contextmanager
def _worker(building: Path, texts: Path, said: IO[str] | IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    home = str(Path(str(openbook.__file__)).parent.parent)
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    one_thread = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "openbook.data.store.worker", str(building), str(texts)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
        env=os.environ | one_thread | {"PYTHONPATH": path},
    )
    try:
        yield worker
    finally:
        assert worker.stdin and worker.stdout
        with suppress(BrokenPipeError):
            worker.stdin.close()
        worker.wait()
        worker.stdout.close()


def _join(folder: Path, building: Path, n_passages: int, dtype: np.dtype) -> None:
    numbers, end = range(n_pieces(n_passages)), 0
    with (
        GrowingArray(folder / "flat.npy", dtype) as flat,
        GrowingArray(folder / "offsets.npy", np.dtype(np.int64)) as offsets,
        GrowingArray(folder / "title_lengths.npy", np.dtype(np.int32)) as titles,
        progress("joining token ids", "passages", brief=True) as told,
    ):
        offsets.append(np.zeros(1, np.int64))
        for number in numbers:
            piece = read_piece(building, number, n_passages, dtype)
            if piece is None:
                piece_path(building, number).unlink(missing_ok=True)
                action = "Start again: the others are kept. If it comes again, look at the disk."
                raise OpenBookError("a piece of the corpus is not as it was written", where=building, action=action)
            title_lengths, lengths, ids = piece
            ends = end + np.cumsum(lengths, dtype=np.int64)
            end = int(ends[-1])
            titles.append(title_lengths)
            offsets.append(ends)
            flat.append(ids)
            told(rows_of(number, n_passages).stop, n_passages)


@contextmanager
def _parallel_tokenizers() -> Iterator[None]:
    """Let the tokenizer use all cores, unless the user has decided; afterwards as before."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ.setdefault(name, "true")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
