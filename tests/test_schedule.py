"""The refresh schedule against the plain reading of its text, step by step."""

from __future__ import annotations

import pytest

from openbook.errors import OpenBookError
from openbook.schedule import RefreshSchedule


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
