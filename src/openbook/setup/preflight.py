"""Everything that can be found wrong before anything expensive starts, said at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from openbook.config.checks import has_index, value_of
from openbook.config.data import BUILT_IN, EMBEDDED
from openbook.config.retrieval import IN_PLACE
from openbook.config.schema import Config
from openbook.data.corpus import Corpus
from openbook.errors import OpenBookError, raise_all
from openbook.index.faiss_factory import check_factory, search_device
from openbook.models.pretrained import check_model_folder, model_facts
from openbook.utils.hardware import accelerator

FILES = "data.corpus data.train data.validation data.test".split()
SWAP_FILES = {"hot_swap.corpus": "corpus", "hot_swap.facts": "test", "hot_swap.changed_facts": "test"}
WARMUP_FILES = "warmup.passages warmup.questions warmup.held_out".split()


def check(config: Config) -> None:
    """Files, weights, devices, lengths and the factory string; no model is loaded. One error lists all problems."""
    problems: list[OpenBookError] = []

    def attempt(look: Callable[..., object], *arguments: object) -> None:
        try:
            look(*arguments)
        except OpenBookError as problem:
            problems.append(problem)

    for key in FILES + (WARMUP_FILES if config.warmup.steps else []):
        attempt(_check_file, key, value_of(config, key))
    attempt(_check_devices, config)
    encoders = ["retriever.question_encoder", "retriever.passage_encoder"]
    generator = ["generator.model"] if config.objective != "dpr" else []
    models = [*generator, *(encoders if has_index(config) else [])]
    for key in models:
        attempt(check_model_folder, value_of(config, key), key)
    raise_all(problems)
    for key in generator:
        attempt(_check_positions, config, key, "data.max_context_tokens", 0)
    if has_index(config):
        attempt(_check_positions, config, encoders[0], "data.max_question_tokens", 3)
        attempt(_check_positions, config, encoders[1], "data.max_passage_tokens", 0)
        attempt(_check_dimensions, config)
    raise_all(problems)


def check_swap(config: Config) -> None:
    """The files of a hot-swap, beside those that `check` looks at."""
    problems = []
    for key in SWAP_FILES:
        name = str(value_of(config, key))
        try:
            if not name:
                raise OpenBookError("a hot-swap needs it", where=key, got="nothing", expected="a file")
            _check_file(key, name)
        except OpenBookError as problem:
            problems.append(problem)
    raise_all(problems)


def check_corpus(config: Config, corpus: Corpus) -> None:
    """n_docs and the index family against the passages there are."""
    if config.objective == "closed_book":
        return
    if config.retriever.n_docs > corpus.n_passages:
        raise OpenBookError(
            "n_docs is larger than the corpus",
            where="retriever.n_docs",
            got=config.retriever.n_docs,
            expected=f"at most {corpus.n_passages}, the number of passages",
            action="Lower retriever.n_docs.",
        )
    dim = passage_dim(config)
    if dim and has_index(config):
        check_factory(config.index.factory, dim, corpus.n_passages // config.trainer.world_size)


def passage_dim(config: Config) -> int | None:
    """The embedding dimension, from the model's folder; None for a hub name, whose facts show when it is loaded."""
    return model_facts(config.retriever.passage_encoder).get("hidden_size")


def _check_file(key: str, name: str) -> None:
    built_in = BUILT_IN.get(SWAP_FILES.get(key, key.removeprefix("data.")), (EMBEDDED,))
    if name in (*built_in, ""):
        return
    path = Path(name)
    if not path.is_file():
        there = "a folder" if path.is_dir() else "nothing"
        raise OpenBookError("no such file", where=key, got=f"{there} at {name}", expected="a file")


def _check_devices(config: Config) -> None:
    on, devices = accelerator(config.trainer.accelerator), config.trainer.devices
    if on == "gpu" and devices > torch.cuda.device_count():
        raise OpenBookError(
            "more devices than there are",
            where="trainer.devices",
            got=devices,
            expected=f"at most {torch.cuda.device_count()}, the GPUs of this node",
        )


def _check_positions(config: Config, model: str, limit: str, special: int) -> None:
    """A model with learnt positions cannot read further than they go."""
    positions = model_facts(str(value_of(config, model))).get("max_position_embeddings")
    asked = int(str(value_of(config, limit))) + special
    if positions and asked > positions:
        raise OpenBookError(
            "the limit is longer than the model reads",
            where=limit,
            got=asked,
            expected=f"at most {positions} tokens, {model}'s positions",
        )


def _check_dimensions(config: Config) -> None:
    question, passage = model_facts(config.retriever.question_encoder).get("hidden_size"), passage_dim(config)
    if question != passage and question and passage:
        raise OpenBookError(
            "question and passage encoder give embeddings of different dim",
            where="retriever.passage_encoder",
            got=passage,
            expected=question,
        )
    device = search_device(config.index.device, config.index.factory, passage)
    if passage:
        in_place = config.refresh.mode in IN_PLACE
        check_factory(config.index.factory, passage, in_place=in_place, device=device)
