"""What an evaluation measures: the answer, the passages, what they are worth; overall, per group and how surely."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from openbook.batch import Example, Passage
from openbook.errors import OpenBookError
from openbook.intervals import Statistic, bootstrap, mean_of
from openbook.matching import exact_match, f1, has_answer, normalize_answer
from openbook.text_metrics import bleu_1, bleu_1_counts, distinct_n, q_bleu_1, rouge_l

__all__ = [
    "HELD_OUT", "RECALL_AT", "Prediction", "ReadPassage", "Task", "TokenProvenance", "answer_hits", "exact_match", "f1",
    "first_hit", "gold_hits", "has_answer", "normalize_answer", "relevant_passages", "summarize",
]  # fmt: skip

RECALL_AT = (1, 5, 20)
"""The depths k that every summary reports."""

HELD_OUT = "held_out"
"""The phrasing of questions that are reported apart from the headline."""

Task = Literal["qa", "generation", "labels"]
"""What is measured of the answer beside exact match and F1."""


class ReadPassage(NamedTuple):
    """A passage that the generator read: p(z|x) before and p(z|x,y) after the produced answer, both 0 to 1."""

    id: str
    title: str
    prior: float
    posterior: float
    relevant: bool
    text: str = ""


class TokenProvenance(NamedTuple):
    """A token of the answer, and the share of each passage in its probability, 0 to 1, in the passages' order."""

    text: str
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One question answered, as `predictions.jsonl` holds it. Every field from `logprob` on may be missing (not known).

    passages: the n_docs passages that were marginalised over, best prior first.
    exact_match, f1: of the answer; None where there is no generator to answer.
    hits: for each of the top 20 retrieved passages, best first, whether it is relevant; shorter where fewer came back.
    logprob: log p(y|x) of the produced answer, in nats.
    candidates: (text, log p(y|x)) of the n best answers, best first; of every label where labels are predicted.
    tokens: the produced answer token by token (RAG-Token).
    answer_hits, gold_hits: as hits, whether the passage holds an answer, and whether it is a known positive one.
    gold_logprob, closed_book_logprob: log p(y|x) of the gold answer, with the passages and from the question alone.
    label: the predicted label.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    relation: str
    phrasing: str
    passages: tuple[ReadPassage, ...]
    exact_match: float | None
    f1: float | None
    hits: tuple[bool, ...]
    logprob: float | None = None
    candidates: tuple[tuple[str, float], ...] = ()
    tokens: tuple[TokenProvenance, ...] = ()
    answer_hits: tuple[bool, ...] = ()
    gold_hits: tuple[bool, ...] = ()
    gold_logprob: float | None = None
    closed_book_logprob: float | None = None
    label: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, for one line of `predictions.jsonl`."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        lists: dict[str, Any] = {name: list(value) for name, value in fields.items() if isinstance(value, tuple)}
        lists["passages"] = [passage._asdict() for passage in self.passages]
        lists["candidates"] = [[text, logprob] for text, logprob in self.candidates]
        lists["tokens"] = [{"text": token.text, "weights": list(token.weights)} for token in self.tokens]
        return {**fields, **lists}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Prediction:
        """The inverse of `to_json`, also of lines without later fields; a KeyError, TypeError or ValueError else."""
        first = cls.__slots__.index("logprob")
        known = {name: fields[name] for name in cls.__slots__[:first]}
        known |= {name: fields[name] for name in cls.__slots__[first:] if name in fields}
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        known["passages"] = tuple(ReadPassage(**passage) for passage in fields["passages"])
        known["candidates"] = tuple((text, logprob) for text, logprob in fields.get("candidates", ()))
        known["tokens"] = tuple(
            TokenProvenance(token["text"], tuple(token["weights"])) for token in fields.get("tokens", ())
        )
        return cls(**known)


def answer_hits(answers: Sequence[str], passages: Sequence[Passage], regex: bool = False) -> tuple[bool, ...]:
    """Which passages hold an answer (`has_answer` on their text, as DPR counts)."""
    return tuple(has_answer(passage.text, answers, regex) for passage in passages)


def gold_hits(positive_ids: Sequence[str], passages: Sequence[Passage]) -> tuple[bool, ...]:
    """Which passages are known positive ones; () where none is known."""
    return tuple(passage.id in positive_ids for passage in passages) if positive_ids else ()


def relevant_passages(example: Example, passages: Sequence[Passage], regex: bool = False) -> tuple[bool, ...]:
    """Which retrieved passages count for recall: the known positive ones; where none is known, those with an answer."""
    if example.positive_ids:
        return gold_hits(example.positive_ids, passages)
    return answer_hits(example.answers, passages, regex)


def first_hit(hits: Sequence[bool]) -> float:
    """Rank of the first relevant passage among the top 20, from 1; infinite where there is none."""
    return next((float(rank) for rank, hit in enumerate(hits[: max(RECALL_AT)], 1) if hit), math.inf)


def summarize(
    records: Sequence[Prediction], task: Task = "qa", resamples: int = 0, seed: int = 0, labels: Sequence[str] = ()
) -> dict[str, Any]:
    """exact_match, f1, recall_at_1/5/20 (fractions) and n_questions, overall and per group; below what else there is.

    Questions whose phrasing is HELD_OUT (worded as no training question was) are reported apart: they count only under
    `by_phrasing`, unless there are no others. The groups stand under `by_relation` and `by_phrasing`, each a dict from
    name to the same keys, sorted by name. Nothing retrieved (closed book) is a recall of 0.

    A key below is left out where no question has it measured, and is a mean over those that have:
    answer_recall_at_1/5/20  share of questions with an answer in the first k passages (DPR's top-k accuracy)
    gold_recall_at_1/5/20    share with a known positive passage among the first k; mrr: mean of 1 / rank of the first
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
    counted = [row for row, record in enumerate(records) if record.phrasing != HELD_OUT] or list(range(len(records)))

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
    known["mrr"] = mean_of([None if rank is None else 1 / rank for rank in gold])
    utility = [_utility(record) for record in records]
    known["utility"] = mean_of(utility)
    known["utility_positive"] = mean_of([None if nats is None else float(nats > 0) for nats in utility])
    if task == "generation":
        pairs = [(record.prediction, record.answers) for record in records]
        known["rouge_l"] = mean_of([rouge_l(*pair) for pair in pairs])
        known["bleu_1"] = Statistic(np.array([bleu_1_counts(*pair) for pair in pairs], dtype=np.float64), bleu_1)
        known["q_bleu_1"] = mean_of([q_bleu_1(*pair) for pair in pairs])
    if task == "labels":
        known["label_accuracy"] = mean_of([exact_match(r.label, r.answers) if r.label else None for r in records])
        decided = [_two_way(record, labels[:2]) for record in records]
        if len(labels) > 1 and "" not in decided:
            known["label_accuracy_2way"] = mean_of([
                None if choice is None else exact_match(choice, record.answers)
                for choice, record in zip(decided, records, strict=True)
            ])  # fmt: skip
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


def _two_way(record: Prediction, pair: Sequence[str]) -> str | None:
    """The likelier of two labels; "" where neither has a score, None where the question is not for these two."""
    if not record.label or not any(exact_match(label, record.answers) for label in pair):
        return None
    scored = [(logprob, text) for text, logprob in record.candidates if exact_match(text, pair)]
    # The likeliest of all is the likeliest of the two.
    return record.label if exact_match(record.label, pair) else max(scored, default=(0.0, ""))[1]
