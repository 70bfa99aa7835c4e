"""What can be seen to be wrong with a configuration without opening a file: ranges and combinations."""

from __future__ import annotations

from collections.abc import Callable

from openbook.config import EMBEDDED, IN_PLACE, MINILM, Config
from openbook.errors import OpenBookError
from openbook.schedule import RefreshSchedule

POSITIVE = """
    data.factbook.passage_words data.factbook.field_words data.max_question_tokens data.max_passage_tokens
    data.max_context_tokens data.max_target_tokens retriever.temperature retriever.n_docs index.nprobe
    index.ef_search index.gpu_temp_memory refresh.probes refresh.overlap_k refresh.spread warmup.batch_size warmup.lr
    optim.lr trainer.max_steps trainer.batch_size trainer.accumulate trainer.devices trainer.nodes
    trainer.validate_every trainer.checkpoint_every trainer.log_every evaluate.batch_size
    decode.beams decode.n_best dpr.depth distill_temperature
""".split()
NOT_NEGATIVE = """
    seed index.keep_vectors refresh.floor refresh.ceiling refresh.look_every trainer.tokens_per_pass
    data.factbook.field_parts data.workers warmup.steps
    optim.lr_question_encoder optim.lr_passage_encoder optim.lr_generator optim.weight_decay optim.warmup_steps
    optim.clip evaluate.n_docs evaluate.validation_questions evaluate.test_questions
    evaluate.bootstrap decode.min_tokens decode.max_tokens dpr.bm25_negatives dpr.index_negatives
""".split()
FRACTIONS = ("refresh.share", "retriever.dropout", "generator.dropout", "generator.label_smoothing", "optim.final_lr")


def value_of(config: object, key: str) -> object:
    """The value at a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def problems_of(config: Config, training: bool = True) -> list[OpenBookError]:
    """Everything wrong with a configuration that can be seen without opening a file: ranges and combinations.

    Not for training: another corpus or other questions may then be put beside embedded ones.
    """
    problems = []

    def wrong(what: str, key: str, expected: object, action: str = "") -> None:
        problems.append(
            OpenBookError(what, where=key, got=repr(value_of(config, key)), expected=expected, action=action)
        )

    for keys, right, expected in (
        (POSITIVE, lambda value: value > 0, "more than 0"),
        (NOT_NEGATIVE, lambda value: value >= 0, "0 or more"),
        (FRACTIONS, lambda value: 0 <= value <= 1, "a share from 0 to 1"),
    ):
        for key in keys:
            if not right(value_of(config, key)):
                wrong("value out of range", key, expected)

    try:
        _check_refresh(config, RefreshSchedule.read(config.refresh.every, config.refresh.min_overlap,
                                                    config.refresh.floor, config.refresh.ceiling), wrong)  # fmt: skip
    except OpenBookError as problem:
        problems.append(problem)
    data = config.data
    own = any(getattr(data, key) not in (EMBEDDED, "") for key in ("corpus", "train", "validation", "test"))
    own = own and training
    if own and data.corpus == EMBEDDED and config.objective != "closed_book":
        wrong("questions of your own over the embedded corpus", "data.corpus", "a file of passages",
              "Set data.corpus=FILE too.")  # fmt: skip
    if own:
        for key in ("train", "validation", "test"):
            if getattr(data, key) == EMBEDDED:
                hint = "Set it to a file of questions" + (", or to nothing to do without." if key != "train" else ".")
                wrong("embedded questions over a corpus of your own", f"data.{key}", "a file of questions", hint)
    if not data.train:
        wrong("no training questions", "data.train", "a file of questions or 'factbook'")
    if data.max_context_tokens < data.max_question_tokens + 8:
        wrong("contexts would hold no passage", "data.max_context_tokens",
              f"at least data.max_question_tokens + 8 = {data.max_question_tokens + 8}")  # fmt: skip
    retriever = config.retriever
    if retriever.rerank < -1 or 0 < retriever.rerank < retriever.n_docs:
        wrong("value out of range", "retriever.rerank", f"-1, 0, or at least retriever.n_docs = {retriever.n_docs}")
    if retriever.tied and retriever.train_question_encoder != retriever.train_passage_encoder:
        wrong("tied encoders train together or not at all", "retriever.train_passage_encoder",
              f"retriever.train_question_encoder's value, {retriever.train_question_encoder}")  # fmt: skip
    if retriever.tied and retriever.question_encoder != retriever.passage_encoder:
        wrong("tied encoders are one model", "retriever.passage_encoder", repr(retriever.question_encoder))
    if retriever.tied and config.optim.lr_question_encoder != config.optim.lr_passage_encoder:
        wrong("tied encoders have one learning rate", "optim.lr_passage_encoder", config.optim.lr_question_encoder)
    if config.warmup.steps and config.generator.model != MINILM:
        wrong("the warm-up is for the small reader", "warmup.steps", "0 with a generator of your own")
    return problems


def _check_refresh(config: Config, schedule: RefreshSchedule, wrong: Callable[..., None]) -> None:
    refresh = config.refresh
    if schedule.watches_staleness and refresh.mode in IN_PLACE:
        wrong("rolling and hot refresh all the time", "refresh.every", "steps or spans, over which all is encoded once",
              "Or set refresh.mode=amortized.")  # fmt: skip
    if schedule.watches_staleness and not refresh.look_every:
        wrong("staleness decides and nobody looks", "refresh.look_every", "steps between looks, for example 10")
    intervals = [refresh.floor] if schedule.watches_staleness else [span.every for span in schedule.spans if span.every]
    shortest = min(intervals, default=refresh.spread)
    if refresh.mode == "amortized" and refresh.spread > shortest:
        wrong("an amortized refresh would not end before the next begins", "refresh.spread",
              f"at most {shortest}, the fewest steps between refreshes")  # fmt: skip
