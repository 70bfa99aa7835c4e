"""The plan's arithmetic by hand, what it refuses and what it proposes instead, and its two measurements by a made-up
clock."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from openbook.data.corpus import PassageTokens
from openbook.data.encoder_inputs import separated
from openbook.data.inputs import SpecialIds
from openbook.data.length_batches import plan_passes
from openbook.errors import OpenBookError
from openbook.index.plan import Plan, sizes, times
from openbook.index.plan_fit import check_fits
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.setup.resources import plan as planning
from openbook.setup.resources.plan import time_encoding, time_step
from openbook.utils.host_memory import current_memory

GIB = 1 << 30
SMALL = Plan(n_passages=1009, dim=16, slice_passages=100)
WIKIPEDIA = Plan(n_passages=21_015_324, dim=768)
FLAT, SLICE = 64_576, 6_400  # 1009 x 16 x 4 and 100 x 16 x 4


def refusal(plan: Plan, ram: int | None = None, gpu: int | None = None, disk: int | None = None) -> str:
    with pytest.raises(OpenBookError) as caught:
        check_fits(plan, ram, gpu, disk)
    return str(caught.value)


@pytest.mark.parametrize(
    ("mode", "ram"),
    [("blocking", 2 * FLAT + SLICE), ("amortized", 2 * FLAT + SLICE), ("rolling", FLAT + SLICE), ("hot", FLAT + SLICE)],
)
def test_old_and_new_index_at_the_swap_or_one_in_place(mode: Any, ram: int) -> None:
    plan = replace(SMALL, mode=mode)
    assert plan.bytes_index == FLAT
    assert plan.ram_at_swap == ram
    assert replace(plan, encoder_bytes=777).ram_at_swap == ram + 777
    assert replace(plan, encoder_bytes=777, models_on="gpu").ram_at_swap == ram
    assert plan.gpu_at_swap == 0
    assert replace(plan, trains=False).ram_at_swap == FLAT + SLICE


def test_planning_the_passes_takes_memory_too() -> None:
    assert replace(SMALL, bookkeeping=64).ram_at_swap == SMALL.ram_at_swap + 1009 * 64


def test_the_largest_shard_of_the_ranks_counts() -> None:
    plan = replace(SMALL, world_size=3)
    assert plan.n_shard == 337
    assert plan.ram_at_swap == 2 * 337 * 64 + SLICE
    assert replace(plan, world_size=1009).ram_at_swap == 3 * 64  # one passage; a slice is no more than the shard


@pytest.mark.parametrize(
    ("factory", "index", "ram"),
    [
        ("SQfp16", 32_288, 2 * 32_288 + SLICE),
        ("SQ8", 16_144, 2 * 16_144 + 2 * 256 * 64),  # learns ranges from 256 passages, which are there twice
        ("IVF4,PQ2", 18_162, 2 * 23_611 + 3 * FLAT),  # 2 + 8 + 8 bytes, 1.3 times as it grows; sample twice, residuals
        ("HNSW8", 1009 * (64 + 64 + 12 + 8), 2 * 194_132 + SLICE),  # 16 links of 4 bytes on the ground level
    ],
)
def test_families_cost_their_codes_and_what_they_learn_from(factory: str, index: int, ram: int) -> None:
    plan = replace(SMALL, factory=factory)
    assert plan.bytes_index == index
    assert plan.ram_at_swap == ram


def test_an_index_on_a_gpu_brings_its_working_memory() -> None:
    flat = replace(SMALL, device="gpu", gpu_temp_memory=1, encoder_bytes=777, models_on="gpu")
    assert flat.gpu_at_swap == 2 * FLAT + 1_048_576 + SLICE + 777
    assert flat.ram_at_swap == SLICE
    assert replace(flat, mode="rolling").gpu_at_swap == FLAT + 1_048_576 + SLICE + 777
    lists = replace(flat, factory="IVF4,Flat")  # 64 + 8 + 8 bytes; the new one may hold twice of it while it is filled
    assert lists.gpu_at_swap == 3 * 80_720 + 1_048_576 + 777
    assert lists.ram_at_swap == 2 * 8 * 1009 + 2 * FLAT


@pytest.mark.parametrize("factory", ["Flat", "SQfp16", "SQ8", "PQ4x4", "IVF7,Flat", "IVF300,PQ4", "HNSW8"])
def test_it_says_what_the_index_itself_says(factory: str) -> None:
    index, plan = ShardIndex(16, 1009, IndexOptions(factory)), replace(SMALL, factory=factory)
    assert plan.bytes_index == index.nbytes
    learning = 2 * index.n_to_train_on + (index.n_to_train_on if "PQ" in factory else 0)
    assert replace(plan, slice_passages=0).bytes_build == 64 * learning


TWO_INDEXES = """
import numpy as np
from openbook.index.shard_index import ShardIndex
from openbook.utils.host_memory import current_memory

