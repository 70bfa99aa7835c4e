"""Gloo processes that each hold a shard of the corpus answer as one process that holds all of it, bit for bit."""

from __future__ import annotations

import multiprocessing
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist

from openbook.batch import MISSING_ROW
from openbook.errors import OpenBookError
from openbook.index.faiss_factory import use_threads
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.utils.distributed import (
    RankError,
    any_rank,
    exchange_rows,
    from_rank_zero,
    gather_objects,
    gather_rows,
    raise_if_any_rank_failed,
    raise_on_all_ranks,
    shard,
    shards_on_rank_zero,
    sum_over_ranks,
)
from tests.references import search

N_PASSAGES, DIM, TOP_K = 211, 13, 7
COUNTS = (11, 0, 5, 3)  # questions that each rank brings
SECONDS = 60

Ranks = list[dict[str, Any]]

random = np.random.default_rng(0)
DISTINCT = random.standard_normal((N_PASSAGES, DIM)).astype(np.float32)
EQUAL = DISTINCT[random.integers(0, 29, N_PASSAGES)]  # 29 passages, each about seven times, in all shards
QUESTIONS = torch.from_numpy(random.standard_normal((sum(COUNTS), DIM)).astype(np.float32))

SEARCHES = {  # name: passages, factory, top_k, nprobe
    "Flat": (DISTINCT, "Flat", TOP_K, 1),
    "Flat, ties": (EQUAL, "Flat", TOP_K, 1),
    "Flat, more than there are": (EQUAL, "Flat", N_PASSAGES + 2, 1),
    "Flat, one": (EQUAL, "Flat", 1, 1),
    "Flat, three passages": (DISTINCT[:3], "Flat", TOP_K, 1),
    "Flat, no passages": (DISTINCT[:0], "Flat", TOP_K, 1),
    "SQfp16": (DISTINCT, "SQfp16", TOP_K, 1),
    "SQfp16, ties": (EQUAL, "SQfp16", TOP_K, 1),
    "IVF, deep": (DISTINCT, "IVF5,Flat", TOP_K, 5),
    "IVF, shallow": (DISTINCT, "IVF23,Flat", 41, 1),
}
BITWISE = [name for name in SEARCHES if "IVF" not in name]


def snapshot(name: str, rank: int = 0, world_size: int = 1) -> Snapshot:
    passages, factory, _, nprobe = SEARCHES[name]
    rows = shard(len(passages), rank, world_size)
    mine = passages[rows.start : rows.stop]
    index = ShardIndex(DIM, len(mine), IndexOptions(factory, nprobe=nprobe))
    if index.n_to_train_on:
        index.train(mine[: index.n_to_train_on])
    index.write(np.arange(len(mine)), mine)
    return Snapshot(index.finish(), 0, "", "", len(passages), rows.start)


def questions_of(rank: int) -> slice:
    return slice(sum(COUNTS[:rank]), sum(COUNTS[: rank + 1]))


