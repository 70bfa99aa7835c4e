"""The stream: a true permutation, each example once per epoch for any world size, resumable from one number."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import pytest

from openbook.batch import Example
from openbook.data.question_file import QuestionFile
from openbook.data.sampler import BatchPlan, GlobalBatchSampler, permuted, sampled_answer, stream_key
from openbook.errors import OpenBookError


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 97, 1009])
@pytest.mark.parametrize("key", [0, 7, (1 << 64) - 1])
def test_permuted_is_a_permutation(n: int, key: int) -> None:
    assert sorted(permuted(index, n, key) for index in range(n)) == list(range(n))


def test_permuted_spreads_evenly() -> None:
    """Over 2,000 keys each of 11 places gets an index about equally often: chi-square with 10 degrees of freedom stays
    below 29.6, its 99.9 % point, and neighbours stay neighbours no more often than chance (2 of 11 pairs)."""
    n, keys = 11, [stream_key(3, epoch) for epoch in range(2000)]
    for index in (0, 5, 10):
        counts = Counter(permuted(index, n, key) for key in keys)
        expected = len(keys) / n
        assert sum((counts[place] - expected) ** 2 / expected for place in range(n)) < 29.6
    adjacent = sum(abs(permuted(3, n, key) - permuted(4, n, key)) == 1 for key in keys) / len(keys)
    assert adjacent == pytest.approx(2 / n, abs=0.04)


@pytest.mark.parametrize("index", [-1, 5])
def test_permuted_refuses_what_is_outside(index: int) -> None:
    with pytest.raises(IndexError, match=r"not in 0 \.\. 4"):
        permuted(index, 5, 0)


def epoch_of_all_ranks(n: int, per_rank: int, world: int, consumed: int = 0, seed: int = 3) -> list[list[BatchPlan]]:
    """The plans of all ranks, side by side per batch."""
    ranks = [
        list(GlobalBatchSampler(n, per_rank, rank=rank, world_size=world, seed=seed, consumed=consumed))
        for rank in range(world)
    ]
    assert len({len(plans) for plans in ranks}) == 1, "every rank must take the same number of steps"
    return [list(plans) for plans in zip(*ranks, strict=True)]


def real(plans: list[BatchPlan]) -> list[int]:
    return [index for plan in plans for index in plan.indices if index is not None]


@pytest.mark.parametrize(
    ("n", "per_rank", "world"), [(23, 3, 1), (23, 3, 2), (23, 2, 5), (7, 5, 3), (1, 2, 3), (24, 3, 2)]
)
def test_each_example_once_per_epoch(n: int, per_rank: int, world: int) -> None:
    batches = epoch_of_all_ranks(n, per_rank, world)
    assert sorted(index for plans in batches for index in real(plans)) == list(range(n))
    assert len(batches) == len(GlobalBatchSampler(n, per_rank, world_size=world))
    for plans in batches:
        assert len({len(plan.indices) for plan in plans}) == 1, "ranks must agree on the batch size"
        assert len({plan.cursor for plan in plans}) == 1
        counts = [sum(index is not None for index in plan.indices) for plan in plans]
        assert max(counts) - min(counts) <= 1, "dealt out evenly"
        assert all(0 <= plan.filler < n for plan in plans)
    assert batches[-1][0].cursor == n


def test_the_world_does_not_change_the_global_batches() -> None:
    one, two, four = (epoch_of_all_ranks(29, 8 // world, world) for world in (1, 2, 4))
    assert [sorted(real(plans)) for plans in one] == [sorted(real(plans)) for plans in two]
    assert [sorted(real(plans)) for plans in one] == [sorted(real(plans)) for plans in four]


@pytest.mark.parametrize("world", [3, 5, 6, 7])
def test_a_global_batch_that_the_ranks_do_not_divide_is_kept(world: int) -> None:
    """8 questions on 3 ranks are shares of 3, 3 and 2: one place reads a filler that counts for nothing."""
    one = epoch_of_all_ranks(29, 8, 1)
    samplers = [
        GlobalBatchSampler(29, -(-8 // world), rank=rank, world_size=world, seed=3, global_batch_size=8)
        for rank in range(world)
    ]
    some = list(zip(*samplers, strict=True))
    assert [sorted(real(plans)) for plans in some] == [sorted(real(plans)) for plans in one]
    assert [plans[0].cursor for plans in some] == [plans[0].cursor for plans in one]
    assert all(len({len(plan.indices) for plan in plans}) == 1 for plans in some)


@pytest.mark.parametrize("world_after", [1, 2, 3])
def test_any_world_continues_from_the_cursor(world_after: int) -> None:
    before = epoch_of_all_ranks(29, 3, 2)[:3]
    cursor = before[-1][0].cursor
    assert cursor == 18
    after = epoch_of_all_ranks(29, 3, world_after, consumed=cursor)
    assert sorted(index for plans in before + after for index in real(plans)) == list(range(29))
    assert after[-1][0].cursor == 29


def test_epochs_and_seeds_differ_and_repeat_exactly() -> None:
    def order(seed: int, consumed: int) -> list[int]:
        return [index for plans in epoch_of_all_ranks(29, 3, 1, consumed, seed) for index in real(plans)]

    assert order(3, 0) == order(3, 0)
    assert order(3, 29) != order(3, 0)
    assert order(4, 0) != order(3, 0)
    assert sorted(order(3, 29)) == list(range(29))
    plans = list(GlobalBatchSampler(29, 3, seed=3, consumed=29))
    assert (plans[0].epoch, plans[0].cursor, plans[-1].cursor) == (1, 32, 58)


def test_in_order_when_not_shuffled() -> None:
    sampler = GlobalBatchSampler(7, 2, rank=1, world_size=2, shuffle=False)
    assert [plan.indices for plan in sampler] == [(1, 3), (5, None)]
    assert [plan.indices for plan in sampler] == [(1, 3), (5, None)], "every evaluation starts at the beginning"


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="rank=2, world_size=2"):
        GlobalBatchSampler(7, 2, rank=2, world_size=2)


def test_answers_are_sampled_evenly_and_purely() -> None:
    example = Example("q", "?", ("a", "b", "c"))
    drawn = [sampled_answer(example, epoch, 5) for epoch in range(3000)]
    assert drawn == [sampled_answer(example, epoch, 5) for epoch in range(3000)]
    assert all(count == pytest.approx(1000, abs=100) for count in Counter(drawn).values())
    assert len(set(drawn)) == 3
    assert drawn != [sampled_answer(example, epoch, 6) for epoch in range(3000)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [json.dumps({"question": f"größe {n}?", "answers": [f"{n}", "x"]}, ensure_ascii=False) for n in range(5)]
    lines[3] = '{"id": "mine", "question": "q", "answers": ["a"], "positive_ids": [7, "p"], "relation": "r"}'
    path.write_bytes("\r\n".join([*lines[:2], "", *lines[2:]]).encode())
    return path


@pytest.mark.parametrize("cached", [False, True])
def test_question_file_reads_any_line(file: Path, tmp_path: Path, cached: bool) -> None:
    questions = QuestionFile(file, tmp_path / "cache" if cached else None)
    assert len(questions) == 5
    assert questions[4] == Example("6", "größe 4?", ("4", "x"))
    assert questions[3] == Example("mine", "q", ("a",), ("7", "p"), "r", "")
    assert questions.line_number(2) == 4, "blank lines are counted and passed over"
    assert [example.question for example in questions] == ["größe 0?", "größe 1?", "größe 2?", "q", "größe 4?"]
    copy = pickle.loads(pickle.dumps(questions))
    assert copy[4] == questions[4]
    for index in (-1, 5):
        with pytest.raises(IndexError, match="has 5"):
            questions[index]


def test_question_file_is_checked_when_opened(file: Path) -> None:
    file.write_text('{"question": "q", "answers": ["a"]}\n{"question": "q", "answers": []}\n')
    with pytest.raises(OpenBookError, match=r"a question has no answer \(.*questions.jsonl:2\)"):
        QuestionFile(file)
