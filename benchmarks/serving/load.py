"""1,000 clients of `openbook serve` at once while the corpus is swapped: what is lost or mixed, and how long it takes.

    python -m benchmarks.serving.load RUN [--clients 1000] [--queries 4] [--topk 3] [--out FILE]

Starts the server as a user would, over the run's own corpus, and as many clients. Each sends a request again and again;
after the first round POST /swap asks for the corpus of the run's hot-swap (--corpus for another), and a last round is
sent once it is there. `lost` counts requests without an answer of status 200, `mixed` answers that are not what the
generation that they name answers to the same questions when nobody else asks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common.figures import Value, record, table
from openbook.data.question_file import QuestionFile
from openbook.setup.inputs.data import named_file
from openbook.tracking.run_folder import RunFolder

Body = dict[str, Any]

DISTINCT = 50  # requests that differ; each client has one of them


class Reply(NamedTuple):
    """seconds: from the connection's opening to the last byte. status 0: there was no answer."""

    status: int
    generation: int
    content: Any
    seconds: float


async def send(port: int, body: Body, path: str = "/retrieve") -> Reply:
    """One request over a connection of its own."""
    started = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        payload = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n".encode() + payload)
        answer = await reader.read()
        writer.close()
    except OSError:
        answer = b""
    seconds = time.perf_counter() - started
    headers, _, content = answer.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1.1 (\d+)", headers)
    length = re.search(rb"content-length: (\d+)", headers, re.IGNORECASE)
    if not status or not length or len(content) != int(length[1]):
        return Reply(0, -1, None, seconds)
    generation = re.search(rb"x-openbook-generation: (\d+)", headers, re.IGNORECASE)
    return Reply(int(status[1]), int(generation[1]) if generation else -1, json.loads(content), seconds)


async def storm(port: int, bodies: Sequence[Body], swap: Callable[[], Awaitable[Any]]) -> list[list[Reply]]:
    """As many clients as bodies, all at once: each sends its own again and again until the swap is over, which begins
    when as many requests as there are clients have been answered, and then once more. Its replies per client."""
    answered, over = 0, asyncio.Event()
    enough = asyncio.Event()

    async def client(body: Body) -> list[Reply]:
        nonlocal answered
        replies, last = list[Reply](), False
        while not last:
            last = over.is_set()
            replies.append(await send(port, body))
            answered += 1
            if answered >= len(bodies):
                enough.set()
        return replies

    async def swapped() -> None:
        try:
            await enough.wait()
            await swap()
        finally:
            over.set()

    *replies, _ = await asyncio.gather(*map(client, bodies), swapped())
    return replies


def documents(reply: Reply) -> list[list[Body]]:
    """Without scores, whose last digits depend on what is encoded in the same pass."""
    return [[hit["document"] for hit in hits] for hits in reply.content["result"]]


def count_mixed(replies: Sequence[Sequence[Reply]], expected: Sequence[Sequence[Any]]) -> int:
    """Answers that are not those of the generation that they name; expected[generation][client]."""
    return sum(
        documents(reply) != expected[reply.generation][client]
        for client, own in enumerate(replies)
        for reply in own
        if reply.status == 200
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    for name, default in (("clients", 1000), ("queries", 4), ("topk", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--corpus", default="")
    parser.add_argument("--out", default="")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    config = RunFolder.existing(options.run).load_config([], training=False)
    path = named_file(config, "test", config.data.test)
    assert path is not None
    texts = [one.question for one in QuestionFile(path, config.data.cache)]
    asked = cycle(texts)
    distinct = [
        {"queries": list(islice(asked, options.queries)), "topk": options.topk, "return_scores": True}
        for _ in range(DISTINCT)
    ]
    bodies = list(islice(cycle(distinct), options.clients))
    words = [sys.executable, "-m", "openbook", "serve", options.run, "serve.port=0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "OPENBOOK_TOKEN": ""}) as server:
        try:
            figures = _measured(server, bodies, options.corpus or config.hot_swap.corpus)
        finally:
            server.terminate()
    print("\n".join(table(figures)))
    if options.out:
        record(options.out, figures)


def _measured(server: subprocess.Popen[str], bodies: list[Body], corpus: str) -> dict[str, Value]:
    assert server.stdout is not None
    port = next(int(found[1]) for line in server.stdout if (found := re.search(r"127\.0\.0\.1:(\d+)/retrieve", line)))

    def alone() -> list[Any]:
        each = [documents(asyncio.run(send(port, body))) for body in bodies[:DISTINCT]]
        return list(islice(cycle(each), len(bodies)))

    async def swap() -> None:
        nonlocal swap_seconds
        reply = await send(port, {"corpus": corpus}, "/swap")
        assert reply.status == 200, reply
        swap_seconds = reply.seconds

    swap_seconds, before, cpu = 0.0, alone(), _cpu_seconds(server.pid)
    started = time.perf_counter()
    replies = asyncio.run(storm(port, bodies, swap))
    wall, cpu = time.perf_counter() - started, _cpu_seconds(server.pid) - cpu
    every = [reply for own in replies for reply in own]
    seconds = np.array([reply.seconds for reply in every])
    return {
        "serving.clients": len(bodies),
        "serving.questions_per_request": len(bodies[0]["queries"]),
        "serving.requests": len(every),
        "serving.lost": sum(reply.status != 200 for reply in every),
        "serving.mixed": count_mixed(replies, [before, alone()]),
        "serving.of_generation_0": sum(reply.generation == 0 for reply in every),
        "serving.of_generation_1": sum(reply.generation == 1 for reply in every),
        "serving.swap_seconds": swap_seconds,
        "serving.wall_seconds": wall,
        "serving.cpu_seconds": cpu,
        **{f"serving.latency_p{p}": float(np.percentile(seconds, p)) for p in (50, 95, 99)},
    }


def _cpu_seconds(pid: int) -> float:
    """Of a process so far, user and system (Linux)."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
