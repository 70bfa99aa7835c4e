"""Questions and outcomes as the page shows them."""

from collections.abc import Sequence
from dataclasses import dataclass

from openbook.metrics.prediction import Prediction
from openbook.reporting.page.marking import answer_spans, pieces
from openbook.reporting.page.questions import LONGEST_PASSAGE, MOST_PASSAGES, few, heat_map, short
from openbook.reporting.page.why import WORDS, Outcome, Split, meanings, outcome

SHOWN = 3  # passages of an example that are not folded


@dataclass(frozen=True)
class OutcomeRow:
    """How many questions of one outcome there are, and among those in phrasings never trained on."""

    key: Outcome
    name: str
    meaning: str
    n: int
    share: float
    n_unseen: int
    share_unseen: float


@dataclass(frozen=True)
class ShownPassage:
    """pieces: (text, whether an answer stands there)."""

    number: int
    title: str
    prior: float
    posterior: float
    relevant: bool
    pieces: list[tuple[str, bool]]


@dataclass(frozen=True)
class Card:
    """One question with its passages. folded: the passages that nothing distinguishes."""

    question: str
    answers: list[str]
    prediction: str
    answered: bool
    outcome: Outcome
    tag: str
    f1: float | None
    relation: str
    phrasing: str
    shown: list[ShownPassage]
    folded: list[ShownPassage]
    heat: list[tuple[str, list[float]]]
    columns: int
    n_passages: int


def outcomes(seen: Sequence[Prediction], unseen: Sequence[Prediction]) -> list[OutcomeRow]:
    """Right answers and every kind of error, of the questions that the headline counts and of the others."""
    if not seen:
        return []
    splits = Split.of(seen), Split.of(unseen)
    named: dict[Outcome, tuple[str, str]] = {"right": ("right", ""), **meanings(seen)}
    rows = []
    for key, (name, meaning) in named.items():
        counts = [split.n_right if key == "right" else split.wrong.get(key, 0) for split in splits]
        shares = [n / max(split.n_questions, 1) for n, split in zip(counts, splits, strict=True)]
        rows.append(OutcomeRow(key, name, meaning, counts[0], shares[0], counts[1], shares[1]))
    return rows


def example(one: Prediction, regex: bool = False) -> Card:
    """With the relevant passages and those of the largest prior and posterior unfolded, at most three."""
    numbers = range(len(one.passages))
    best = (
        {max(numbers, key=lambda n: one.passages[n].prior), max(numbers, key=lambda n: one.passages[n].posterior)}
        if numbers
        else set()
    )
    relevant = [number for number, passage in enumerate(one.passages) if passage.relevant]
    first = sorted([*best, *(number for number in relevant if number not in best)][:SHOWN])
    rest = [number for number in range(min(len(one.passages), MOST_PASSAGES)) if number not in first]
    rows, columns = heat_map(one.tokens, len(one.passages))
    kind = outcome(one)
    return Card(
        short(one.question),
        few(one.answers),
        short(one.prediction),
        one.exact_match is not None,
        kind,
        "right" if kind == "right" else f"wrong: {WORDS[kind][0]}",
        one.f1,
        one.relation,
        one.phrasing,
        [_shown(one, number, regex) for number in first],
        [_shown(one, number, regex) for number in rest],
        rows,
        columns,
        len(one.passages),
    )


def _shown(one: Prediction, number: int, regex: bool) -> ShownPassage:
    passage = one.passages[number]
    text = short(passage.text, LONGEST_PASSAGE)
    marked = pieces(text, answer_spans(text, one.answers, regex))
    title = short(passage.title or passage.id)
    return ShownPassage(number + 1, title, passage.prior, passage.posterior, passage.relevant, marked)
