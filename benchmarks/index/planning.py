"""Cutting a corpus into forward passes, and telling apart what a family learns from: seconds by the number of passages.

    python -m benchmarks.index.planning [--quick]

Lengths are drawn as passages of 100 words have them. Both are done once per refresh on each rank; linear in the corpus.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from openbook.data.length_batches import plan_passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    sizes = (100_000, 300_000) if parser.parse_args().quick else (100_000, 300_000, 1_000_000, 3_000_000, 21_000_000)
    for n in sizes:
        lengths = np.clip(np.random.default_rng(0).normal(130, 25, n), 20, 256).astype(np.int64)
        started = time.process_time()
        passes = plan_passes(lengths, 4096)
        planned = time.process_time() - started
        learns_from = np.zeros(n, dtype=bool)
        learns_from[: min(n, 65536)] = True
        started = time.process_time()
        n_seen = sum(int(learns_from[rows].sum()) for rows in passes)
        filled = time.process_time() - started
        assert n_seen == min(n, 65536)
        print(
            f"{n:>11,} passages, {len(passes):>9,} passes: planned in {planned:6.2f} s, told apart in {filled:6.2f} s"
        )


if __name__ == "__main__":
    main()
