"""Requests that wait together are answered in one pass, each from one generation, and none hurts another."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from openbook.errors import OpenBookError
from openbook.serving.batcher import Answered, Batcher
from openbook.serving.current import BusyError, Current, Source
from openbook.serving.served import AS_TESTED


@dataclass
class Fake:
    """Echoes questions; the first pass waits until it is let go on. passes: the questions of each."""

    name: str = "a"
    generation: int = 0
    passes: list[list[str]] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def retrieve(self, queries: Sequence[str], topk: int) -> list[Any]:
        self.passes.append(list(queries))
        self.begun.set()
        assert self.go_on.wait(20)
        if "unanswerable" in queries:
            raise OpenBookError("no such question")
        if "broken" in queries:
            raise ZeroDivisionError
        return [(self.name, text, topk) for text in queries]

    def answer(self, queries: Sequence[str], how: Any) -> list[Any]:
        return [(self.name, text, how) for text in queries]


@pytest.fixture
def fake() -> Fake:
    return Fake()


def held(fake: Fake, size: int, waiting: int = 100) -> tuple[Batcher, Current, Future[Answered]]:
    """A batcher that is busy with the question "first"."""
    batcher, current = Batcher(size, waiting), Current(lambda source: fake, Source("run"))  # type: ignore[arg-type, return-value]
    future = batcher.submit(current, ["first"], 2)
    assert fake.begun.wait(20)
    return batcher, current, future


def test_what_waits_is_one_pass_of_at_most_its_size(fake: Fake) -> None:
    batcher, current, first = held(fake, 5)
    futures = [batcher.submit(current, words.split(), 2) for words in ("a b", "c", "d e f", "g")]
    other = batcher.submit(current, ["h"], 3)
    how = batcher.submit(current, ["i"], AS_TESTED)
    fake.go_on.set()
    assert first.result(20).results == [("a", "first", 2)]
    assert [one.result(20).results for one in futures] == [
        [("a", text, 2) for text in words.split()] for words in ("a b", "c", "d e f", "g")
    ]
    assert other.result(20).results == [("a", "h", 3)] and how.result(20).results == [("a", "i", AS_TESTED)]
    assert fake.passes == [["first"], ["a", "b", "c", "g"], ["d", "e", "f"], ["h"]]
    batcher.close()
    assert (batcher.passes, batcher.requests) == (5, 7)


def test_a_request_larger_than_a_pass_is_one_pass(fake: Fake) -> None:
    batcher, current, _ = held(fake, 2)
    future = batcher.submit(current, list("abcde"), 2)
    fake.go_on.set()
    assert len(future.result(20).results) == 5 and fake.passes[1] == list("abcde")


def test_one_bad_question_does_not_hurt_those_beside_it(fake: Fake) -> None:
    batcher, current, _ = held(fake, 8)
    good, bad, worse = (batcher.submit(current, [text], 2) for text in ("good", "unanswerable", "fine"))
    fake.go_on.set()
    assert good.result(20).results == [("a", "good", 2)] and worse.result(20).results == [("a", "fine", 2)]
    with pytest.raises(OpenBookError, match="no such question"):
        bad.result(20)
    broken = batcher.submit(current, ["broken"], 2)
    with pytest.raises(ZeroDivisionError):
        broken.result(20)
    assert batcher.submit(current, ["after"], 2).result(20).results == [("a", "after", 2)]  # the thread lives on


def test_a_swap_counts_from_the_next_pass_on(fake: Fake) -> None:
    other = Fake("b")
    other.go_on.set()
    batcher, current, first = held(fake, 8)
    current._served = other  # type: ignore[assignment]
    second = batcher.submit(current, ["second"], 2)
    fake.go_on.set()
    assert first.result(20).served is fake and second.result(20).served is other


def test_too_many_waiting_and_a_closed_one_are_refused(fake: Fake) -> None:
    batcher, current, _ = held(fake, 8, waiting=2)
    waiting = [batcher.submit(current, ["a"], 2) for _ in range(2)]
    with pytest.raises(BusyError, match=r"too many requests are waiting: got 2 waiting\. Send it again later"):
        batcher.submit(current, ["b"], 2)
    fake.go_on.set()
    batcher.close()
    assert all(one.done() for one in waiting)  # what waits at the end is answered
    with pytest.raises(BusyError, match="the server is stopping"):
        batcher.submit(current, ["b"], 2)


def test_what_nobody_waits_for_any_more_is_left_out(fake: Fake) -> None:
    batcher, current, _ = held(fake, 8)
    gone, here = batcher.submit(current, ["gone"], 2), batcher.submit(current, ["here"], 2)
    gone.cancel()
    fake.go_on.set()
    here.result(20)
    assert fake.passes[1:] == [["here"]]


def test_the_end_does_not_wait_for_what_takes_too_long(fake: Fake) -> None:
    batcher, current, first = held(fake, 8)
    batcher.close(0.05)
    assert not first.done() and batcher._thread.daemon
    with pytest.raises(BusyError, match="the server is stopping"):
        batcher.submit(current, ["b"], 2)
    fake.go_on.set()
    assert first.result(20).results == [("a", "first", 2)]
