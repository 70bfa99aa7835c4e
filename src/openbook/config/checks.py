"""What can be seen to be wrong with a configuration without opening a file: keys, types, ranges and combinations."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any, get_type_hints

from openbook.config.data import BUILT_IN, SPANS
from openbook.config.models import MINILM
from openbook.config.refresh_schedule import RefreshSchedule
from openbook.config.rules.combinations import (
    Check,
    batch_checks,
    bm25_checks,
    checkpoint_checks,
    dpr_checks,
    has_index,
    objective_checks,
    refresh_checks,
)
from openbook.config.rules.model_checks import adapter_checks, answer_checks, model_checks
from openbook.config.schema import Config
from openbook.config.training import AUTO
from openbook.errors import OpenBookError

POSITIVE = """
    data.factbook.passage_words data.factbook.field_words data.max_question_tokens
    data.max_target_tokens retriever.n_docs index.nprobe
    index.ef_search index.gpu_temp_memory refresh.probes refresh.overlap_k refresh.spread warmup.batch_size warmup.lr
    trainer.batch_size trainer.accumulate trainer.devices trainer.nodes trainer.timeout
    trainer.log_every trainer.keep_checkpoints
    decode.beams decode.n_best dpr.depth distill_temperature data.spans.per_passage data.spans.most data.split.size
    serve.batch_size serve.max_queries serve.max_characters serve.max_topk serve.max_n_docs serve.max_beams
    serve.max_waiting wandb.timeout
""".split()
NOT_NEGATIVE = """
    seed index.keep_vectors refresh.floor refresh.ceiling refresh.look_every trainer.tokens_per_pass
    retriever.tokens_per_backward data.max_passage_tokens data.max_context_tokens retriever.temperature optim.lr
    trainer.max_steps trainer.max_epochs trainer.validate_every trainer.checkpoint_every data.factbook.field_parts
    data.workers data.build_processes optim.lr_question_encoder optim.lr_passage_encoder optim.lr_generator
    optim.weight_decay optim.warmup_steps optim.clip trainer.patience evaluate.n_docs evaluate.validation_questions
    evaluate.test_questions evaluate.bootstrap decode.min_tokens decode.max_tokens dpr.bm25_negatives
    dpr.index_negatives generator.lora.rank generator.lora.alpha retriever.lora.rank retriever.lora.alpha retriever.dim
    trainer.global_batch_size trainer.card_gib retriever.projection data.split.overlap evaluate.depth
    decode.no_repeat_ngram wandb.predictions warmup.window retriever.paraphrases
    evaluate.batch_size
""".split()
FRACTIONS = (
    "refresh.share",
    "retriever.dropout",
    "generator.dropout",
    "generator.label_smoothing",
    "generator.lora.dropout",
    "retriever.lora.dropout",
    "optim.final_lr",
)


# ${oc.env:NAME} and its like, by which OmegaConf would fetch a value from elsewhere and write it into the run folder.
_RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")
_LONGEST = 200  # bytes of a name; file systems take 255, and numbers and suffixes are added to it
NAMES = f"a name in runs/, without control characters, of at most {_LONGEST} bytes"
LARGEST = 2**40  # of any number: beyond it what is counted, allocated or multiplied with it fails far from here


def _values(section: Any, prefix: str = "") -> Iterator[tuple[str, object]]:
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from _values(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def value_of(config: object, key: str) -> object:
    """The value at a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def longest_answer(config: Config) -> tuple[str, int]:
    """(key, tokens) of the longest answer that is learned or decoded."""
    decoded = config.decode.max_tokens
    if decoded > config.data.max_target_tokens:
        return "decode.max_tokens", decoded
    return "data.max_target_tokens", config.data.max_target_tokens


def is_name(name: str) -> bool:
    """Whether a name of a run or of an experiment stays inside of runs/ and can be that of a folder."""
    path = PurePath(name)
    leads_out = path.is_absolute() or ".." in path.parts
    return not leads_out and name.isprintable() and len(name.encode(errors="replace")) <= _LONGEST


def encoder_keys(config: Config) -> list[str]:
    """The keys of the encoders that a configuration loads."""
    return ["retriever.question_encoder", "retriever.passage_encoder"] if has_index(config) else []


def generator_keys(config: Config) -> list[str]:
    """The key of the generator, where one is loaded."""
    return [] if config.objective == "dpr" else ["generator.model"]