def raised_by(*failing: int, rank: int) -> str:
    try:
        with raise_on_all_ranks():
            if rank in failing:
                raise FloatingPointError(f"of rank {rank}")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def answers(rank: int, world_size: int) -> dict[str, Any]:
    """All that one rank can say, computed together with the others."""
    said: dict[str, Any] = {}
    for name, (_, _, top_k, _) in SEARCHES.items():
        whole = snapshot(name, rank, world_size)
        found = whole.search(QUESTIONS[questions_of(rank)], top_k)
        said[name] = found.rows, found.index_scores
        said[f"nobody asks, {name}"] = whole.search(QUESTIONS[:0], top_k).rows
    diverged = QUESTIONS[:1] * (torch.nan if rank == world_size - 1 else 1)
    try:
        snapshot("Flat", rank, world_size).search(diverged, TOP_K)
    except OpenBookError as error:
        said["diverged"] = str(error)

    own = 100 * rank + torch.arange(COUNTS[rank])
    gathered, counts = gather_rows(own)
    said["gather_rows"] = gathered, counts
    said["gather_rows, of nobody"] = gather_rows(torch.zeros(0, 3, dtype=torch.float16))
    said["gather_rows, wide"] = gather_rows(own[:, None, None].double().expand(-1, 2, 3))[0]
    said["exchange_rows"] = exchange_rows(torch.stack([gathered, torch.full_like(gathered, rank)], 1), counts)
    for n in (211, 3, 0):
        codes = np.arange(n * 5, dtype=np.uint8).reshape(n, 5)
        said[f"shards_on_rank_zero, {n}"] = shards_on_rank_zero(codes[shard(n, rank, world_size)], n)
    last = world_size - 1
    said["together"] = [raised_by(*failing, rank=rank) for failing in [(), (last,), (0,), (0, last)]]
    try:
        raise_if_any_rank_failed(KeyError("key") if rank == last else None)
    except (KeyError, OpenBookError) as error:
        said["raise_if_any_rank_failed"] = repr(error)
    said["any_rank"] = any_rank(rank == last), any_rank(False)
    said["gather_objects"] = gather_objects({"rank": rank})
    said["from_rank_zero"] = from_rank_zero(f"from {rank}")
    value = torch.tensor([rank + 1.0])
    said["sum_over_ranks"] = sum_over_ranks(value), value
    return said


def one_rank(rank: int, world_size: int, folder: Path) -> None:
    """What one process does: its answers go to a file, or how it failed."""
    torch.set_num_threads(1)
    use_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meeting",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=SECONDS),
        )
        torch.save(answers(rank, world_size), folder / f"{rank}.pt")
        dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.failed").write_text(traceback.format_exc())
        raise


@pytest.fixture(scope="module", params=[1, 2, 3, 4], ids="{}_ranks".format)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """The answers of each rank. The processes come from a server that has imported torch and FAISS once."""
    world_size, folder = request.param, tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openbook.index.snapshot"])
    processes = [context.Process(target=one_rank, args=(rank, world_size, folder)) for rank in range(world_size)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(SECONDS)
        failed = "\n".join(path.read_text() for path in sorted(folder.glob("*.failed")))
        assert [process.exitcode for process in processes] == [0] * world_size, failed or "a rank hangs"
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


@pytest.mark.parametrize("name", BITWISE)
def test_shards_answer_as_one_index(ranks: Ranks, name: str) -> None:
    """Rows and scores bit for bit, each rank its own questions only, also where a rank has no passage or question."""
    passages, factory, top_k, _ = SEARCHES[name]
    one = snapshot(name)
    for rank, said in enumerate(ranks):
        asked = QUESTIONS[questions_of(rank)]
        right, (rows, scores) = one.search(asked, top_k), said[name]
        assert rows.shape == scores.shape == (COUNTS[rank], top_k)
        assert torch.equal(rows, right.rows) and torch.equal(scores, right.index_scores)
        if factory == "Flat" and len(asked):
            exact = search.top_k(asked.numpy(), passages, top_k)
            assert rows[:, : len(passages)].tolist() == exact[0].tolist()
            assert scores[:, : len(passages)].tolist() == exact[1].tolist()
        assert (rows[:, len(passages) :] == MISSING_ROW).all() and (scores[:, len(passages) :] == -torch.inf).all()
        assert said[f"nobody asks, {name}"].shape == (0, top_k)


def test_deep_lists_in_shards_find_the_exact_rows(ranks: Ranks) -> None:
    passages, _, top_k, _ = SEARCHES["IVF, deep"]
    for rank, said in enumerate(ranks):
        rows, scores = said["IVF, deep"]
        right = search.top_k(QUESTIONS[questions_of(rank)].numpy(), passages, top_k)
        assert rows.numpy().reshape(-1).tolist() == right[0].reshape(-1).tolist()
        assert scores.numpy() == pytest.approx(right[1], rel=1e-5, abs=1e-5)


def test_shallow_lists_in_shards_find_valid_rows(ranks: Ranks) -> None:
    for rank, said in enumerate(ranks):
        rows, scores = (part.numpy() for part in said["IVF, shallow"])
        there = rows != MISSING_ROW
        right = search.inner_products(QUESTIONS[questions_of(rank)].numpy(), DISTINCT)
        assert rows.max(initial=0) < N_PASSAGES and (scores[~there] == -np.inf).all()
        assert scores[there] == pytest.approx(right[np.nonzero(there)[0], rows[there]], rel=1e-5, abs=1e-5)
        assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in rows)
        if COUNTS[rank]:
            assert there.any(1).all() and not there.all()


