"""The refresh schedule against the plain reading of its text, step by step."""

from __future__ import annotations

import pytest

from openbook.config.refresh_schedule import RefreshSchedule
from openbook.errors import OpenBookError


def refreshes(text: str, steps: int) -> list[int]:
    """After which steps the index is refreshed, each step asked about twice as accumulation does."""
    schedule, last, found = RefreshSchedule.read(text), 0, []
    for step in range(1, steps + 1):
        for _ in range(2):
            if schedule.due(step, last):
                found.append(step)
                last = step
    return found


@pytest.mark.parametrize(
    ("text", "steps", "expected"),
    [
        ("5", 17, [5, 10, 15]),
        ("0", 9, []),
        ("0-10:3,10-:7", 31, [3, 6, 9, 16, 23, 30]),
        ("4-9:2", 20, [4, 6, 8]),
        ("0-6:2, 6-12:0, 12-:5", 23, [2, 4, 12, 17, 22]),
    ],
)
def test_it_is_due_when_its_text_says_so(text: str, steps: int, expected: list[int]) -> None:
    assert refreshes(text, steps) == expected


@pytest.mark.parametrize("text", ["", "often", "0-10", "10-5:3", "0-10:3,5-:2", "0-:3,10-:2", "-5:3", "1e3"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(OpenBookError, match=r"not a refresh schedule \(refresh\.every\).*0-1000:100"):
        RefreshSchedule.read(text)


WATCHED = RefreshSchedule.read("staleness", min_overlap=0.6, floor=4, ceiling=9)


@pytest.mark.parametrize(
    ("since", "overlap", "expected"),
    [
        (0, 0.0, False),  # the step of the refresh itself, seen again by accumulation
        (3, 0.0, False),  # the floor protects, however stale the index is
        (4, 0.59, True),
        (4, 0.6, False),  # under, not at
        (4, None, False),  # nobody looked
        (8, 1.0, False),
        (8, 0.1, True),
        (9, None, True),  # the ceiling, whatever was measured
        (9, 1.0, True),
        (31, None, True),
    ],
)
def test_staleness_decides_between_floor_and_ceiling(since: int, overlap: float | None, expected: bool) -> None:
    for last in (0, 7):
        assert WATCHED.due(last + since, last, overlap) is expected


def test_without_a_ceiling_only_overlap_decides() -> None:
    schedule = RefreshSchedule.read("staleness", min_overlap=0.6, floor=0, ceiling=0)
    assert not schedule.due(5, 5, 0.0), "never twice at one step, even without a floor"
    assert schedule.due(6, 5, 0.0)
    assert not schedule.due(10**6, 5)
    assert schedule.interval(3) == 0


def test_a_look_is_taken_from_the_floor_to_the_ceiling() -> None:
    # Floor 4, ceiling 9: counted from the last refresh, not from step 0.
    for last in (0, 7):
        assert [since for since in range(31) if WATCHED.needs_look(last + since, last, 2)] == [4, 6, 8]
        assert [since for since in range(31) if WATCHED.needs_look(last + since, last, 3)] == [6]
        assert not any(WATCHED.needs_look(last + since, last, 0) for since in range(31))
    endless = RefreshSchedule.read("staleness", floor=0, ceiling=0)
    assert [step for step in range(31) if endless.needs_look(step, 0, 11)] == [11, 22]
    assert not any(RefreshSchedule.read("5").needs_look(step, 0, 1) for step in range(31))


def test_a_run_by_staleness() -> None:
    """The index loses .15 of overlap a step until step 20, then nothing more; looked at every second step."""
    schedule, last, found = RefreshSchedule.read("staleness", 0.5, floor=3, ceiling=13), 0, []
    for step in range(1, 60):
        overlap = 1 - 0.15 * max(min(step, 20) - last, 0) if schedule.needs_look(step, last, 2) else None
        if schedule.due(step, last, overlap):
            found.append(step)
            last = step
    # Under .5 after four steps, a look's step; after step 20 the ceiling alone.
    assert found == [4, 8, 12, 16, 20, 33, 46, 59]


@pytest.mark.parametrize(
    ("text", "expected"), [("5", [5, 5, 5, 5]), ("0", [0, 0, 0, 0]), ("2-7:3,9-:11", [0, 3, 0, 11])]
)
def test_interval_is_that_of_the_step(text: str, expected: list[int]) -> None:
    schedule = RefreshSchedule.read(text)
    assert not schedule.watches_staleness
    assert [schedule.interval(step) for step in (1, 2, 7, 9)] == expected
    assert not schedule.due(1000, 999, overlap=0.0), "overlap is not what this schedule goes by"


def test_interval_by_staleness_is_the_ceiling() -> None:
    assert WATCHED.watches_staleness
    assert [WATCHED.interval(step) for step in (0, 5, 10**6)] == [9, 9, 9]


@pytest.mark.parametrize("text", ["stale", "Staleness", "staleness,5", "stalenes"])
def test_a_misspelt_word_gets_told_the_right_one(text: str) -> None:
    with pytest.raises(OpenBookError, match=rf"not a refresh schedule \(refresh\.every\): got '{text}'.* or staleness"):
        RefreshSchedule.read(text)


def test_floor_above_ceiling_is_refused() -> None:
    with pytest.raises(OpenBookError, match=r"refresh\.floor=10, refresh\.ceiling=9, expected a floor up to"):
        RefreshSchedule.read("staleness", floor=10, ceiling=9)
    assert RefreshSchedule.read("staleness", floor=9, ceiling=9).due(9, 0)
    assert RefreshSchedule.read("30", floor=10, ceiling=9).due(30, 0), "not used there"


@pytest.mark.parametrize("share", [-0.01, 1.01, 70.0, float("nan")])
@pytest.mark.parametrize("text", ["staleness", "30"])
def test_an_overlap_that_is_no_share_is_refused(text: str, share: float) -> None:
    with pytest.raises(OpenBookError, match=r"\(refresh\.min_overlap\): got .*, expected a share from 0 to 1"):
        RefreshSchedule.read(text, min_overlap=share)
