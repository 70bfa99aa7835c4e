"""The swap: the next generation or none, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from openbook.errors import OpenBookError
from openbook.serving.current import BusyError, Current, Source, described
from openbook.serving.served import Served

FACTS = {"run": "runs/x", "checkpoint": "last.ckpt", "step": 7, "n_passages": 1234, "corpus": "a.jsonl"}


def served() -> Served:
    return Served(None, None, None, 3, (8, 8), FACTS)  # type: ignore[arg-type]


def current_of(load: Callable[[Source], Any]) -> Current:
    return Current(load, Source("runs/x", ("data.corpus=a.jsonl", "evaluate.n_docs=2")))


def test_each_swap_is_another_generation_of_what_was_asked_for() -> None:
    asked: list[Source] = []

    def load(source: Source) -> Served:
        asked.append(source)
        return served()

    current = current_of(load)
    first = current.served()
    assert current.served() is first and first.generation == 0
    assert current.swap(current.source.with_corpus("b.jsonl")).generation == 1
    assert current.swap().generation == 2 and current.served().generation == 2
    changed = Source("runs/x", ("evaluate.n_docs=2", "data.corpus=b.jsonl"))
    assert asked == [Source("runs/x", ("data.corpus=a.jsonl", "evaluate.n_docs=2")), changed, changed]
    assert changed.with_corpus("") == changed


def test_a_swap_that_fails_leaves_what_is_served() -> None:
    answers = iter([served()])

    def load(source: Source) -> Served:
        for one in answers:
            return one
        raise OpenBookError("no such corpus")

    current = current_of(load)
    first, source = current.served(), current.source
    with pytest.raises(OpenBookError, match="no such corpus"):
        current.swap(Source("elsewhere"))
    assert current.served() is first and current.source == source


def test_a_second_swap_is_told_to_come_back_and_served_answers_meanwhile() -> None:
    begun, go_on, first = threading.Event(), threading.Event(), iter([True])

    def load(source: Source) -> Served:
        if not next(first, False):
            begun.set()
            assert go_on.wait(20)
        return served()

    current = current_of(load)
    before = current.served()
    swap = threading.Thread(target=current.swap)
    swap.start()
    assert begun.wait(20)
    with pytest.raises(BusyError, match="a swap is under way"):
        current.swap()
    assert current.served() is before
    go_on.set()
    swap.join(20)
    assert current.served().generation == 1


def test_a_generation_in_a_line() -> None:
    assert described(served()) == "runs/x, last.ckpt of step 7; 1,234 passages of a.jsonl"