def test_one_rank_that_diverges_ends_all(ranks: Ranks) -> None:
    for said in ranks:
        assert said["diverged"].startswith("question embeddings are not finite. Training has diverged")


def test_rows_are_gathered_in_the_order_of_the_ranks(ranks: Ranks) -> None:
    counts = list(COUNTS[: len(ranks)])
    everything = [100 * rank + number for rank, n in enumerate(counts) for number in range(n)]
    for said in ranks:
        gathered, lengths = said["gather_rows"]
        assert gathered.tolist() == everything and gathered.dtype == torch.int64 and lengths == counts
        nothing, lengths = said["gather_rows, of nobody"]
        assert nothing.shape == (0, 3) and nothing.dtype == torch.float16 and lengths == [0] * len(ranks)
        assert said["gather_rows, wide"].tolist() == [[[float(x)] * 3] * 2 for x in everything]


def test_answers_go_back_to_who_asked(ranks: Ranks) -> None:
    for rank, said in enumerate(ranks):
        own = [100 * rank + number for number in range(COUNTS[rank])]
        assert said["exchange_rows"].shape == (len(ranks), COUNTS[rank], 2)
        assert said["exchange_rows"].tolist() == [[[row, source] for row in own] for source in range(len(ranks))]


@pytest.mark.parametrize("n", [211, 3, 0])
def test_shards_are_put_together_on_rank_zero(ranks: Ranks, n: int) -> None:
    whole, *others = (said[f"shards_on_rank_zero, {n}"] for said in ranks)
    assert whole.dtype == np.uint8 and np.array_equal(whole, np.arange(n * 5, dtype=np.uint8).reshape(n, 5))
    assert others == [None] * (len(ranks) - 1)


def test_what_one_rank_raises_is_raised_on_all(ranks: Ranks) -> None:
    last = len(ranks) - 1
    for rank, said in enumerate(ranks):

        def text(*failing: int, rank: int = rank) -> str:
            who = rank if rank in failing else failing[0]
            own = f"of rank {who}"
            if rank in failing:
                return f"FloatingPointError: {own}"
            return f"RankError: rank {who} failed (set-up): got FloatingPointError('{own}')."

        assert said["together"] == ["nothing", text(last), text(0), text(0, last)]
        other = RankError(f"rank {last} failed", where="set-up", got=repr(KeyError("key")))
        assert said["raise_if_any_rank_failed"] == repr(KeyError("key") if rank == last else other)


def test_plain_values_are_shared(ranks: Ranks) -> None:
    for rank, said in enumerate(ranks):
        assert said["any_rank"] == (True, False)
        assert said["gather_objects"] == [{"rank": other} for other in range(len(ranks))]
        assert said["from_rank_zero"] == "from 0"
        total, own = said["sum_over_ranks"]
        assert total.tolist() == [sum(range(1, len(ranks) + 1))] and own.tolist() == [rank + 1]


def test_alone_nothing_is_copied() -> None:
    rows = cast(Any, np.arange(6).reshape(3, 2))
    assert shards_on_rank_zero(rows, 3) is rows
    questions = torch.zeros(2, 3)
    gathered, counts = gather_rows(questions)
    assert gathered is questions and counts == [2]
    assert exchange_rows(questions, counts).shape == (1, 2, 3)


@pytest.mark.parametrize("n", [0, 1, 3, 211])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_every_passage_is_in_one_shard(n: int, world_size: int) -> None:
    shards = [shard(n, rank, world_size) for rank in range(world_size)]
    assert [row for rows in shards for row in rows] == list(range(n))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
