"""Another program that reads the index file and its ids finds what a search here finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from openbook.data.corpus import Corpus
from openbook.data.corpus_build import build_corpus
from openbook.errors import OpenBookError
from openbook.exchange.index_files import has_datasets, write_dataset, write_index
from openbook.index.flat_gpu import FlatOnGpu
from openbook.index.shard_index import IndexOptions, ShardIndex

N, DIM, TOP_K = 37, 13, 5


@pytest.fixture
def corpus(small_data: Path, tmp_path: Path) -> Corpus:
    return build_corpus(small_data / "passages.jsonl", {}, tmp_path / "cache")


def vectors_and_queries() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    return draw.standard_normal((N, DIM), np.float32), draw.standard_normal((7, DIM), np.float32)


def filled(factory: str, vectors: np.ndarray) -> ShardIndex:
    index = ShardIndex(DIM, N, IndexOptions(factory, nprobe=3))
    if index.n_to_train_on:
        index.train(vectors[: index.n_to_train_on])
    order = np.random.default_rng(4).permutation(N)  # as refreshes write: by length, not by row
    for rows in np.array_split(order, 3):
        index.write(rows, vectors[rows])
    return index.finish()


@pytest.mark.parametrize("factory", ["Flat", "SQfp16", "IVF3,Flat", "HNSW8"])
def test_search_results_are_ours(factory: str, corpus: Corpus, tmp_path: Path) -> None:
    vectors, queries = vectors_and_queries()
    index = filled(factory, vectors)
    rows = write_index(index, corpus, tmp_path / "index")
    scores, places = faiss.read_index(str(tmp_path / "index/index.faiss")).search(queries, TOP_K)
    ids = (tmp_path / "index/ids.txt").read_text().splitlines()
    ours, our_rows = index.search(queries, TOP_K)
    assert [[ids[place] for place in row] for row in places] == [
        [one.id for one in corpus.passages(row)] for row in our_rows
    ]
    np.testing.assert_allclose(scores, ours, rtol=1e-5, atol=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "index/passages.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ids
    assert lines[3]["text"] == corpus.passage(int(rows[3])).text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_index_of_a_gpu_comes_as_one_of_the_cpu(dtype: torch.dtype) -> None:
    vectors, queries = vectors_and_queries()
    storage = FlatOnGpu(DIM, N, dtype, 64, torch.device("cpu"))
    storage.write(np.arange(N), vectors)
    made, rows = storage.as_faiss()
    scores, places = made.search(queries, TOP_K)
    ours, our_rows = storage.search(torch.from_numpy(queries), TOP_K)
    np.testing.assert_array_equal(rows[places], our_rows)
    np.testing.assert_allclose(scores, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["p3\n", "p\u20283", "\np3"])
def test_an_id_that_is_no_line_is_refused(name: str, corpus: Corpus, tmp_path: Path) -> None:
    passage, index = corpus.passage, filled("Flat", vectors_and_queries()[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "passage", lambda row: replace(passage(row), id=name) if row == 3 else passage(row))
        with pytest.raises(OpenBookError, match=r"a passage id is no single line \(data\.corpus\)"):
            write_index(index, corpus, tmp_path)


def test_an_index_of_other_passages_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match="other passages: got 36, expected 37"):
        write_index(ShardIndex(DIM, N - 1), corpus, tmp_path)


def test_the_data_set_has_titles_texts_and_embeddings(corpus: Corpus, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    assert has_datasets()
    vectors, _ = vectors_and_queries()
    rows = np.random.default_rng(5).permutation(N)
    write_dataset(lambda some: vectors[some], rows, corpus, tmp_path / "dataset")
    loaded = datasets.load_from_disk(str(tmp_path / "dataset"))
    np.testing.assert_array_equal(np.array(loaded["embeddings"], dtype=np.float32), vectors[rows])
    passages = corpus.passages(rows)
    assert (list(loaded["title"]), list(loaded["text"])) == ([p.title for p in passages], [p.text for p in passages])
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "dataset"}
