"""Memory that is used up: one sentence with the sizes that asked for it and two settings to lower."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch

from openbook.__main__ import main
from openbook.config.load import load_experiment
from openbook.errors import OpenBookError
from openbook.setup.resources.out_of_memory import memory_error
from openbook.utils.distributed import now_in
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")


def by_torch() -> None:
    torch.empty(2**50, dtype=torch.uint8)


def by_numpy() -> None:
    np.empty(2**50, dtype=np.uint8)


# What asks for a pebibyte; what must be said of the place, the sizes and the settings.
PLACES = {
    "a step": (
        "openbook.training.rag_module.RagModule.read",
        by_torch,
        ["(a training step", "trainer.batch_size=4, retriever.n_docs=3, data.max_context_tokens=80"],
        ["Lower trainer.batch_size", "data.max_context_tokens"],
    ),
    "encoding": (
        "openbook.retrieval.corpus_encoder.PassageCoder.passes",
        by_torch,
        ["encoding the corpus", "trainer.tokens_per_pass=0, data.max_passage_tokens=128"],
        ["Lower trainer.tokens_per_pass and data.max_passage_tokens"],
    ),
    "the index": (
        "openbook.index.flat_cpu.CodesOnCpu.candidates",
        by_numpy,
        ["the index", "index.factory=Flat"],
        ["Set an index.factory of fewer bytes per passage", "lower retriever.dim"],
    ),
    "answering": (
        "openbook.inference.answering.Answering.__call__",
        by_numpy,
        ["answering, test split after training", "evaluate.batch_size=16", "decode.beams="],
        ["Lower evaluate.batch_size and decode.beams"],
    ),
    "loading": (
        "openbook.setup.models.load_generator",
        by_torch,
        ["(set-up)"],
        ["Lower trainer.batch_size and data.workers"],
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_real_refusal_of_the_allocator(
    small_system: SmallSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    place: str,
) -> None:
    address, asks, told, lower = PLACES[place]
    owner, name = resolve_name(address.rpartition(".")[0]), address.rpartition(".")[2]
    original = getattr(owner, name)
    # The frame that asks lies in the module's own file, as a real one would.
    scope: dict[str, Any] = {"original": original, "asks": asks}
    code = f"def {name}(*words, **named):\n    asks()\n    return original(*words, **named)\n"
    exec(compile(code, inspect.unwrap(original).__code__.co_filename, "exec"), scope)
    more = ["evaluate.before_training=false", "data.validation=", "refresh.every=0"]
    with monkeypatch.context() as patch:
        patch.setenv("OPENBOOK_RUN_DIR", "")
        patch.setattr(owner, name, scope[name])
        assert main(["train", *small_system.words(tmp_path / "run", *more)]) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: the memory of this machine is used up (") and said.count("error: ") == 1
    assert "free" in said and "asked for" in said
    assert all(text in said for text in (*told, *lower)), said
    summary = tmp_path / "run" / "summary.json"
    assert not summary.exists() or json.loads(summary.read_text())["status"] == "failed"


def cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ...")


def cublas() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def wrapped() -> None:
    try:
        by_numpy()
    except MemoryError as error:
        raise OpenBookError("the generator cannot be loaded") from error


def worker() -> None:
    raise RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (cuda, "the memory of the GPU is used up (set-up): got 2.50 GiB asked for"),
        (cublas, "the memory of the GPU is used up (set-up)"),
        (wrapped, "the memory of this machine is used up (set-up): got 1.00 PiB asked for"),
        (worker, "(a worker that reads data, set-up)"),
    ],
)
def test_whoever_says_it(fails: Callable[[], None], said: str) -> None:
    config = load_experiment("tiny")
    now_in("set-up")
    with pytest.raises(Exception) as caught:  # noqa: PT011
        fails()
    error = memory_error(caught.value, config)
    assert error is not None and said in str(error)


def test_other_errors_are_left_alone() -> None:
    config = load_experiment("tiny")
    assert memory_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), config) is None
    assert memory_error(OSError(28, "No space left on device"), config) is None
