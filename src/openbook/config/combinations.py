"""Combinations of settings that cannot work, as tables: one row per rule."""

from typing import NamedTuple

from openbook.config.evaluation import WATCHED
from openbook.config.refresh_schedule import RefreshSchedule
from openbook.config.retrieval import IN_PLACE
from openbook.config.schema import Config


class Check(NamedTuple):
    """One rule: what is wrong with the value of `key` where `fails` is true."""

    fails: object
    what: str
    key: str
    expected: object
    action: str = ""


def labels_of(labels: str) -> tuple[str, ...]:
    """evaluate.labels as a list."""
    return tuple(label.strip() for label in labels.split(",") if label.strip())


def dpr_checks(config: Config) -> list[Check]:
    dpr, retriever = config.dpr, config.retriever
    most = dpr.bm25_negatives + dpr.index_negatives
    return [
        Check(
            config.warmup.steps > 0,
            "the retriever's warm-up has no reader to warm up",
            "warmup.steps",
            "0 with objective=dpr",
        ),
        Check(
            not retriever.trains,
            "both encoders are frozen and nothing else trains",
            "retriever.train_question_encoder",
            "true, or retriever.train_passage_encoder=true",
        ),
        Check(
            config.trainer.batch_size * config.trainer.world_size == 1 and not most,
            "one question per step has no negative passage: the loss is 0 and nothing is learned",
            "trainer.batch_size",
            "more than 1 without hard negatives",
            "Or set dpr.bm25_negatives=1.",
        ),
        Check(
            dpr.depth < most,
            "fewer candidates than hard negatives",
            "dpr.depth",
            f"at least dpr.bm25_negatives + dpr.index_negatives = {most}",
        ),
        Check(
            dpr.index_negatives and config.refresh.every == "0" and retriever.train_passage_encoder,
            "negatives of a live index, which is never refreshed",
            "dpr.index_negatives",
            "0 with refresh.every=0",
            "Or set refresh.every=30.",
        ),
    ]


def monitored(config: Config) -> str:
    """The validation metric that the best checkpoint is chosen by, several joined by +; empty where there is none."""
    if not config.data.validation or config.trainer.monitor != "auto":
        return config.trainer.monitor if config.data.validation else ""
    return {"dpr": "mrr", "closed_book": "f1"}.get(config.objective, "f1+mrr")


def checkpoint_checks(config: Config) -> list[Check]:
    evaluate, monitor = config.evaluate, monitored(config)
    measured = [name for name in WATCHED if name.startswith("recall") or name == "mrr" or config.objective != "dpr"]
    for name, holds in (
        ("utility", evaluate.utility),
        ("rouge_l", evaluate.task == "generation"),
        ("label_accuracy", evaluate.task == "labels"),
    ):
        if name in measured and not holds:
            measured.remove(name)
    best = evaluate.checkpoint == "best"
    return [
        Check(
            monitor and not set(monitor.split("+")) <= set(measured),
            "no validation of this configuration measures it",
            "trainer.monitor",
            f"one of {', '.join(measured)}, or several joined by +",
        ),
        Check(
            config.trainer.patience and not monitor,
            "nothing is measured that could stop getting better",
            "trainer.patience",
            "0 without data.validation and trainer.monitor",
        ),
        Check(
            best and not monitor,
            "there is no best checkpoint",
            "evaluate.checkpoint",
            "last without data.validation and trainer.monitor",
        ),
        Check(
            best and not config.refresh.fresh_test,
            "the test of another checkpoint needs an index of its weights",
            "refresh.fresh_test",
            "true with evaluate.checkpoint=best",
        ),
    ]


def notes_of(config: Config) -> list[str]:
    """What a run of this configuration cannot learn, and may be meant that way."""
    retriever, own = config.retriever, config.objective in ("closed_book", "dpr")
    notes = []
    if config.generator.weights == "bf16" and not config.generator.lora.rank and config.objective != "dpr":
        notes.append(
            "generator.weights=bf16: there is no fp32 copy of what is trained, so a step that moves a weight by less "
            "than 1/512 of it does nothing; generator.weights=fp32 keeps every step, at twice the memory"
        )
    if config.generator.sharded and config.trainer.world_size == 1:
        notes.append("generator.sharded=true: one rank holds everything; trainer.devices=N parts it over N")
    if retriever.n_docs == 1 and retriever.kind == "dense" and retriever.trains and not own:
        notes.append(
            "retriever.n_docs=1: p(z|x) of a single passage is 1 whatever its score, so the encoders learn nothing; "
            "read more passages, or freeze them (retriever.train_question_encoder=false, train_passage_encoder=false)"
        )
    return notes


def bm25_checks(config: Config) -> list[Check]:
    retriever, with_bm25 = config.retriever, "with retriever.kind=bm25"
    return [
        Check(
            config.objective not in ("rag_token", "rag_sequence"),
            "BM25 does not learn, and this objective is there to teach a retriever",
            "objective",
            f"rag_token or rag_sequence {with_bm25}",
            "Or set retriever.kind=dense.",
        ),
        Check(retriever.rerank > 0, "BM25 has no fresher scores to re-rank by", "retriever.rerank", f"0 {with_bm25}"),
        Check(retriever.start_from, "BM25 has no encoders to start with", "retriever.start_from", f"empty {with_bm25}"),
    ]


def objective_checks(config: Config) -> list[Check]:
    retriever, learns = config.retriever, config.objective in ("emdr2", "perplexity_distillation", "leave_one_out")
    return [
        Check(
            learns and retriever.n_docs == 1,
            "one passage gives the retriever no training signal",
            "retriever.n_docs",
            f"2 or more with {config.objective}",
        ),
        Check(
            learns and retriever.kind == "dense" and not retriever.trains,
            "nothing would learn to retrieve",
            "objective",
            "rag_token or rag_sequence with frozen encoders",
        ),
        Check(
            config.distill_temperature != 1 and config.objective not in ("perplexity_distillation", "leave_one_out"),
            "a temperature that this objective ignores",
            "distill_temperature",
            "1, or objective=perplexity_distillation or leave_one_out",
        ),
    ]


def refresh_checks(config: Config, schedule: RefreshSchedule) -> list[Check]:
    refresh, watches = config.refresh, schedule.watches_staleness
    intervals = [refresh.floor] if watches else [span.every for span in schedule.spans if span.every]
    shortest = min(intervals, default=refresh.spread)
    return [
        Check(
            watches and refresh.mode in IN_PLACE,
            "rolling and hot refresh all the time",
            "refresh.every",
            "steps or spans, over which all is encoded once",
            "Or set refresh.mode=amortized.",
        ),
        Check(
            watches and not refresh.look_every,
            "staleness decides but is never measured",
            "refresh.look_every",
            "steps between measurements, for example 10",
        ),
        Check(
            refresh.mode == "amortized" and refresh.spread > shortest,
            "an amortized refresh would not end before the next begins",
            "refresh.spread",
            f"at most {shortest}, the fewest steps between refreshes",
        ),
    ]


def has_index(config: Config) -> bool:
    """Whether there are passage embeddings, and so an index that is built, refreshed and planned for."""
    return config.objective != "closed_book" and config.retriever.kind == "dense"
