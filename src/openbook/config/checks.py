"""What can be seen to be wrong with a configuration without opening a file: ranges and combinations."""

from collections.abc import Callable

from openbook.config.data import BUILT_IN
from openbook.config.models import MINILM
from openbook.config.refresh_schedule import RefreshSchedule
from openbook.config.retrieval import IN_PLACE
from openbook.config.schema import Config
from openbook.errors import OpenBookError

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
    retriever.tokens_per_backward
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


def has_index(config: Config) -> bool:
    """Whether there are passage embeddings, and so an index that is built, refreshed and planned for."""
    return config.objective != "closed_book" and config.retriever.kind == "dense"


def labels_of(labels: str) -> tuple[str, ...]:
    """evaluate.labels as a list."""
    return tuple(label.strip() for label in labels.split(",") if label.strip())


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
        _check_refresh(
            config,
            RefreshSchedule.read(
                config.refresh.every, config.refresh.min_overlap, config.refresh.floor, config.refresh.ceiling
            ),
            wrong,
        )
    except OpenBookError as problem:
        problems.append(problem)
    _check_answers(config, wrong)
    _check_objective(config, wrong)
    data = config.data
    own = any(getattr(data, key) not in (*names, "") for key, names in BUILT_IN.items())
    own = own and training
    if own and data.corpus in BUILT_IN["corpus"] and config.objective != "closed_book":
        wrong(
            "questions of your own over the embedded corpus",
            "data.corpus",
            "a file of passages",
            "Set data.corpus=FILE too.",
        )
    if own:
        for key in ("train", "validation", "test"):
            if getattr(data, key) in BUILT_IN[key]:
                hint = "Set it to a file of questions" + (", or to nothing to do without." if key != "train" else ".")
                wrong("embedded questions over a corpus of your own", f"data.{key}", "a file of questions", hint)
    if not data.train:
        wrong("no training questions", "data.train", "a file of questions or 'factbook'")
    if data.max_context_tokens < data.max_question_tokens + 8:
        wrong(
            "contexts would hold no passage",
            "data.max_context_tokens",
            f"at least data.max_question_tokens + 8 = {data.max_question_tokens + 8}",
        )
    retriever = config.retriever
    if retriever.rerank < -1 or 0 < retriever.rerank < retriever.n_docs:
        wrong("value out of range", "retriever.rerank", f"-1, 0, or at least retriever.n_docs = {retriever.n_docs}")
    if retriever.tied and retriever.train_question_encoder != retriever.train_passage_encoder:
        wrong(
            "tied encoders train together or not at all",
            "retriever.train_passage_encoder",
            f"retriever.train_question_encoder's value, {retriever.train_question_encoder}",
        )
    if retriever.tied and retriever.question_encoder != retriever.passage_encoder:
        wrong("tied encoders are one model", "retriever.passage_encoder", repr(retriever.question_encoder))
    if retriever.tied and config.optim.lr_question_encoder != config.optim.lr_passage_encoder:
        wrong("tied encoders have one learning rate", "optim.lr_passage_encoder", config.optim.lr_question_encoder)
    if retriever.tokens_per_backward and not (has_index(config) and retriever.train_passage_encoder):
        wrong(
            "no passage is encoded with a gradient, so there is none to make in parts",
            "retriever.tokens_per_backward",
            "0 without a passage encoder that trains",
        )
    if retriever.kind == "bm25" and config.objective != "closed_book":
        _check_bm25(config, wrong)
    if config.objective == "dpr":
        _check_dpr(config, wrong)
    if config.warmup.steps and config.generator.model != MINILM:
        wrong("the warm-up is for the small reader", "warmup.steps", "0 with a generator of your own")
    return problems


