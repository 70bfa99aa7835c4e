"""Memory that is used up, on a GPU or on the host: which sizes asked for it, and which two settings to lower."""

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from openbook.config.checks import value_of
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.setup.inputs.data import answered_at_once
from openbook.utils.distributed import phase
from openbook.utils.host_memory import available_memory, gpu_free_memory, human

# How torch, CUDA's libraries, FAISS and the kernel say it where they have no exception of their own for it.
_ON_GPU = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|StandardGpuResources: alloc"
)
_ON_HOST = re.compile(r"can't allocate memory|not enough memory: you tried|std::bad_alloc|Cannot allocate memory")
_WORKER = re.compile(r"DataLoader worker .* killed by signal: Killed")
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?[KMGTPE]?i?B|\d+ bytes)|Unable to allocate ([\d.]+ [KMGTPE]?i?B)")

# Where a frame of the traceback shows what was being done, and the settings by which it takes less.
_PLACES = (
    ("openbook/retrieval/corpus_encoder", "encoding the corpus"),
    ("openbook/index/", "the index"),
    ("openbook/inference/", "answering"),
    ("training_step", "a training step"),
    ("openbook/setup/resources/plan", "a training step"),  # which is timed there
)
_SIZES = {
    "encoding the corpus": ("trainer.tokens_per_pass", "data.max_passage_tokens"),
    "the index": ("index.factory", "retriever.dim", "index.gpu_temp_memory"),
    "answering": (
        "evaluate.batch_size",
        "decode.beams",
        "evaluate.n_docs",
        "retriever.n_docs",
        "data.max_context_tokens",
    ),
    "a training step": ("trainer.batch_size", "retriever.n_docs", "data.max_context_tokens", "data.max_target_tokens"),
    "a worker that reads data": ("data.workers", "trainer.batch_size"),
}
_LOWER = {
    "encoding the corpus": "Lower trainer.tokens_per_pass and data.max_passage_tokens.",
    "the index": "Set an index.factory of fewer bytes per passage (SQfp16, or IVF with PQ) and lower retriever.dim; "
    "`openbook plan` says what each takes.",
    "answering": "Lower evaluate.batch_size and decode.beams.",
    "a training step": "Lower trainer.batch_size, raising trainer.accumulate by as much for the same steps, and "
    "data.max_context_tokens; trainer.checkpointing=true trades time for memory.",
    "a worker that reads data": "Lower data.workers and trainer.batch_size.",
}
_OTHERWISE = "Lower trainer.batch_size and data.workers, or name smaller models (generator.model, retriever.*_encoder)."


class NoMemoryError(OpenBookError):
    """There was not enough memory."""


@contextmanager
def in_words_of_settings(config: Config) -> Iterator[None]:
    """An error of missing memory inside is raised as one sentence; every other as it is."""
    try:
        yield
    except Exception as error:
        told = memory_error(error, config)
        if told is None:
            raise
        raise told from error


def memory_error(error: BaseException, config: Config) -> NoMemoryError | None:
    """The error in words where missing memory is its cause."""
    found = _cause(error)
    if found is None:
        return None
    cause, of = found
    where = "a worker that reads data" if of == "worker" else _place(error)
    chosen = {"evaluate.batch_size": answered_at_once(config)}
    sizes = ", ".join(f"{key}={chosen.get(key, value_of(config, key))}" for key in _SIZES.get(where, ()))
    asked = _ASKED.search(str(cause))
    free = gpu_free_memory() if of == "GPU" else available_memory()
    facts = [
        f"{_size(next(filter(None, asked.groups())))} asked for" if asked else "",
        "" if free is None else f"{human(free)} free",
        f"with {sizes}" if sizes else "",
    ]
    return NoMemoryError(
        "the memory of the GPU is used up" if of == "GPU" else "the memory of this machine is used up",
        where=", ".join(dict.fromkeys((where or "set-up", phase()))),
        got=", ".join(filter(None, facts)),
        action=_LOWER.get(where, _OTHERWISE),
    )


def _cause(error: BaseException) -> tuple[BaseException, str] | None:
    """(the exception that says so, "GPU", "host" or "worker")."""
    one: BaseException | None = error
    while one is not None:
        text = str(one)
        if isinstance(one, torch.OutOfMemoryError) or _ON_GPU.search(text):
            return one, "GPU"
        if isinstance(one, RuntimeError) and _WORKER.search(text):
            return one, "worker"
        of_system = isinstance(one, OSError) and one.errno == errno.ENOMEM
        if isinstance(one, MemoryError) or of_system or (isinstance(one, RuntimeError) and _ON_HOST.search(text)):
            return one, "host"
        one = one.__cause__
    return None


def _place(error: BaseException) -> str:
    """What was being done, by the innermost frame that says so; empty where none does."""
    one: BaseException | None = error
    while one is not None:
        for frame in reversed(traceback.extract_tb(one.__traceback__)):
            at = f"{frame.filename} {frame.name}"
            for sign, what in _PLACES:
                if sign in at:
                    return what
        one = one.__cause__
    return ""


def _size(text: str) -> str:
    return human(int(text.removesuffix(" bytes"))) if text.endswith(" bytes") else text