def problems_of(config: Config, training: bool = True) -> list[OpenBookError]:
    """Everything wrong with a configuration that can be seen without opening a file: ranges and combinations.

    Not for training: another corpus or other questions may then be put beside embedded ones.
    """
    numbers = [key for key, value in _values(config) if isinstance(value, int | float)]
    ranges = (
        (numbers, lambda value: -LARGEST <= value <= LARGEST, f"a number, at most {LARGEST:,}"),
        (["serve.port"], lambda value: 0 <= value < 2**16, "a port, from 0 to 65,535"),
        (["seed"], lambda value: value < 2**32, "less than 4,294,967,296"),
        (["retriever.temperature"], lambda value: value == 0 or 1e-6 <= value <= 1e6, "0, or from 1e-6 to 1e6"),
        (["distill_temperature", "decode.temperature"], lambda value: 1e-6 <= value <= 1e6, "from 1e-6 to 1e6"),
        (["decode.top_p"], lambda value: 0 < value <= 1, "above 0, at most 1"),
        (["warmup.steps"], lambda value: value >= -1, "0 or more, or -1"),
        (["data.spans.share"], lambda value: 0 <= value < 1, "from 0 to below 1; data.train=spans for spans alone"),
        (["warmup.spans"], lambda value: 0 <= value <= 1 or value == -1, "a share from 0 to 1, or -1"),
        (POSITIVE, lambda value: value > 0, "more than 0"),
        (NOT_NEGATIVE, lambda value: value >= 0, "0 or more"),
        (FRACTIONS, lambda value: 0 <= value <= 1, "a share from 0 to 1"),
    )
    problems = _failures(
        config,
        (
            Check(not holds(value_of(config, key)), "value out of range", key, expected)
            for keys, holds, expected in ranges
            for key in keys
        ),
    )
    problems += _failures(
        config,
        (
            Check(
                isinstance(value, str) and bool(_RESOLVER.search(value)),
                "a value that would be fetched from elsewhere, and kept in the run folder",
                key,
                "the value itself; no ${NAME:...} is resolved",
                "A key for wandb or the hub stays in its own environment variable: no setting needs it.",
            )
            for key, value in _values(config)
        ),
    )
    problems += _failures(config, [Check(not is_name(config.experiment), "not a name", "experiment", NAMES)])
    refresh = config.refresh
    try:
        every = "30" if refresh.every == AUTO else refresh.every
        schedule = RefreshSchedule.read(every, refresh.min_overlap, refresh.floor, refresh.ceiling)
        problems += _failures(config, refresh_checks(config, schedule))
    except OpenBookError as problem:
        problems.append(problem)
    checks = [*answer_checks(config), *objective_checks(config)]
    if training:
        lacking = Check(
            not config.data.train, "no training questions", "data.train", "a file of questions or 'factbook'"
        )
        checks += [lacking, *_source_checks(config), *checkpoint_checks(config), *batch_checks(config)]
    checks += [*model_checks(config), *adapter_checks(config)]
    if config.retriever.kind == "bm25" and config.objective != "closed_book":
        checks += bm25_checks(config)
    if config.objective == "dpr":
        checks += dpr_checks(config)
    foreign = config.warmup.steps > 0 and config.generator.model != MINILM
    checks.append(
        Check(foreign, "the warm-up is for the small reader", "warmup.steps", "0 with a generator of your own")
    )
    return problems + _failures(config, checks)


def source_problems(config: Config) -> list[OpenBookError]:
    """Embedded passages beside questions of files, and the other way round."""
    return _failures(config, _source_checks(config))


def _failures(config: Config, checks: Iterable[Check]) -> list[OpenBookError]:
    return [
        OpenBookError(
            check.what,
            where=check.key,
            got=repr(value_of(config, check.key)),
            expected=check.expected,
            action=check.action,
        )
        for check in checks
        if check.fails
    ]


def _source_checks(config: Config) -> list[Check]:
    """Embedded passages or questions beside files."""
    data = config.data
    if not any(getattr(data, key) not in (*names, "") for key, names in BUILT_IN.items()):  # no file among them
        return []
    return [
        Check(
            data.is_embedded and config.objective != "closed_book",
            "questions of your own over the embedded corpus",
            "data.corpus",
            "a file of passages",
            "Set data.corpus=FILE too.",
        ),
        *(
            Check(
                getattr(data, key) in BUILT_IN[key] and getattr(data, key) != SPANS,
                "embedded questions over a corpus of your own",
                f"data.{key}",
                "a file of questions",
                f"Set it to a file of questions{'' if key == 'train' else ', or to nothing to do without'}.",
            )
            for key in ("train", "validation", "test")
        ),
    ]


def expected_at(key: str, said: str) -> str:
    """What the schema wants at a key, in words."""
    schema: Any = Config
    for part in key.split("."):
        schema = get_type_hints(schema)[part]
    choices = getattr(schema, "__args__", None)
    if choices:
        return "one of " + ", ".join(map(str, choices))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(schema, said)