before, snapshots = current_memory(), []
for _ in range(2):
    index = ShardIndex(97, 100_003)
    index.write(np.arange(101), np.ones((101, 97), dtype=np.float32))
    snapshots.append(index.finish())
    print(current_memory() - before)
"""


@pytest.mark.skipif(current_memory() is None, reason="memory in use is unknown here")
def test_the_memory_of_flat_indexes_is_what_was_planned() -> None:
    """In a process of its own: no memory that other tests have given back is there to be used again."""
    plan = Plan(100_003, 97, slice_passages=101)
    said = subprocess.run([sys.executable, "-c", TWO_INDEXES], capture_output=True, text=True, check=True).stdout
    for expected, measured in zip((plan.bytes_index, plan.ram_at_swap), said.split(), strict=True):
        assert abs(int(measured) - expected) < 0.1 * expected


def test_disk_is_vectors_kept_and_checkpoints() -> None:
    plan = replace(SMALL, keep_vectors=3, checkpoints=2, checkpoint_bytes=500, world_size=5)
    assert plan.disk == 3 * FLAT + 2 * 500
    assert replace(plan, mode="hot").disk == 3 * FLAT + 2 * (500 + FLAT)
    assert replace(plan, mode="hot", factory="SQfp16").disk == 2 * (500 + 32_288)  # only Flat keeps vectors
    assert replace(plan, mode="hot", trains=False).disk == 3 * FLAT + 2 * 500


def test_the_share_of_training_time() -> None:
    plan = replace(SMALL, every=40, step_seconds=0.5, refresh_seconds=5.0)
    assert plan.share == pytest.approx(5 / 25)
    assert replace(plan, mode="amortized").share == pytest.approx(5 / 25)
    assert replace(plan, mode="rolling", refresh_share=0.1).share == pytest.approx(0.5 / 20.5)
    assert replace(plan, every=0).share == 0.0
    assert replace(plan, every=None).share is None
    assert replace(plan, every=None, trains=False).share == 0.0
    assert SMALL.share == 0.0


def test_when_it_is_refreshed() -> None:
    plan = replace(SMALL, every=40, step_seconds=0.5, refresh_seconds=5.0)
    described = [
        times(replace(plan, every=every, trains=trains))["refresh"]
        for every, trains in ((40, True), (0, True), (None, True), (40, False))
    ]
    for text, line in zip(("every 40 steps;", "never;", "when stale;", "none, "), described, strict=True):
        assert text in line


def test_the_plan_in_words() -> None:
    plan = replace(WIKIPEDIA, refresh_seconds=22.4, step_seconds=0.7, keep_vectors=1)
    assert sizes(plan) | times(plan) == {
        "passages": "21,015,324 of dim 768",
        "index": "Flat, 60.1 GiB, searched on the CPU",
        "RAM": "120.3 GiB at the swap (old and new index, 12.0 MiB to build), without models and libraries",
        "disk": "60.1 GiB besides the corpus",
        "refresh": "blocking, every 30 steps; a full refresh takes 22 s (about 32 steps)",
        "training time": "52% spent refreshing; a step takes 0.7 s",
    }


def test_the_plan_of_several_ranks_in_words() -> None:
    plan = replace(
        WIKIPEDIA, world_size=8, device="gpu", mode="hot", refresh_share=0.1, every=None, refresh_seconds=5400
    )
    assert sizes(plan) | times(plan) == {
        "passages": "21,015,324 of dim 768; 8 ranks, at most 2,626,916 each",
        "index": "Flat, 7.5 GiB per rank, searched on the GPU",
        "RAM": "7.5 GiB per rank at the swap (12.0 MiB to build), without models and libraries",
        "GPU": "7.8 GiB per rank at the swap",
        "disk": "nothing besides the corpus",
        "refresh": "hot, 10% of the corpus when stale; a full refresh takes 1.5 h",
    }
    assert times(replace(plan, trains=False, refresh_seconds=2.04)) == {
        "refresh": "none, the passage encoder is frozen; encoding the corpus once takes 2 s"
    }


def test_what_fits_is_let_through() -> None:
    need = SMALL.ram_at_swap
    check_fits(SMALL, -(-need * 10 // 9), None, 0)
    check_fits(WIKIPEDIA, None, None, None)
    refusal(SMALL, ram=need * 10 // 9 - 1)
    refusal(replace(SMALL, ranks_per_node=2, world_size=2), ram=need)  # they share the node's RAM


# Twice 60.1 GiB; of 64 GiB 57.6 may be used, so that not even one Flat index fits.
@pytest.mark.parametrize(
    ("ram", "room", "fitting"),
    [
        (
            64,
            "57.6 GiB",
            "index.factory=SQfp16 refresh.mode=rolling (30.1 GiB of RAM); index.factory=SQ8 (30.1 GiB of "
            "RAM); index.factory=IVF16384,PQ96 (29.9 GiB of RAM).",
        ),
        (16, "14.4 GiB", "index.factory=IVF4096,PQ96 (11.9 GiB of RAM); trainer.nodes=9 (13.4 GiB of RAM)."),
        (8, "7.2 GiB", "index.factory=IVF2048,PQ48 (6.4 GiB of RAM); trainer.nodes=17 (7.1 GiB of RAM)."),
    ],
)
def test_wikipedia_does_not_fit_and_what_would(ram: int, room: str, fitting: str) -> None:
    assert refusal(WIKIPEDIA, ram=ram * GIB) == (
        "the index does not fit RAM (index.factory=Flat, refresh.mode=blocking, 21,015,324 passages of dim 768): "
        f"got 120.3 GiB of RAM, expected at most {room} (90% of what is free). What would fit: {fitting}"
    )


@pytest.mark.parametrize("ram", [100, 64, 16, 8])
@pytest.mark.parametrize("mode", ["blocking", "hot"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_proposed_does_fit(ram: int, mode: Any, ranks: int) -> None:
    plan = replace(WIKIPEDIA, mode=mode, world_size=ranks, ranks_per_node=ranks, encoder_bytes=GIB // 4)
    if mode == "hot" and ram == 100:
        check_fits(plan, ram * GIB, None, None)
        return
    proposed = refusal(plan, ram=ram * GIB).split("What would fit: ")[1]
    fields = {"index.factory": "factory", "refresh.mode": "mode"}
    for one in proposed.rstrip(".").split("; "):
        settings: dict[str, Any] = dict(word.split("=") for word in re.sub(r" \(.*\)", "", one).split())
        nodes = int(settings.pop("trainer.nodes", 1))
        changed = replace(plan, world_size=nodes * ranks, **{fields[key]: value for key, value in settings.items()})
        check_fits(changed, ram * GIB, None, None)
        if nodes > 1:
            refusal(replace(changed, world_size=(nodes - 1) * ranks), ram=ram * GIB)
    assert "SQ8 refresh.mode=rolling" not in proposed  # a family that learns cannot be replaced in place


def test_on_a_gpu_other_settings_fit() -> None:
    plan = replace(WIKIPEDIA, device="gpu")
    said = refusal(plan, ram=256 * GIB, gpu=80 * GIB)
    assert "got 120.5 GiB of GPU memory, expected at most 72.0 GiB (90% of what is free)." in said
    assert said.endswith(
        "What would fit: refresh.mode=rolling (60.1 GiB of RAM, 60.4 GiB on the GPU); index.factory=SQfp16 (12.0 MiB "
        "of RAM, 60.4 GiB on the GPU); index.device=cpu (120.3 GiB of RAM)."
    )
    # A GPU's shared memory holds the tables of 48 codes.
    assert "index.factory=IVF8192,PQ48 (" in refusal(plan, ram=16 * GIB, gpu=8 * GIB)


def test_a_frozen_encoder_is_not_told_to_refresh_otherwise() -> None:
    said = refusal(replace(WIKIPEDIA, trains=False), ram=64 * GIB)
    assert "got 60.1 GiB of RAM" in said
    assert "refresh.mode" not in said.split("What would fit: ")[1]


def test_when_nothing_fits_it_says_by_how_much() -> None:
    plan = replace(SMALL, encoder_bytes=GIB)
    said = refusal(plan, ram=GIB // 2)
    # 1 GiB of encoder against 0.45 GiB: the most nodes leave one passage each
    assert "No setting would fit: trainer.nodes=1023 comes nearest and lacks 563.2 MiB of RAM." in said


def test_a_disk_too_small() -> None:
    plan = replace(SMALL, keep_vectors=3)
    assert refusal(plan, disk=2 * FLAT + 9) == (
        "the index does not fit disk (index.factory=Flat, refresh.mode=blocking, 1,009 passages of dim 16): got 189.2 "
        "KiB of disk, expected at most 126.1 KiB. On disk: index.keep_vectors=2 (126.1 KiB) or a larger one "
        "(data.cache, run.dir)."
    )
    rolling = replace(plan, mode="rolling", checkpoints=1)
    assert "On disk: refresh.mode=amortized index.keep_vectors=0 (0 B) or" in refusal(rolling, disk=9)


def test_memory_and_disk_are_refused_as_one() -> None:
    said = refusal(replace(SMALL, keep_vectors=1), ram=100_000, disk=5)
    assert "does not fit RAM and disk" in said
    assert "What would fit: refresh.mode=rolling (69.3 KiB of RAM); " in said
    assert "On disk: index.keep_vectors=0 (0 B) or" in said


class Clock:
    """Time that passes only when something says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 0.0
        monkeypatch.setattr(planning.time, "perf_counter", lambda: self.now)


