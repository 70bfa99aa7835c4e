"""Progress in a log: the first line within five seconds, with rate and time left, and then ever fewer; nothing of what
was done at once; quiet where asked. On a terminal: bars of stages inside of others."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from openbook.utils import console
from openbook.utils.console import Pace, hushed, is_quiet, progress, say, say_result, stage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(console, "_pace", Pace())
    monkeypatch.delenv(console.QUIET, raising=False)
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


def test_what_was_done_before_counts_for_no_rate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    one = stage("training", "steps", 50)
    clock[0] += 10
    one(55, 90, lambda: ", loss 1.5")
    assert capsys.readouterr().out == "training: 55 of 90 steps (0.5/s, 70 s left), loss 1.5\n"


def _day(clock: list[float], seconds: int, refresh: int) -> None:
    """A stage of so many seconds, in which another one of half the length comes every `refresh` seconds."""
    one = stage("training", "steps")
    for second in range(seconds):
        clock[0] += 1
        one(second + 1, seconds)
        if second % refresh == 0:
            with progress("encoding", "passages", told=True) as done:
                for part in range(refresh // 2):
                    clock[0] += 1
                    done(part + 1, refresh // 2)
    one.close()


@pytest.mark.parametrize(("minutes", "least", "most"), [(1, 4, 8), (20, 6, 14), (1440, 100, 170)])
def test_lines_come_ever_more_seldom(
    clock: list[float], capsys: pytest.CaptureFixture[str], minutes: int, least: int, most: int
) -> None:
    started = clock[0]
    _day(clock, minutes * 40, 30)
    assert clock[0] - started == pytest.approx(minutes * 60, abs=30)
    lines = capsys.readouterr().out.splitlines()
    assert least <= len(lines) <= most
    assert all("/s" in line and " left" in line for line in lines[:-1])


@pytest.mark.parametrize(("slower", "most"), [(1, 14), (2, 16), (10, 22)])
def test_a_run_of_rag_token_leaves_room_for_its_messages(
    clock: list[float], capsys: pytest.CaptureFixture[str], slower: int, most: int
) -> None:
    """Its stages as they last on two cores, and on slower ones: 300 steps of warm-up, the index, a test, 90 steps with
    a validation every 15 and a refresh every 30, a test. Some 36 lines of 60 are settings, plan, table and paths."""

    def take(label: str, steps: int, seconds: float) -> None:
        with progress(label, "", told=True) as done:
            for step in range(steps):
                clock[0] += slower * seconds / steps
                done(step + 1, steps)

    take("warming up the reader", 300, 150)
    take("encoding the corpus", 100, 25)
    take("testing", 75, 40)
    take("validating", 20, 8)
    training = stage("training", "steps")
    for step in range(1, 91):
        clock[0] += slower * 2.0
        training(step, 90)
        if step % 30 == 0:
            take("encoding the corpus", 100, 25)
        if step % 15 == 0:
            take("validating", 20, 8)
    training.close()
    take("testing", 75, 40)
    said = capsys.readouterr().out.splitlines()
    assert len(said) <= most, said
    assert [line.split(":")[0] for line in said].count("testing") >= 2


def test_every_stage_has_its_first_line_within_five_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also after hours, and inside of another stage the first time; but not each of a hundred validations."""
    with progress("encoding", "passages"):  # nothing is done: all was kept from before
        pass
    outer = stage("training", "steps")
    with progress("encoding", "passages", told=True) as done:
        for second in range(5):
            clock[0] += 1
            done(second + 1, 5)
    outer.close()
    assert capsys.readouterr().out == "encoding: 5 of 5 passages (1/s)\n"
    _day(clock, 7200, 600)
    capsys.readouterr()
    for label in ("testing", "testing"):
        with progress(label, "batches", told=True) as done:
            for second in range(5):
                clock[0] += 1
                done(second + 1, 5)
        assert capsys.readouterr().out == "testing: 5 of 5 batches (1/s)\n"


def test_quiet_is_all_but_warnings_and_results(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with hushed(True):
        assert is_quiet()
        with progress("reading", "passages") as done:
            clock[0] += 20
            done(1, 2)
        say("reading is done"), say("warning: two lines are left out"), say_result("results in runs/")
    assert capsys.readouterr().out == "warning: two lines are left out\nresults in runs/\n"
    with hushed(False):
        assert not is_quiet()


def test_a_terminal_shows_stages_inside_of_others(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    terminal = Console(file=written, force_terminal=True, highlight=False, width=100)
    monkeypatch.setattr(console, "console", terminal)
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: True, raising=False)
    one = stage("training", "steps")
    clock[0] += 1
    one(3, 9, lambda: ", loss 1.5")
    with progress("encoding", "passages") as done:
        done(5, 10)
        assert console._Bar.shown is not None
        console._Bar.shown.refresh()
        shown = written.getvalue()
        say("a message between")
    assert all(text in shown for text in ("training", "3/9", "loss 1.5", "encoding", "5/10"))
    assert console._Bar.shown is not None
    one.close()
    assert console._Bar.shown is None
    assert "a message between" in written.getvalue() and "encoding: 5 passages in" in written.getvalue()
