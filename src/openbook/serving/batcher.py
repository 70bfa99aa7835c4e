"""Requests that wait together are answered together: one pass of the encoder for the questions of many of them.

One thread runs the model. While it is busy requests gather, and the next pass takes all that ask for the same kind of
thing, oldest first, up to `size` questions: nobody waits for a batch to fill. A pass begins with one generation and
ends with it, and a request is in one pass only, so no request is answered from two.
"""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from openbook.errors import OpenBookError
from openbook.serving.current import BusyError, Current
from openbook.serving.served import HowToAnswer, Served

# What is still under way when the server has ended is answered to nobody: its connections are closed.
CLOSING_SECONDS = 5.0


class Answered(NamedTuple):
    """What a request gets: one entry per question, and the generation that they are all of."""

    served: Served
    results: list[Any]


@dataclass(frozen=True)
class Request:
    """how: the topk of a request for passages, or how a question is to be answered."""

    current: Current
    queries: tuple[str, ...]
    how: int | HowToAnswer
    future: Future[Answered] = field(default_factory=Future)

    def goes_with(self, other: "Request") -> bool:
        """Whether one pass can answer both."""
        return self.current is other.current and type(self.how) is type(other.how) and self.how == other.how


class Batcher:
    """size: questions of one pass, more only where a single request has more. max_waiting: requests that may wait."""

    def __init__(self, size: int, max_waiting: int):
        self._size, self._max_waiting = size, max_waiting
        self._waiting: deque[Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.passes = self.requests = 0
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, current: Current, queries: Sequence[str], how: int | HowToAnswer) -> Future[Answered]:
        """The passages (how: topk, see Served.retrieve) or answers (see Served.answer) of questions, once a pass has
        had them. Raises BusyError where too many wait; the future raises what retrieving or answering raises."""
        request = Request(current, tuple(queries), how)
        with self._changed:
            if self._closed or len(self._waiting) >= self._max_waiting:
                what = "the server is stopping" if self._closed else "too many requests are waiting"
                raise BusyError(what, got=f"{len(self._waiting):,} waiting", action="Send it again later.")
            self._waiting.append(request)
            self._changed.notify()
        return request.future

    def close(self, seconds: float = CLOSING_SECONDS) -> None:
        """Take no more, and answer what is waiting, as far as that takes no longer."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while requests := self._next():
            live = [one for one in requests if one.future.set_running_or_notify_cancel()]
            if live:
                self._answer(live)

    def _next(self) -> list[Request]:
        """The requests of the next pass, none once the last is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            chosen, left, n = [self._waiting.popleft()], deque[Request](), 0
            n = len(chosen[0].queries)
            while self._waiting and n < self._size:
                one = self._waiting.popleft()
                fits = chosen[0].goes_with(one) and n + len(one.queries) <= self._size
                (chosen if fits else left).append(one)
                n += len(one.queries) * fits
            self._waiting.extendleft(reversed(left))
            return chosen

    def _answer(self, requests: list[Request]) -> None:
        try:
            served = requests[0].current.served()
            results = _results(served, [text for one in requests for text in one.queries], requests[0].how)
            self.passes, self.requests = self.passes + 1, self.requests + len(requests)
        except OpenBookError as error:
            if len(requests) == 1:
                requests[0].future.set_exception(error)
            else:  # one of them cannot be answered: the others can
                for one in requests:
                    self._answer([one])
            return
        except BaseException as error:  # the thread lives on, whatever happened to these requests
            for one in requests:
                one.future.set_exception(error)
            return
        start = 0
        for one in requests:
            end = start + len(one.queries)
            one.future.set_result(Answered(served, results[start:end]))
            start = end


def _results(served: Served, queries: list[str], how: int | HowToAnswer) -> list[Any]:
    return served.answer(queries, how) if isinstance(how, HowToAnswer) else served.retrieve(queries, how)
