"""One question answered: what `predictions.jsonl` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


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
    ranking: (id, whether it holds an answer) of the passages retrieved for the test, best first, to evaluate.depth.
    judged: (id, grade) of every positive passage, where one of them is in the corpus.
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
    ranking: tuple[tuple[str, bool], ...] = ()
    judged: tuple[tuple[str, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, for one line of `predictions.jsonl`."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        for name in ("ranking", "judged"):
            plain |= {name: [list(pair) for pair in plain[name]]}
            if not plain[name]:
                del plain[name]
        return plain | {
            "passages": [passage._asdict() for passage in self.passages],
            "candidates": [[text, logprob] for text, logprob in self.candidates],
            "tokens": [{"text": token.text, "weights": list(token.weights)} for token in self.tokens],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Prediction:
        """The inverse of `to_json`, also of lines without later fields; a KeyError, TypeError or ValueError else."""
        may_lack = cls.__slots__[cls.__slots__.index("logprob") :]
        known = {name: fields[name] for name in cls.__slots__ if name in fields or name not in may_lack}
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        known["passages"] = tuple(ReadPassage(**passage) for passage in fields["passages"])
        known |= {name: tuple(map(tuple, fields.get(name, ()))) for name in ("ranking", "judged")}
        known["candidates"] = tuple((text, logprob) for text, logprob in fields.get("candidates", ()))
        known["tokens"] = tuple(
            TokenProvenance(token["text"], tuple(token["weights"])) for token in fields.get("tokens", ())
        )
        return cls(**known)
