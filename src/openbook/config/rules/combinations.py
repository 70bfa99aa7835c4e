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
            config.generator.start_from,
            "no generator is loaded that could start from it",
            "generator.start_from",
            "nothing with objective=dpr",
        ),
        Check(
            not retriever.trains,
            "both encoders are frozen and nothing else trains",
            "retriever.train_question_encoder",
            "true, or retriever.train_passage_encoder=true",
        ),
        Check(
            config.trainer.questions_per_pass == 1 and not most,
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


def batch_checks(config: Config) -> list[Check]:
    trainer = config.trainer
    share = -(-trainer.questions_per_pass // max(1, trainer.world_size))
    return [
        Check(
            trainer.global_batch_size and share != trainer.batch_size,
            "the ranks' shares of it are of another size than trainer.batch_size",
            "trainer.global_batch_size",
            f"0, or at most {trainer.batch_size * trainer.world_size} and more than "
            f"{(trainer.batch_size - 1) * trainer.world_size} with {trainer.world_size} ranks of {trainer.batch_size}",
        )
    ]


def monitored(config: Config) -> str:
    """The validation metric that the best checkpoint is chosen by, several joined by +; empty where there is none."""
    if not config.data.validation or config.trainer.monitor != "auto":
        return config.trainer.monitor if config.data.validation else ""
    return {"dpr": "mrr", "closed_book": "f1"}.get(config.objective, "f1+mrr")


def measured_in_validation(config: Config) -> list[str]:
    """The metrics of metrics.csv's validation/."""
    evaluate = config.evaluate
    measured = [name for name in WATCHED if name.startswith("recall") or name == "mrr" or config.objective != "dpr"]
    for name, holds in (
        ("utility", evaluate.utility),
        ("rouge_l", evaluate.task == "generation"),
        ("label_accuracy", evaluate.task == "labels"),
    ):
        if name in measured and not holds:
            measured.remove(name)
    return measured


def checkpoint_checks(config: Config) -> list[Check]:
    evaluate, monitor, measured = config.evaluate, monitored(config), measured_in_validation(config)
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


def bm25_checks(config: Config) -> list[Check]:
    retriever, with_bm25 = config.retriever, "with retriever.kind=bm25"
    return [
        Check(
            config.objective not in ("rag_token", "rag_sequence", "generator_only"),
            "BM25 does not learn, and this objective is there to teach a retriever",
            "objective",
            f"rag_token, rag_sequence or generator_only {with_bm25}",
            "Or set retriever.kind=dense.",
        ),
        Check(retriever.rerank > 0, "BM25 has no fresher scores to re-rank by", "retriever.rerank", f"0 {with_bm25}"),
        Check(retriever.start_from, "BM25 has no encoders to start with", "retriever.start_from", f"empty {with_bm25}"),
    ]


TEACHERS = ("emdr2", "perplexity_distillation", "leave_one_out", "attention_distillation")


def objective_checks(config: Config) -> list[Check]:
    retriever, learns = config.retriever, config.objective in TEACHERS
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
            "generator_only with frozen encoders"
            if config.generator.reads == "all"
            else "rag_token or rag_sequence with frozen encoders",
        ),
        Check(
            config.distill_temperature != 1 and config.objective not in TEACHERS[1:],
            "a temperature that this objective ignores",
            "distill_temperature",
            f"1, or objective={', '.join(TEACHERS[1:-1])} or {TEACHERS[-1]}",
        ),
        *_reading_checks(config),
    ]


def _reading_checks(config: Config) -> list[Check]:
    retriever, objective = config.retriever, config.objective
    reads_all = config.generator.reads == "all"
    return [
        Check(
            reads_all and objective not in (*TEACHERS, "generator_only"),
            "a generator that reads all passages at once has no marginal over them",
            "objective",
            f"{', '.join(TEACHERS)} or generator_only with generator.reads=all",
            "Or set generator.reads=one.",
        ),
        Check(
            not reads_all and objective in ("attention_distillation", "generator_only"),
            "an objective of a generator that reads all passages at once",
            "objective",
            "another with generator.reads=one",
            "Or set generator.reads=all.",
        ),
        Check(
            objective == "generator_only" and retriever.kind == "dense" and retriever.trains,
            "nothing teaches the encoders",
            "retriever.train_question_encoder",
            "false with objective=generator_only, as retriever.train_passage_encoder",
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
