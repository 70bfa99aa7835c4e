"""DPR's training files (Karpukhin et al. 2020): a list of questions, each with its passages; and Tevatron's lines of
the same."""

from collections.abc import Iterator
from typing import Any

from openbook.batch import Example, Passage
from openbook.data.readers.fields import Asked, answers_of, listed, passage_of, string, text
from openbook.data.readers.questions.family import Family, has

NEGATIVES = ("hard_negative_ctxs", "negative_ctxs")


def _context(fields: dict[str, Any]) -> Passage:
    identity = next(
        (fields[key] for key in ("passage_id", "psg_id", "docid", "id") if fields.get(key) not in (None, "")), ""
    )
    title = string(fields.get("title") or "", "title")
    return passage_of(title, text(fields, "text"), string(identity, "passage_id", numbers=True))


def dpr(record: dict[str, Any], number: str) -> Iterator[Asked]:
    """`positive_ctxs` become positive ids, `hard_negative_ctxs` negative ones, and where there are none
    `negative_ctxs`; all of them are passages. Negatives that are also positives are no negatives."""
    positives = [_context(one) for one in listed(record, "positive_ctxs")]
    hard, easy = ([_context(one) for one in listed(record, key)] for key in NEGATIVES)
    identity = string(record.get("id", record.get("q_id", number)), "id", numbers=True)
    answers = answers_of(record.get("answers"), "answers")
    asked = _asked(identity, text(record, "question"), answers, positives, hard or easy)
    yield asked._replace(passages=tuple({one.id: one for one in (*positives, *hard, *easy)}.values()))


def tevatron(record: dict[str, Any], number: str) -> Iterator[Asked]:
    positives = [_context(one) for one in listed(record, "positive_passages")]
    negatives = [_context(one) for one in listed(record, "negative_passages")]
    identity = string(record.get("query_id", number), "query_id", numbers=True)
    yield _asked(identity, text(record, "query"), answers_of(record.get("answers"), "answers"), positives, negatives)


def _asked(
    identity: str, question: str, answers: tuple[str, ...], positives: list[Passage], negatives: list[Passage]
) -> Asked:
    right = tuple(dict.fromkeys(one.id for one in positives))
    wrong = tuple(dict.fromkeys(one.id for one in negatives if one.id not in right))
    example = Example(identity, question, answers, right, negative_ids=wrong)
    return Asked(example, tuple({one.id: one for one in (*positives, *negatives)}.values()))


FAMILIES = (
    Family("DPR training files", lambda record: has(record, "question", "positive_ctxs"), dpr),
    Family("Tevatron", lambda record: has(record, "query", "positive_passages"), tevatron),
)
