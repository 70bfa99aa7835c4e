"""Progress in a log: the first line within five seconds, with rate and time left; nothing of what was done at once."""

from __future__ import annotations

import pytest

from openbook.utils import console
from openbook.utils.console import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    return now


def test_a_log_hears_of_the_rate_and_of_the_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", "passages") as done:
        for second in range(1, 31):
            clock[0] = 100.0 + second
            done(100 * second, 10_000)
        done(3001, 0)
    assert capsys.readouterr().out.splitlines() == [
        "reading: 500 of 10,000 passages (100/s, 2 min left)",
        "reading: 1,600 of 10,000 passages (100/s, 84 s left)",
        "reading: 2,700 of 10,000 passages (100/s, 73 s left)",
        "reading: 3,001 passages in 30.0 s",
    ]


@pytest.mark.parametrize(("seconds", "said"), [(3, ""), (6, "summing: 7 MB in 6.0 s\n")])
def test_what_is_brief_is_told_only_where_it_was_not(
    clock: list[float], capsys: pytest.CaptureFixture[str], seconds: int, said: str
) -> None:
    with progress("summing", "MB", brief=True) as done:
        done(7, 7)
        clock[0] += seconds
    assert capsys.readouterr().out == said
