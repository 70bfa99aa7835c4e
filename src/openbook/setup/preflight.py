"""Checks of the whole configuration before anything expensive starts; all problems are reported together."""

from collections.abc import Callable
from functools import partial

import torch

from openbook.config.checks import encoder_keys, generator_keys, has_index, longest_answer, value_of
from openbook.config.data import BUILT_IN, EMBEDDED, SPANS, TRIOS
from openbook.config.retrieval import IN_PLACE
from openbook.config.schema import Config
from openbook.config.training import AUTO
from openbook.data.corpus import Corpus
from openbook.data.readers.columns import parse_columns
from openbook.data.readers.detect import exists
from openbook.errors import OpenBookError, raise_all
from openbook.index.faiss_factory import check_factory, search_device
from openbook.models.decoder_only.known_by import is_decoder_only
from openbook.models.pretrained import check_model_folder, positions_of
from openbook.setup.encoders import dimensions_differ, encoder_dim, sides
from openbook.utils.hardware import accelerator, autocast_dtype, n_cores
from openbook.utils.outside import check_installed

FILES = "data.corpus data.train data.validation data.test".split()
SWAP_FILES = {"hot_swap.corpus": "corpus", "hot_swap.facts": "test", "hot_swap.changed_facts": "test"}
WORKERS_PER_CORE = 4
WARMUP_FILES = "warmup.passages warmup.questions warmup.held_out".split()


def check(config: Config) -> None:
    """Files, weights, devices, lengths and the factory string; no model is loaded. One error lists all problems."""
    encoders, generator = encoder_keys(config), generator_keys(config)
    files = FILES + (WARMUP_FILES if config.warmup.steps else [])
    _attempt(
        *(partial(_check_file, key, str(value_of(config, key))) for key in files),
        partial(parse_columns, config.data.columns),
        partial(_check_devices, config),
        partial(_check_workers, config),
        partial(_check_quantized, config),
        partial(_check_bf16, config),
        *(partial(check_installed, *one) for one in _optional(config)),
        *(partial(check_model_folder, str(value_of(config, key)), key) for key in generator + encoders),
    )
    limits = {"data.max_question_tokens": 2, "data.max_passage_tokens": 0}
    _attempt(
        *(partial(_check_positions, config, key, "data.max_context_tokens", 0) for key in generator),
        *(partial(_check_positions, config, key, longest_answer(config)[0], 0, "decoder") for key in generator),
        *(partial(_check_positions, config, key, *limit) for key, limit in zip(encoders, limits.items(), strict=False)),
        *([partial(_check_dimensions, config)] if encoders else []),
    )


def check_swap(config: Config) -> None:
    """The files of a hot-swap, besides those that `check` covers."""

    def check_one(key: str) -> None:
        name = str(value_of(config, key))
        if not name:
            raise OpenBookError("a hot-swap needs it", where=key, got="nothing", expected="a file")
        _check_file(key, name)

    _attempt(*(partial(check_one, key) for key in SWAP_FILES))


def _attempt(*checks: Callable[[], object]) -> None:
    """Run all checks; one error lists every problem."""
    problems = []
    for one in checks:
        try:
            one()
        except OpenBookError as problem:
            problems.append(problem)
    raise_all(problems)


def check_corpus(config: Config, corpus: Corpus) -> None:
    """n_docs and the index family against the number of passages."""
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
    dim = encoder_dim(config) if has_index(config) else None
    if dim:
        check_factory(config.index.factory, dim, corpus.n_passages // config.trainer.world_size)


def _check_file(key: str, name: str) -> None:
    built_in = BUILT_IN.get(SWAP_FILES.get(key, key.removeprefix("data.")), (EMBEDDED, TRIOS, SPANS))
    if name in (*built_in, "") or (key in WARMUP_FILES and name == AUTO):
        return
    if not exists(name):
        expected = "a file, a folder, or hf:NAME for a data set of the hub"
        raise OpenBookError("no such file", where=key, got=f"nothing at {name}", expected=expected)


def _check_devices(config: Config) -> None:
    on, devices = accelerator(config.trainer.accelerator), config.trainer.devices
    most, of = (torch.cuda.device_count(), "GPUs") if on == "gpu" else (n_cores(), "cores")
    if devices > most:
        raise OpenBookError(
            "more devices than there are",
            where="trainer.devices",
            got=devices,
            expected=f"at most {most}, the {of} of this node",
        )


def _check_workers(config: Config) -> None:
    """Each is a process with the libraries of its own, of half a gigabyte: too many take the machine down."""
    workers, most = config.data.workers * config.trainer.devices, WORKERS_PER_CORE * n_cores()
    if workers > most:
        raise OpenBookError(
            "more workers than this node can run",
            where="data.workers",
            got=f"{config.data.workers} for each of {config.trainer.devices} ranks",
            expected=f"at most {most} in all, {WORKERS_PER_CORE} per core",
        )


def _check_quantized(config: Config) -> None:
    """On a CPU bitsandbytes repacks weights of 4 bits when they are saved, and they do not come back as they were."""
    if config.generator.quantize == "4bit" and accelerator(config.trainer.accelerator) == "cpu":
        raise OpenBookError(
            "weights of 4 bits change on a CPU whenever a checkpoint is written",
            where="generator.quantize",
            got="4bit",
            expected="a GPU",
            action="Set generator.quantize=8bit or none.",
        )


def _check_bf16(config: Config) -> None:
    """Weights in bf16 are trained where products are in bf16 too."""
    on = accelerator(config.trainer.accelerator)
    if config.generator.weights == "bf16" and autocast_dtype(config.trainer.precision, on) is None:
        raise OpenBookError(
            "weights in bf16 on hardware that does not multiply in it",
            where="generator.weights",
            got="bf16",
            expected="fp32 here",
            action="Or set trainer.precision=bf16, which emulates it and is slow.",
        )


def _optional(config: Config) -> list[tuple[str, str, str]]:
    """(key, package, what pip calls it) of what this configuration needs beside openbook's own dependencies."""
    adapters = [key for key in ("generator.lora.rank", "retriever.lora.rank") if value_of(config, key)]
    needed = [(key, "peft", "openbook[lora]") for key in adapters]
    if config.generator.quantize != "none":
        needed.append(("generator.quantize", "bitsandbytes", "openbook[quantized]"))
    if config.optim.name != "adamw":
        needed.append(("optim.name", "bitsandbytes", "openbook[quantized]"))
    return needed


def _check_positions(config: Config, model: str, limit: str, special: int, side: str = "encoder") -> None:
    """A model with learned positions cannot read longer inputs than it has positions."""
    name = str(value_of(config, model))
    positions = positions_of(name, side)
    asked = int(str(value_of(config, limit))) + special
    if positions and model == "generator.model" and side == "decoder" and is_decoder_only(name):
        asked += config.data.max_context_tokens  # the answer stands behind the context
    if positions and asked > positions:
        raise OpenBookError(
            "the limit is longer than the model reads",
            where=limit,
            got=asked,
            expected=f"at most {positions} tokens, {model}'s positions",
        )


def _check_dimensions(config: Config) -> None:
    question, passage = (side.final_dim for side in sides(config))
    if question != passage and question and passage:
        raise dimensions_differ(question, passage)
    device = search_device(config.index.device, config.index.factory, passage)
    if passage:
        check_factory(config.index.factory, passage, in_place=config.refresh.mode in IN_PLACE, device=device)