def tokens_of(lengths: np.ndarray) -> PassageTokens:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return PassageTokens(np.zeros(offsets[-1], dtype=np.uint16), offsets, np.ones(len(lengths), dtype=np.int32))


SPECIAL = separated(SpecialIds(start=1, sep=2, end=3, pad=0))


def coder(clock: Clock, tokens: PassageTokens, seen: list[int]) -> Callable[[np.ndarray], None]:
    """Attention: a token costs more in a longer passage; besides, every pass costs something. The first is slow."""

    def encode(rows: np.ndarray) -> None:
        length = min(int(tokens.lengths[rows[0]]) + 3, 113)
        clock.now += 1e-4 * len(rows) * length * (1 + length / 40) + 0.01 + (5.0 if not seen else 0.0)
        seen.extend(rows.tolist())

    return encode


@pytest.mark.parametrize("seed", range(5))
def test_a_refresh_is_predicted_from_a_sample_of_all_lengths(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    lengths = np.random.default_rng(seed).gamma(3.0, 20.0, 40_009).astype(np.int64) + 1
    clock, tokens, seen = Clock(monkeypatch), tokens_of(lengths), [0]
    read = np.minimum(lengths[7:40_000] + 3, 113)
    whole = 0.0
    for length in np.unique(read):
        n, most = int((read == length).sum()), 997 // int(length)
        whole += 1e-4 * n * length * (1 + length / 40) + 0.01 * -(-n // most)
    seen.clear()
    passes = [places + 7 for places in plan_passes(read, 997, seed)]
    of = np.array([read[one - 7].sum() for one in passes])
    predicted = time_encoding(coder(clock, tokens, seen), passes, of, seed=seed, seconds=3.0)
    assert predicted == pytest.approx(whole, rel=0.05)
    assert clock.now < 5 + 3.5  # the warm-up and about the seconds allowed
    assert min(seen) >= 7 and max(seen) < 40_000


def test_a_small_corpus_is_timed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, tokens = Clock(monkeypatch), tokens_of(np.array([20, 30, 30, 50]))
    passes = [np.array([1, 2]), np.array([3]), np.array([0])]
    predicted = time_encoding(coder(clock, tokens, []), passes, np.array([66, 53, 23]))
    assert predicted == pytest.approx(sum(1e-4 * n * k * (1 + k / 40) + 0.01 for n, k in ((1, 23), (2, 33), (1, 53))))
    assert time_encoding(coder(clock, tokens, []), [], np.empty(0)) == 0.0


def test_a_step_takes_the_median_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, durations = Clock(monkeypatch), iter([9.0, 8.0, 3.0, 1.0, 2.0])

    def step() -> None:
        clock.now += next(durations)
        torch.rand(3)

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert time_step(step, warm=2, timed=3) == 2.0
    assert torch.equal(torch.rand(3), expected)


def test_a_failed_step_leaves_the_random_state_too() -> None:
    def step() -> None:
        torch.rand(3)
        raise RuntimeError("no memory")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no memory"):
        time_step(step)
    assert torch.equal(torch.get_rng_state(), before)
