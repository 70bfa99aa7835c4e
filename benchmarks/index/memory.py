"""Memory and time of building, searching and swapping an index: a million synthetic passages through the real code.

    python -m benchmarks.index.memory [--out FILE] [--quick]

Each case runs in a fresh process of its own (`--case`). Its memory is counted from when libraries, corpus and encoder
are in place and a small index has been built, searched and refreshed, so that what they take for themselves is not laid
at the index's door.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch

from benchmarks.common import synthetic
from benchmarks.common.figures import Value, finish, median, options
from benchmarks.common.system import now, prepare_machine, seconds_of
from openbook.index.plan import PLANNING_PASSES, Plan
from openbook.index.shard_index import IndexOptions
from openbook.refresh.manager import RefreshManager
from openbook.refresh.rebuild import Rebuild
from openbook.retrieval.dense import DenseRetriever
from openbook.utils.host_memory import current_memory, peak_memory, reset_peak_memory

DIM = 384
EVERY, SPREAD = 20, 10  # steps
ASKED, TOP_K = 32, 10


@dataclass(frozen=True)
class Case:
    """What one process measures. swaps: refreshes one after another, of which the first is measured most closely."""

    factory: str
    mode: str
    n: int
    swaps: int = 1


@dataclass(frozen=True)
class Measured:
    """Bytes and seconds. peak: the most that was held during refreshes, beyond what there was before any index. growth:
    what the last swap left more than the tenth did (0 with fewer). planned: Plan.ram_at_swap."""

    index: int
    peak: int
    growth: int
    planned: int
    build_seconds: float
    refresh_seconds: float
    swap_seconds: float
    search_seconds: float


def measured(case: Case) -> Measured:
    """The case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.index.memory", "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case} failed:\n{done.stdout}{done.stderr}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def run(case: Case) -> Measured:
    """Build, search, refresh; the peak is that of the refresh. Called once in a process."""
    prepare_machine()
    family = IndexOptions(case.factory)
    give_back()
    _refreshed(*synthetic.system(3000, DIM, family, case.mode, EVERY, SPREAD), swaps=1)
    retriever, manager = synthetic.system(case.n, DIM, family, case.mode, EVERY, SPREAD)
    asked = retriever.question_encoder(torch.from_numpy(synthetic.questions(case.n, ASKED)), None).detach()  # type: ignore[arg-type]
    gc.collect()
    before = _held(current_memory())

    started = now()
    manager.prepare(retriever, 0)
    build_seconds = now() - started
    searching = []
    for _ in range(5):
        started = now()
        retriever.search(asked, TOP_K)
        searching.append(now() - started)

    reset_peak_memory()
    refreshing, swapping, held = _refreshed(retriever, manager, case.swaps)
    peak = _held(peak_memory()) - before
    assert retriever.snapshot is not None
    encoder_bytes = sum(4 * value.numel() for value in retriever.passage_encoder.state_dict().values())
    plan = Plan(
        case.n,
        DIM,
        case.factory,
        case.mode,
        every=EVERY,
        refresh_share=1.0,
        encoder_bytes=encoder_bytes,
        bookkeeping=PLANNING_PASSES,
    )  # type: ignore[arg-type]
    growth = held[-1] - held[min(9, len(held) - 1)]
    return Measured(
        retriever.snapshot.index.nbytes,
        peak,
        growth,
        plan.ram_at_swap,
        build_seconds,
        median(refreshing),
        median(swapping),
        median(searching),
    )


def _refreshed(
    retriever: DenseRetriever, manager: RefreshManager, swaps: int
) -> tuple[list[float], list[float], list[int]]:
    """So many whole refreshes by after_step alone: seconds of each, seconds of what is no encoding in each, and the
    memory held after each. Weights drift at every step."""
    manager.prepare(retriever, 0)
    refreshing, swapping, held = [], [], []
    in_place = manager.options.in_place
    step = 0
    for _ in range(swaps):
        generation, started = manager.generation, now()
        with seconds_of(Rebuild, "finish") as finishing:
            while manager.generation == generation:
                retriever.passage_encoder.model.drift()  # type: ignore[operator]
                step += 1
                manager.after_step(retriever, step)
        refreshing.append(now() - started)
        swapping.append(0.0 if in_place else sum(finishing))
        held.append(_held(current_memory()))
    return refreshing, swapping, held


def give_back() -> None:
    """Return what importing has freed to the system, where the allocator can be told to: an index built in it would
    seem to cost nothing. What the libraries still use is taken again by the small index that follows."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _held(memory: int | None) -> int:
    if memory is None:
        raise SystemExit("this system does not say how much memory a process holds")
    return memory


def figures(n: int, small: int, swaps: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    flat = measured(Case("Flat", "blocking", n))
    for key, case in {
        "swap": flat,
        "swap.amortized": measured(Case("Flat", "amortized", n)),
        "swap.sqfp16": measured(Case("SQfp16", "blocking", n)),
    }.items():
        found[f"{key}.memory_ratio"] = case.peak / (2 * case.index)
        found[f"{key}.seconds"] = case.swap_seconds
    for key, case in {
        "rolling": measured(Case("Flat", "rolling", n)),
        "rolling.sqfp16": measured(Case("SQfp16", "rolling", n)),
    }.items():
        found[f"{key}.memory_ratio"] = case.peak / case.index
    found["swap.growth_after_100_mib"] = measured(Case("Flat", "blocking", small, swaps)).growth / 2**20
    return found | {
        "million.passages": n,
        "million.build_seconds": flat.build_seconds,
        "million.search_seconds_per_32": flat.search_seconds,
        "million.refresh_seconds": flat.refresh_seconds,
        "million.swap_seconds": flat.swap_seconds,
        "million.peak_gib": flat.peak / 2**30,
        "million.planned_gib": flat.planned / 2**30,
        "million.peak_of_planned": flat.peak / flat.planned,
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--case", help="measure one case here and print it as JSON")
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(asdict(run(Case(**json.loads(asked.case))))))
        return
    finish(asked, figures(60_000, 3_000, 12) if asked.quick else figures(1_000_000, 20_000, 100))


if __name__ == "__main__":
    main()
