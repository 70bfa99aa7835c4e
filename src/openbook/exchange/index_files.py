"""The index for other programs: FAISS's own file, the id of each of its vectors, and a data set of the passages.

index.faiss      faiss.read_index; inner product, searched with embeddings of the question encoder
ids.txt          line n, counted from 0, is the passage id of FAISS's number n
passages.jsonl   id, title and text of each passage, in the order of ids.txt
dataset/         title, text and embeddings as `datasets` keeps them, for transformers' RagRetriever
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from openbook.data.corpus import Corpus
from openbook.errors import OpenBookError
from openbook.index.shard_index import ShardIndex

_CHUNK = 1024  # passages at once


def write_index(index: ShardIndex, corpus: Corpus, folder: Path) -> np.ndarray:
    """index.faiss, ids.txt and passages.jsonl; returns the row [n_passages] of each of FAISS's numbers. The index is of
    one rank and holds every passage."""
    if index.n_passages != len(corpus):
        raise OpenBookError("the index has other passages", got=f"{index.n_passages:,}", expected=f"{len(corpus):,}")
    folder.mkdir(parents=True, exist_ok=True)
    rows = index.write_file(folder / "index.faiss")
    with (
        open(folder / "ids.txt", "w", encoding="utf-8", newline="\n") as ids,
        open(folder / "passages.jsonl", "w", encoding="utf-8", newline="\n") as passages,
    ):
        for row in rows.tolist():
            one = corpus.passage(row)
            if one.id.splitlines() != [one.id]:
                raise OpenBookError("a passage id is no single line", where="data.corpus", got=repr(one.id))
            ids.write(one.id + "\n")
            text = {"id": one.id, "title": one.title, "text": one.text}
            passages.write(json.dumps(text, ensure_ascii=False) + "\n")
    return rows


def has_datasets() -> bool:
    return find_spec("datasets") is not None


def write_dataset(
    embeddings: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, corpus: Corpus, folder: Path
) -> None:
    """The passages at these rows, in their order, as a folder of `datasets`. embeddings: rows [n] -> [n, dim] fp32."""
    import datasets

    def examples() -> Iterator[dict[str, Any]]:
        for start in range(0, len(rows), _CHUNK):
            some = rows[start : start + _CHUNK]
            for one, vector in zip(corpus.passages(some), embeddings(some), strict=True):
                yield {"title": one.title, "text": one.text, "embeddings": vector}

    kinds = {"title": datasets.Value("string"), "text": datasets.Value("string")}
    kinds["embeddings"] = datasets.List(datasets.Value("float32"))
    with TemporaryDirectory(dir=folder.parent) as cache, _without_bars(datasets):
        made = datasets.Dataset.from_generator(
            examples, features=datasets.Features(kinds), cache_dir=cache, fingerprint=corpus.fingerprint[:32]
        )
        made.save_to_disk(str(folder))


@contextmanager
def _without_bars(library: Any) -> Iterator[None]:
    """Without the progress bars of `datasets`, which are put back afterwards."""
    before = library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            library.enable_progress_bars()
