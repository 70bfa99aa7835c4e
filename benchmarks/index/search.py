"""Search of the index families at several sizes, and the exact one beside FAISS as it comes.

    python -m benchmarks.index.search [--out FILE] [--quick] [--million]

The vectors and questions of `benchmarks.index.families`: clustered synthetic ones of dim 384, 32 questions at a time,
top 10. Families are searched through a ShardIndex as a training step searches them, scores summed again in fp64.
FAISS's flat index is searched bare, with its own default of when to multiply by BLAS (`faiss`) and with BLAS always
(`faiss_blas`).
One round searches with all of them in turn, each round for other questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import faiss
import numpy as np
import torch

from benchmarks.common import synthetic
from benchmarks.common.figures import Value, finish, median, options
from benchmarks.common.system import now, prepare_machine
from benchmarks.index.families import ASKED, DIM, TOP_K, built, questions
from openbook.index.shard_index import shipped_blas_threshold
from openbook.refresh.drift import overlap_at_k

ALWAYS = 1
"""FAISS multiplies by BLAS at once."""

Search = Callable[[np.ndarray], np.ndarray]
"""Questions [n, DIM] -> rows [n, TOP_K]."""


@contextmanager
def blas_from(queries_times_dim: int) -> Iterator[None]:
    """FAISS multiplies by BLAS from so much on, inside the block."""
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = queries_times_dim
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def factories(n: int) -> dict[str, str]:
    """Names of families in the figures and their factory strings; no graph of a million, which takes minutes."""
    lists = 4 * 2 ** round(np.log2(n) / 2 - 0.5)  # 256 for 10,000, 1024 for 100,000, 2048 for 1,000,000
    found = {"flat": "Flat", "sqfp16": "SQfp16", "ivf": f"IVF{lists},Flat"}
    return found if n > 100_000 else found | {"hnsw": "HNSW32"}


def bare(index: faiss.Index, threshold: int) -> Search:
    def search(asked: np.ndarray) -> np.ndarray:
        with blas_from(threshold):
            return index.search(asked, TOP_K)[1]

    return search


def in_turns(sides: dict[str, Search], asked: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Every side's rows for all questions, and its seconds for ASKED of them in each round; one round goes before."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for search in sides.values():
        search(asked[:ASKED])
    for start in range(0, len(asked), ASKED):
        for name, search in sides.items():
            part = asked[start : start + ASKED]
            started = now()
            found = search(part)
            seconds[name].append(now() - started)
            rows[name].append(found)
    return {name: np.concatenate(found) for name, found in rows.items()}, seconds


def exact_rows(vectors: np.ndarray, asked: np.ndarray) -> torch.Tensor:
    """[n, TOP_K] by inner products in fp64, without any index."""
    wanted = torch.from_numpy(asked).double()
    scores, rows = torch.empty(len(asked), 0, dtype=torch.float64), torch.empty(len(asked), 0, dtype=torch.int64)
    for start in range(0, len(vectors), 8192):
        found = wanted @ torch.from_numpy(vectors[start : start + 8192]).double().T
        scores, kept = torch.cat([scores, found], 1).topk(TOP_K)
        places = torch.arange(start, start + found.shape[1]).expand(len(asked), -1)
        rows = torch.cat([rows, places], 1).gather(1, kept)
    return rows


def at_size(n: int, rounds: int) -> dict[str, Value]:
    vectors = synthetic.embeddings(n, DIM)
    asked = questions(vectors, ASKED * rounds).astype(np.float32)
    plain = faiss.IndexFlatIP(DIM)
    plain.add(vectors)
    sides = {"faiss": bare(plain, shipped_blas_threshold()), "faiss_blas": bare(plain, ALWAYS)}
    found: dict[str, Value] = {}
    for name, factory in factories(n).items():
        index, found[f"search.{name}.{n}.build_seconds"] = built(factory, vectors)
        sides[name] = lambda part, index=index: index.search(part, TOP_K)[1]
    rows, seconds = in_turns(sides, asked)
    exact = exact_rows(vectors, asked)
    for name in sides:
        found |= {
            f"search.{name}.{n}.seconds": median(seconds[name]),
            f"search.{name}.{n}.slowest_seconds": max(seconds[name]),
            f"search.{name}.{n}.recall": overlap_at_k(exact, torch.from_numpy(rows[name])),
        }
    for name, key in (("faiss", "speedup_faiss"), ("faiss_blas", "speedup_faiss_blas")):
        ratios = [theirs / ours for theirs, ours in zip(seconds[name], seconds["flat"], strict=True)]
        found |= {f"search.flat.{n}.{key}": median(ratios), f"search.flat.{n}.{key}_least": min(ratios)}
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--million", action="store_true", help="also 1,000,000 passages: 6 GiB, some minutes")
    asked = parser.parse_args()
    prepare_machine()
    figures: dict[str, Value] = {"search.questions": ASKED, "search.dim": DIM}
    sizes = (3_000,) if asked.quick else (10_000, 100_000, *((1_000_000,) if asked.million else ()))
    for n in sizes:
        figures |= at_size(n, 3 if asked.quick else 15)
    if 100_000 in sizes:
        figures["search.flat.speedup_faiss"] = figures["search.flat.100000.speedup_faiss"]
    finish(asked, figures)


if __name__ == "__main__":
    main()
