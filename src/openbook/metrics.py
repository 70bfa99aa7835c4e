"""What an evaluation measures: exact match and F1 of the answer, recall at k of the passages, overall and per group."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import regex
from numpy.typing import NDArray

from openbook.batch import Example, Passage
from openbook.errors import OpenBookError

RECALL_AT = (1, 5, 20)
"""The depths k that every summary reports."""

HELD_OUT = "held_out"
"""The phrasing of questions that are reported apart from the headline."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# Letters, digits and the accents NFD splits off form words; every other visible sign is a token of its own. The
# standard library's \w leaves accents out, which would cut decomposed words in pieces: hence `regex`.
_TOKENS = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


class ReadPassage(NamedTuple):
    """A passage that the generator read: p(z|x) before and p(z|x,y) after the produced answer, both 0 to 1."""

    id: str
    title: str
    prior: float
    posterior: float
    relevant: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One question answered, as `predictions.jsonl` holds it.

    passages: the n_docs passages that were marginalised over, best prior first.
    hits: for each of the top 20 retrieved passages, best first, whether it is relevant; shorter where fewer came back.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    relation: str
    phrasing: str
    passages: tuple[ReadPassage, ...]
    exact_match: float
    f1: float
    hits: tuple[bool, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, for one line of `predictions.jsonl`."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        passages = [passage._asdict() for passage in self.passages]
        return {**fields, "answers": list(self.answers), "passages": passages, "hits": list(self.hits)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Prediction:
        """The inverse of `to_json`; a KeyError or TypeError where the line is of another kind."""
        passages = tuple(ReadPassage(**passage) for passage in fields["passages"])
        known = {name: fields[name] for name in cls.__slots__}
        known |= {"answers": tuple(fields["answers"]), "passages": passages, "hits": tuple(fields["hits"])}
        return cls(**known)


def normalize_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces (SQuAD, Rajpurkar et al. 2016, evaluation)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 where the normalised prediction equals one of the normalised answers, else 0.0."""
    return _best(prediction, answers, lambda produced, gold: float(produced == gold))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Token F1 after normalisation, best over the answers, 0 to 1. Two empty texts agree: 1 (as SQuAD 2.0 counts)."""
    return _best(prediction, answers, _token_f1)


def has_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether some answer's tokens stand in the text side by side and in order (DPR, Karpukhin et al. 2020).

    NFD-normalised and lower-cased; "art" is not found in "party". An answer without a token is never found.
    """
    # No token holds a space, so a search between spaces is a search for whole tokens.
    joined = _joined_tokens(text)
    return any(answer in joined for answer in map(_joined_tokens, answers) if answer.strip())


def relevant_passages(example: Example, passages: Sequence[Passage]) -> tuple[bool, ...]:
    """Which retrieved passages count for recall: the known positive ones; where none is known, those with an answer."""
    if example.positive_ids:
        return tuple(passage.id in example.positive_ids for passage in passages)
    return tuple(has_answer(passage.text, example.answers) for passage in passages)


def recall_at_k(relevant: NDArray[np.bool_], k: int) -> float:
    """Share of questions with a relevant passage among the first k (DPR's top-k accuracy), 0 to 1.

    relevant: [n_questions, top_k] bool, best hit first. Fewer than k columns is allowed: what was not retrieved
    is not relevant.
    """
    if k < 1:
        raise OpenBookError("recall_at_k counts passages from 1", where="k", got=k, expected="1 or more")
    if relevant.shape[0] == 0:
        raise OpenBookError("recall_at_k has no questions to average over", got="0 questions", expected="1 or more")
    return float(relevant[:, :k].any(axis=1).mean())


def summarize(records: Sequence[Prediction]) -> dict[str, Any]:
    """exact_match, f1, recall_at_1/5/20 (fractions) and n_questions, overall and per group.

    Questions whose phrasing is HELD_OUT (worded as no training question was) are reported apart: they count only under
    `by_phrasing`, unless there are no others. The groups stand under `by_relation` and `by_phrasing`, each a dict from
    name to the same keys, sorted by name. Nothing retrieved (closed book) is a recall of 0.
    """
    if not records:
        raise OpenBookError(
            "nothing to summarize", got="0 predictions", expected="1 or more", action="Check the evaluation split."
        )
    counted = [record for record in records if record.phrasing != HELD_OUT] or list(records)
    return {
        **_rates(counted),
        "by_relation": _grouped(counted, lambda record: record.relation),
        "by_phrasing": _grouped(records, lambda record: record.phrasing),
    }


def _grouped(records: Sequence[Prediction], key: Callable[[Prediction], str]) -> dict[str, dict[str, float | int]]:
    names = sorted({key(record) for record in records} - {""})
    return {name: _rates([record for record in records if key(record) == name]) for name in names}


def _rates(records: Sequence[Prediction]) -> dict[str, float | int]:
    relevant = np.zeros((len(records), max(RECALL_AT)), dtype=np.bool_)
    for row, record in enumerate(records):
        hits = record.hits[: max(RECALL_AT)]
        relevant[row, : len(hits)] = hits
    rates: dict[str, float | int] = {
        "exact_match": float(np.mean([record.exact_match for record in records])),
        "f1": float(np.mean([record.f1 for record in records])),
    }
    return rates | {f"recall_at_{k}": recall_at_k(relevant, k) for k in RECALL_AT} | {"n_questions": len(records)}


def _best(prediction: str, answers: Sequence[str], score: Callable[[str, str], float]) -> float:
    if isinstance(answers, str) or not answers:
        raise OpenBookError("a prediction needs a list of answers", got=repr(answers), expected="at least one text")
    produced = normalize_answer(prediction)
    return max(score(produced, normalize_answer(answer)) for answer in answers)


def _token_f1(produced: str, gold: str) -> float:
    produced_tokens, gold_tokens = produced.split(), gold.split()
    if not produced_tokens or not gold_tokens:
        return float(produced_tokens == gold_tokens)
    common = (Counter(produced_tokens) & Counter(gold_tokens)).total()
    # 2PR / (P + R) with P = common / produced and R = common / gold
    return 2 * common / (len(produced_tokens) + len(gold_tokens))


@lru_cache(maxsize=65536)  # the same passages are retrieved for many questions
def _joined_tokens(text: str) -> str:
    return f" {' '.join(_TOKENS.findall(unicodedata.normalize('NFD', text)))} ".lower()
