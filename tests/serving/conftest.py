"""One trained run for all tests of this folder, a corpus that disagrees with its own, and a server around an app."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from openbook.commands.train import train
from openbook.commands.trained.serve import load
from openbook.config.evaluation import ServeConfig
from openbook.serving.batcher import Batcher
from openbook.serving.current import Source
from openbook.serving.served import Served
from openbook.serving.server import bound_socket, server_of
from tests.small_system import SmallSystem

LIMITS = ServeConfig(port=0, max_queries=8, max_characters=200, max_topk=5, max_n_docs=4, max_beams=3)


@dataclass(frozen=True)
class Trained:
    """path: of the run. changed: passages with the same ids that name other capitals. questions: of its test file.
    original, other: generations over the two corpora."""

    path: Path
    changed: Path
    questions: list[str]
    original: Served
    other: Served


@pytest.fixture(scope="session")
def trained(small_system: SmallSystem, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("served")
    path = Path(train(small_system.config(folder / "run", "evaluate.before_training=false")))
    changed = folder / "changed.jsonl"
    lines = (small_system.data / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    passages = [json.loads(line) for line in lines]
    for passage, other in zip(passages, [*passages[1:], passages[0]], strict=True):
        passage["text"] = f"{passage['text']} {other['title']} is far from it ."
    changed.write_text("".join(json.dumps(passage) + "\n" for passage in passages), encoding="utf-8")
    asked = [json.loads(line)["question"] for line in (small_system.data / "test.jsonl").read_text().splitlines()]
    source = Source(str(path))
    return Trained(path, changed, asked, load(source), replace(load(source.with_corpus(str(changed))), generation=1))


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    made = Batcher(16, 4096)
    yield made
    made.close()


@pytest.fixture
def listen() -> Iterator[Callable[..., int]]:
    """(app, limits, token) -> the port at which it is served, until the test ends."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with contextlib.ExitStack() as stack:

        def start(app: Any, limits: ServeConfig = LIMITS, token: str = "") -> int:
            bound = bound_socket("127.0.0.1", 0)
            server = server_of(app, bound, limits, token)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
            thread.start()
            stack.callback(thread.join, 30)
            stack.callback(setattr, server, "should_exit", True)
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            return int(bound.getsockname()[1])

        yield start