def _check_dpr(config: Config, wrong: Callable[..., None]) -> None:
    dpr, retriever = config.dpr, config.retriever
    if config.warmup.steps:
        wrong("the retriever's warm-up has no reader to warm up", "warmup.steps", "0 with objective=dpr")
    if not (retriever.train_question_encoder or retriever.train_passage_encoder):
        wrong(
            "both encoders are frozen and nothing else trains",
            "retriever.train_question_encoder",
            "true, or retriever.train_passage_encoder=true",
        )
    most = dpr.bm25_negatives + dpr.index_negatives
    if dpr.depth < most:
        wrong(
            "fewer candidates than hard negatives",
            "dpr.depth",
            f"at least dpr.bm25_negatives + dpr.index_negatives = {most}",
        )
    if dpr.index_negatives and config.refresh.every == "0" and retriever.train_passage_encoder:
        wrong(
            "negatives of a live index, which is never refreshed",
            "dpr.index_negatives",
            "0 with refresh.every=0",
            "Or set refresh.every=30.",
        )


def _check_bm25(config: Config, wrong: Callable[..., None]) -> None:
    if config.objective not in ("rag_token", "rag_sequence"):
        wrong(
            "BM25 does not learn, and this objective is there to teach a retriever",
            "objective",
            "rag_token or rag_sequence with retriever.kind=bm25",
            "Or set retriever.kind=dense.",
        )
    if config.retriever.rerank > 0:
        wrong("BM25 has no fresher scores to re-rank by", "retriever.rerank", "0 with retriever.kind=bm25")
    if config.retriever.start_from:
        wrong("BM25 has no encoders to start with", "retriever.start_from", "empty with retriever.kind=bm25")


def _check_answers(config: Config, wrong: Callable[..., None]) -> None:
    decode, wanted = config.decode, config.evaluate
    most = decode.max_tokens or config.data.max_target_tokens
    if decode.min_tokens > most:
        wrong("answers of no possible length", "decode.min_tokens", f"at most {most}, the most tokens of an answer")
    pooled = config.objective == "rag_sequence" and decode.rag_sequence != "greedy"  # candidates of all passages
    if decode.n_best > decode.beams and not pooled:
        wrong(
            "more answers than beams", "decode.n_best", f"at most decode.beams = {decode.beams}", "Raise decode.beams."
        )
    if config.objective == "rag_sequence" and decode.rag_sequence == "greedy" and decode.beams > 1:
        wrong("a greedy search has one beam", "decode.beams", "1, or decode.rag_sequence=thorough or fast")
    if wanted.task == "labels" and len(labels_of(wanted.labels)) < 2:
        wrong("no labels to choose from", "evaluate.labels", "two labels or more, comma-separated")
    if wanted.task != "labels" and wanted.labels:
        wrong("labels that nothing looks at", "evaluate.labels", "nothing, or evaluate.task=labels")


def _check_objective(config: Config, wrong: Callable[..., None]) -> None:
    retriever, learns = config.retriever, config.objective in ("emdr2", "perplexity_distillation", "leave_one_out")
    if learns and retriever.n_docs == 1:
        wrong("one passage tells the retriever nothing", "retriever.n_docs", f"2 or more with {config.objective}")
    if (
        learns
        and retriever.kind == "dense"
        and not (retriever.train_question_encoder or retriever.train_passage_encoder)
    ):
        wrong("nothing would learn to retrieve", "objective", "rag_token or rag_sequence with frozen encoders")
    if config.distill_temperature != 1 and config.objective not in ("perplexity_distillation", "leave_one_out"):
        wrong(
            "a temperature that nothing looks at",
            "distill_temperature",
            "1, or objective=perplexity_distillation or leave_one_out",
        )


def _check_refresh(config: Config, schedule: RefreshSchedule, wrong: Callable[..., None]) -> None:
    refresh = config.refresh
    if schedule.watches_staleness and refresh.mode in IN_PLACE:
        wrong(
            "rolling and hot refresh all the time",
            "refresh.every",
            "steps or spans, over which all is encoded once",
            "Or set refresh.mode=amortized.",
        )
    if schedule.watches_staleness and not refresh.look_every:
        wrong("staleness decides and nobody looks", "refresh.look_every", "steps between looks, for example 10")
    intervals = [refresh.floor] if schedule.watches_staleness else [span.every for span in schedule.spans if span.every]
    shortest = min(intervals, default=refresh.spread)
    if refresh.mode == "amortized" and refresh.spread > shortest:
        wrong(
            "an amortized refresh would not end before the next begins",
            "refresh.spread",
            f"at most {shortest}, the fewest steps between refreshes",
        )
