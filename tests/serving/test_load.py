"""A thousand clients at once while the corpus is swapped: no request lost, each answered from one generation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from benchmarks.serving.load import count_mixed, documents, send, storm
from openbook.serving.batcher import Batcher
from openbook.serving.current import Current, Source
from openbook.serving.server import raise_file_limit
from tests.serving.conftest import LIMITS, Trained

CLIENTS, DISTINCT = 1000, 5


def test_a_thousand_clients_across_a_swap(trained: Trained, listen: Callable[..., int]) -> None:
    from openbook.serving.app import create_app

    raise_file_limit()
    generations = iter([trained.original, trained.other])
    current, batcher = Current(lambda source: next(generations), Source("run")), Batcher(256, 4096)
    port = listen(create_app(current, batcher, LIMITS))
    asked = trained.questions * 2
    distinct = [{"queries": asked[n : n + 3], "topk": 2, "return_scores": True} for n in range(DISTINCT)]
    bodies = [distinct[n % DISTINCT] for n in range(CLIENTS)]

    def alone() -> list[object]:
        each = [documents(asyncio.run(send(port, body))) for body in distinct]
        return [each[n % DISTINCT] for n in range(CLIENTS)]

    before = alone()
    replies = asyncio.run(storm(port, bodies, lambda: send(port, {}, "/swap")))
    after = alone()
    every = [reply for own in replies for reply in own]
    assert {reply.status for reply in every} == {200}
    assert {reply.generation for reply in every} == {0, 1} and all(own[-1].generation == 1 for own in replies)
    assert all(old != new for old, new in zip(before, after, strict=True))  # a mixed answer would be neither
    assert count_mixed(replies, [before, after]) == 0
    assert batcher.passes < batcher.requests / 10  # they were answered together
    batcher.close()
