"""Why answers are wrong: the passage was not retrieved, was retrieved but not first, or was read wrongly."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from openbook.metrics.bootstrap import wilson
from openbook.metrics.matching import has_answer
from openbook.metrics.prediction import Prediction

Outcome = Literal["right", "not_retrieved", "not_first", "read_wrongly", "without_passages"]

# Outcome -> (its name, what it means).
WORDS: dict[Outcome, tuple[str, str]] = {
    "not_retrieved": ("not retrieved", "none of the passages that were read is relevant"),
    "not_first": ("retrieved but not first", "a relevant passage was read, but another one had the largest prior"),
    "read_wrongly": ("read wrongly", "the passage with the largest prior is relevant"),
    "without_passages": ("without passages", "the generator answered from the question alone"),
}
WITHOUT_GENERATOR: dict[Outcome, tuple[str, str]] = {
    "not_retrieved": ("not retrieved", "no relevant passage among the first {depth}"),
    "not_first": ("retrieved but not first", "a relevant passage among the first {depth}, but not the first"),
}


@dataclass(frozen=True)
class Split:
    """The outcomes of one group of questions; `wrong`: outcome -> number of questions."""

    n_questions: int
    wrong: dict[Outcome, int]

    @property
    def n_wrong(self) -> int:
        return sum(self.wrong.values())

    @property
    def n_right(self) -> int:
        return self.n_questions - self.n_wrong

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> "Split":
        counts = Counter(map(outcome, predictions))
        return cls(len(predictions), {name: counts[name] for name in WORDS if counts[name]})


def outcome(one: Prediction) -> Outcome:
    """What became of a question. Without a generator: whether its first passage is relevant, or a later one."""
    if one.exact_match is None:
        return "right" if any(one.hits[:1]) else "not_first" if any(one.hits) else "not_retrieved"
    if one.exact_match:
        return "right"
    if not one.passages:
        return "without_passages" if len(one.hits) == 0 or not any(one.hits) else "not_retrieved"
    if not any(passage.relevant for passage in one.passages):
        return "not_retrieved"
    return "read_wrongly" if max(one.passages, key=lambda passage: passage.prior).relevant else "not_first"


def meanings(predictions: Sequence[Prediction]) -> dict[Outcome, tuple[str, str]]:
    """Outcome -> (its name, what it means) of every kind of error that these questions can have."""
    if all(one.exact_match is None for one in predictions):
        depth = max((len(one.hits) for one in predictions), default=0)
        return {key: (name, told.format(depth=depth)) for key, (name, told) in WITHOUT_GENERATOR.items()}
    closed = not any(one.passages for one in predictions)
    return {key: words for key, words in WORDS.items() if (key == "without_passages") == closed}


def sentences(predictions: Sequence[Prediction], free_text: bool = False) -> list[str]:
    """What follows from the errors of these questions, the most important first.

    free_text: answers are texts of their own, of which exact match says little.
    """
    split = Split.of(predictions)
    if not predictions:
        return []
    if all(one.exact_match is None for one in predictions):
        return _of_retrieval(predictions, split)
    if not split.n_wrong:
        return [f"All {split.n_questions:,} answers are right."]
    if not any(one.passages for one in predictions):
        return ["The generator answered from the question alone: no passage was retrieved that could have helped."]
    told = [_limit(split), *_deeper(predictions), *_reading(predictions), *_ceilings(predictions, split)]
    if free_text:
        told.append("Exact match counts a text as wrong that differs from the expected one in a single word.")
    return told


def _limit(split: Split) -> str:
    """Whether the retriever or the generator is what limits the answers."""
    n, missing = split.n_wrong, split.wrong.get("not_retrieved", 0)
    read = n - missing
    if not missing:
        whose = "The one wrong answer" if n == 1 else f"All {n:,} wrong answers"
        return f"{whose} had a relevant passage among those read: the generator is the limit, not the retriever."
    if not read:
        return "No wrong answer had a relevant passage among those read: the retriever is the limit."
    low, high = wilson(missing / n, n)
    if low > 0.5:
        return (
            f"{missing:,} of {n:,} wrong answers had no relevant passage among those read: the retriever is the "
            "larger limit."
        )
    if high < 0.5:
        return (
            f"{read:,} of {n:,} wrong answers had a relevant passage among those read: the generator is the larger "
            "limit."
        )
    return (
        f"{missing:,} of {n:,} wrong answers had no relevant passage among those read, {read:,} had one: neither the "
        "retriever nor the generator is clearly the larger limit."
    )


def _deeper(predictions: Sequence[Prediction]) -> list[str]:
    """Relevant passages that were retrieved but beyond those read."""
    missing = [one for one in predictions if outcome(one) == "not_retrieved"]
    further = [one for one in missing if any(one.hits)]
    if not further:
        return []
    depth = max(len(one.hits) for one in further)
    return [
        f"For {len(further):,} of the {len(missing):,} that were not retrieved, a relevant passage is among the first "
        f"{depth} of the index but not among those read: evaluate.n_docs could reach it."
    ]


def _reading(predictions: Sequence[Prediction]) -> list[str]:
    """Where the wrong answers come from that had a relevant passage."""
    wrong = [one for one in predictions if outcome(one) in ("not_first", "read_wrongly")]
    told = []
    if texts := [one for one in wrong if all(passage.text for passage in one.passages)]:
        places = Counter(_place(one) for one in texts)
        told.append(
            f"Of the {len(texts):,} wrong answers that had one, {places['relevant']:,} stand in a relevant passage "
            f"(the wrong part of it), {places['other']:,} in another passage alone, {places['none']:,} in no passage "
            f"(pieced together, or never read); {places['empty']:,} are empty."
        )
    if near := sum(bool(one.f1) for one in wrong):
        told.append(f"{near:,} of the {len(wrong):,} share words with the expected answer.")
    return told


def _place(one: Prediction) -> Literal["relevant", "other", "none", "empty"]:
    """Where the produced answer stands."""
    if not one.prediction.strip():
        return "empty"
    holds = [passage.relevant for passage in one.passages if has_answer(passage.text, [one.prediction])]
    return "relevant" if any(holds) else "other" if holds else "none"


def _ceilings(predictions: Sequence[Prediction], split: Split) -> list[str]:
    """What exact match would be if one of the two did all that it can."""
    had = [one for one in predictions if any(passage.relevant for passage in one.passages)]
    if not had:
        return []
    perfect_reader = 1 - split.wrong.get("not_retrieved", 0) / split.n_questions
    perfect_retriever = sum(bool(one.exact_match) for one in had) / len(had)
    return [
        f"Exact match is {split.n_right / split.n_questions:.1%}. It would be {perfect_reader:.1%} if every relevant "
        f"passage that was read had been read rightly, and {perfect_retriever:.1%} if there had always been one, "
        "answered as often as now where there is."
    ]


def _of_retrieval(predictions: Sequence[Prediction], split: Split) -> list[str]:
    if not split.n_wrong:
        return [f"The first passage is relevant for all {split.n_questions:,} questions."]
    later, missing = split.wrong.get("not_first", 0), split.wrong.get("not_retrieved", 0)
    depth = max(len(one.hits) for one in predictions)
    return [
        f"For {split.n_wrong:,} of {split.n_questions:,} questions the first passage is not relevant: for {later:,} of "
        f"them a relevant one follows among the first {depth}, for {missing:,} none does. No generator took part."
    ]
