"""Index families side by side: time to build and to search, recall against exact search, bytes per passage.

    python -m benchmarks.index.families [--out FILE] [--quick]

Times and sizes on clustered synthetic vectors, whose questions are vectors near a passage's; recall there, and on the
embedded corpus with the questions of its validation split. Each family is built as a refresh builds it: what it learns
from first, then slices.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.common import synthetic
from benchmarks.common.figures import Value, finish, median, options
from benchmarks.common.system import now, prepare_machine, system
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.refresh.drift import overlap_at_k
from openbook.refresh.measure import StalenessProbe

DIM, TOP_K, ASKED, SLICE = 384, 10, 32, 4096
QUESTION_NOISE = 0.5
"""Length of what a question has beside its passage's direction, the passage's being 1."""


def factories(lists: int) -> tuple[str, ...]:
    """PQ…np: without np FAISS spends a second per code on sorting codewords for a kind of search that is not used."""
    return ("Flat", "SQfp16", "SQ8", f"IVF{lists},Flat", f"IVF{lists},PQ48np", "HNSW32")


def questions(vectors: np.ndarray, n: int, seed: int = 1) -> np.ndarray:
    """[n, dim] fp32 of length 1."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal((n, DIM), dtype=np.float32)
    noise *= QUESTION_NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    near = vectors[random.integers(len(vectors), size=n)] + noise
    return near / np.linalg.norm(near, axis=1, keepdims=True)


def built(factory: str, vectors: np.ndarray) -> tuple[ShardIndex, float]:
    """The index and the seconds it took."""
    started = now()
    index = ShardIndex(DIM, len(vectors), IndexOptions(factory))
    order = np.random.default_rng(0).permutation(len(vectors))
    if index.n_to_train_on:
        index.train(vectors[np.sort(order[: index.n_to_train_on])])
    for start in range(0, len(order), SLICE):
        rows = order[start : start + SLICE]
        index.write(rows, vectors[rows])
    return index.finish(), now() - started


def searched(index: ShardIndex, asked: np.ndarray) -> tuple[np.ndarray, float]:
    """Rows [n, TOP_K] of all questions, and the median seconds for ASKED of them at a time."""
    index.search(asked[:ASKED], TOP_K)
    rows, seconds = [], []
    for start in range(0, len(asked), ASKED):
        started = now()
        rows.append(index.search(asked[start : start + ASKED], TOP_K)[1])
        seconds.append(now() - started)
    return np.concatenate(rows), median(seconds)


def on_synthetic(n: int, lists: int, n_questions: int) -> dict[str, Value]:
    vectors = synthetic.embeddings(n, DIM)
    asked = questions(vectors, n_questions)
    found: dict[str, Value] = {"family.passages": n, "family.questions": n_questions}
    exact = np.empty(0)
    for factory in factories(lists):
        index, build_seconds = built(factory, vectors)
        rows, search_seconds = searched(index, asked)
        exact = rows if factory == "Flat" else exact
        found |= {
            f"family.{factory}.build_seconds": build_seconds,
            f"family.{factory}.search_ms_per_32": 1000 * search_seconds,
            f"family.{factory}.recall_at_10": overlap_at_k(torch.from_numpy(exact), torch.from_numpy(rows)),
            f"family.{factory}.bytes_per_passage": index.nbytes / n,
        }
        print(f"{factory}: built in {build_seconds:.1f} s")
    return found


def on_corpus(quick: bool, lists: int, n_questions: int) -> dict[str, Value]:
    """Recall alone: the corpus is too small for times to say anything."""
    on = system(quick)
    on.manager.ensure(on.retriever, 0)
    assert on.retriever.snapshot is not None
    vectors = on.retriever.snapshot.index.vectors(np.arange(on.manager.corpus.n_passages))
    probe = StalenessProbe(on.questions.probe_questions(n_questions), on.manager.corpus, TOP_K)
    asked = probe.embed(on.retriever).numpy()
    exact = searched(built("Flat", vectors)[0], asked)[0]
    found: dict[str, Value] = {"family.corpus.passages": len(vectors), "family.corpus.questions": len(asked)}
    for factory in factories(lists):
        rows = searched(built(factory, vectors)[0], asked)[0]
        overlap = overlap_at_k(torch.from_numpy(exact), torch.from_numpy(rows))
        found[f"family.corpus.{factory}.recall_at_10"] = overlap
    return found


def main() -> None:
    asked = options(__doc__).parse_args()
    prepare_machine()
    if asked.quick:
        finish(asked, on_synthetic(6_000, 32, 64) | on_corpus(True, 16, 64))
    else:
        finish(asked, on_synthetic(200_000, 512, 512) | on_corpus(False, 64, 512))


if __name__ == "__main__":
    main()
