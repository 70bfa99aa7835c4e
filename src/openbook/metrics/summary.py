"""What an evaluation measures: the answer, the passages, what they are worth; overall, per group and how surely."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from openbook.errors import OpenBookError
from openbook.metrics.bootstrap import Statistic, bootstrap, mean_of
from openbook.metrics.generation import bleu_1, bleu_1_counts, distinct_n, q_bleu_1, rouge_l
from openbook.metrics.prediction import Prediction
from openbook.metrics.retrieval import RECALL_AT, first_hit

HELD_OUT = "held_out"  # The phrasing of questions that are reported apart from the headline.

Task = Literal["qa", "generation", "labels"]  # What is measured of the answer beside exact match and F1.


def summarize(
    records: Sequence[Prediction], task: Task = "qa", resamples: int = 0, seed: int = 0, labels: Sequence[str] = ()
) -> dict[str, Any]:
    """exact_match, f1, recall_at_1/5/20 (fractions), mrr (mean of 1 / rank of the first relevant passage) and
    n_questions, overall and per group; below what else there is.

    Questions whose phrasing is HELD_OUT (worded as no training question was) are reported apart: they count only under
    `by_phrasing`, unless there are no others. The groups stand under `by_relation` and `by_phrasing`, each a dict from
    name to the same keys, sorted by name. Nothing retrieved (closed book) is a recall of 0.

    A key below is left out where no question has it measured, and is a mean over those that have:
    answer_recall_at_1/5/20  share of questions with an answer in the first k passages (DPR's top-k accuracy)
    gold_recall_at_1/5/20    share with a known positive passage among the first k
    utility                  gold_logprob - closed_book_logprob (finite), mean in nats; utility_positive: share above 0
    task="generation"        rouge_l, bleu_1 (over all questions together), q_bleu_1, distinct_1/2/3
    task="labels"            label_accuracy, and label_accuracy_2way: over questions of the first two `labels`, decided
                             between these by `candidates`; left out where the candidates of a question name neither

    resamples: above 0 adds `intervals`, from name to [low, high], for the overall rates other than distinct_n (a draw
    with replacement repeats texts, so it has fewer distinct n-grams than the texts have).
    """
    if not records:
        raise OpenBookError(
            "nothing to summarize", got="0 predictions", expected="1 or more", action="Check the evaluation split."
        )
    if task not in get_args(Task):
        raise OpenBookError("an unknown task", where="evaluate.task", got=task, expected=" or ".join(get_args(Task)))
    if isinstance(labels, str):
        raise OpenBookError("the labels are one text", got=repr(labels), expected="a list of texts, one per label")
    statistics = _statistics(records, task, labels)
    counted = _counted(records)

    def rates(rows: list[int]) -> dict[str, float | int]:
        values = {name: statistic.of(rows) for name, statistic in statistics.items()}
        if task == "generation":
            values |= {f"distinct_{n}": distinct_n([records[row].prediction for row in rows], n) for n in (1, 2, 3)}
        return {name: value for name, value in values.items() if value is not None} | {"n_questions": len(rows)}

    def groups(rows: Sequence[int], key: Callable[[Prediction], str]) -> dict[str, dict[str, float | int]]:
        names = sorted({key(records[row]) for row in rows} - {""})
        return {name: rates([row for row in rows if key(records[row]) == name]) for name in names}

    summary: dict[str, Any] = rates(counted)
    if resamples > 0:
        drawn = {name: statistics[name]._replace(columns=statistics[name].columns[counted]) for name in statistics}
        summary["intervals"] = {name: list(interval) for name, interval in bootstrap(drawn, resamples, seed).items()}
    summary["by_relation"] = groups(counted, lambda record: record.relation)
    summary["by_phrasing"] = groups(range(len(records)), lambda record: record.phrasing)
    return summary


def headline(records: Sequence[Prediction]) -> list[Prediction]:
    """The questions that the overall metrics count: those of HELD_OUT phrasing only where there are no others."""
    return [records[row] for row in _counted(records)]


def _counted(records: Sequence[Prediction]) -> list[int]:
    return [row for row, record in enumerate(records) if record.phrasing != HELD_OUT] or list(range(len(records)))


def _statistics(records: Sequence[Prediction], task: Task, labels: Sequence[str]) -> dict[str, Statistic]:
    known: dict[str, Statistic] = {
        "exact_match": mean_of([record.exact_match for record in records]),
        "f1": mean_of([record.f1 for record in records]),
        **_recalls("recall", [first_hit(record.hits) for record in records]),
        **_recalls(
            "answer_recall", [first_hit(record.answer_hits) if record.answer_hits else None for record in records]
        ),
    }
    gold = [first_hit(record.gold_hits) if record.gold_hits else None for record in records]
    known |= _recalls("gold_recall", gold)
    known["mrr"] = mean_of([1 / first_hit(record.hits) for record in records])
    utility = [_utility(record) for record in records]
    known["utility"] = mean_of(utility)
    known["utility_positive"] = mean_of([None if nats is None else float(nats > 0) for nats in utility])
    if task == "generation":
        pairs = [(record.prediction, record.answers) for record in records]
        known["rouge_l"] = mean_of([rouge_l(*pair) for pair in pairs])
        known["bleu_1"] = Statistic(np.array([bleu_1_counts(*pair) for pair in pairs], dtype=np.float64), bleu_1)
        known["q_bleu_1"] = mean_of([q_bleu_1(*pair) for pair in pairs])
    if task == "labels":
        known["label_accuracy"] = mean_of([float(is_label(r.label, r.answers)) if r.label else None for r in records])
        decided = [_two_way(record, labels[:2]) for record in records]
        if len(labels) > 1 and "" not in decided:
            known["label_accuracy_2way"] = mean_of(
                [
                    None if choice is None else float(is_label(choice, record.answers))
                    for choice, record in zip(decided, records, strict=True)
                ]
            )
    return known


def _recalls(name: str, ranks: Sequence[float | None]) -> dict[str, Statistic]:
    """Share of questions with a relevant passage among the first k, from the rank of the first."""
    return {
        f"{name}_at_{k}": mean_of([None if rank is None else float(rank <= k) for rank in ranks]) for k in RECALL_AT
    }


def _utility(record: Prediction) -> float | None:
    if record.gold_logprob is None or record.closed_book_logprob is None:
        return None
    return record.gold_logprob - record.closed_book_logprob


def is_label(text: str, labels: Sequence[str]) -> bool:
    """By equality, whatever the case: normalisation as of answers would make one of `<`, `=` and `>`."""
    return text.casefold() in [label.strip().casefold() for label in labels]


def _two_way(record: Prediction, pair: Sequence[str]) -> str | None:
    """The likelier of two labels; "" where neither has a score, None where the question is not for these two."""
    if not record.label or not any(is_label(label, record.answers) for label in pair):
        return None
    scored = [(logprob, text) for text, logprob in record.candidates if is_label(text, pair)]
    # The likeliest of all is the likeliest of the two.
    return record.label if is_label(record.label, pair) else max(scored, default=(0.0, ""))[1]
