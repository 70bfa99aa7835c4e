"""Errors by their cause, and what follows from them."""

from __future__ import annotations

from dataclasses import replace

from openbook.metrics.prediction import Prediction, ReadPassage
from openbook.reporting.page.why import Split, meanings, outcome, sentences

HIT = ReadPassage("p1", "Togo", 0.7, 0.6, True, "Lomé is the capital of Togo, Sokodé is not.")
MISS = ReadPassage("p2", "Mali", 0.3, 0.4, False, "Bamako lies in Mali.")
READ_WRONGLY = Prediction(
    id="q1",
    question="What is the capital of Togo?",
    answers=("Lomé",),
    prediction="Sokodé",
    relation="capital",
    phrasing="trained",
    passages=(HIT, MISS),
    exact_match=0.0,
    f1=0.0,
    hits=(True, False),
)
RIGHT = replace(READ_WRONGLY, id="q2", prediction="Lomé", exact_match=1.0, f1=1.0)
NOT_FIRST = replace(
    READ_WRONGLY,
    id="q3",
    prediction="Bamako",
    f1=0.5,
    passages=(MISS._replace(prior=0.9), HIT._replace(prior=0.1)),
    hits=(False, True),
)
NOT_RETRIEVED = replace(READ_WRONGLY, id="q4", passages=(MISS,), hits=(False, False))
TOO_DEEP = replace(NOT_RETRIEVED, id="q5", hits=(False, False, True))
CLOSED = replace(READ_WRONGLY, passages=(), hits=(False,) * 20)
ALL = (RIGHT, READ_WRONGLY, NOT_FIRST, NOT_RETRIEVED, TOO_DEEP)


def test_every_question_has_one_outcome() -> None:
    assert [outcome(one) for one in ALL] == ["right", "read_wrongly", "not_first", "not_retrieved", "not_retrieved"]
    assert outcome(CLOSED) == "without_passages"
    split = Split.of([*ALL, RIGHT])
    assert (split.n_questions, split.n_right, split.n_wrong) == (6, 2, 4)
    assert split.wrong == {"not_retrieved": 2, "not_first": 1, "read_wrongly": 1}


def test_the_largest_prior_decides_what_was_first_whatever_the_order() -> None:
    """A run may read passages in the order of the index and weight them by scores computed anew."""
    later = replace(READ_WRONGLY, passages=(MISS, HIT))
    assert outcome(later) == "read_wrongly"


def test_the_generator_is_the_limit() -> None:
    told = sentences([RIGHT] + [READ_WRONGLY] * 42)
    assert told[0] == (
        "All 42 wrong answers had a relevant passage among those read: the generator is the limit, not the retriever."
    )
    assert "Of the 42 wrong answers that had one, 42 stand in a relevant passage" in told[1]
    assert sentences([RIGHT, READ_WRONGLY])[0].startswith("The one wrong answer had a relevant passage")


def test_the_retriever_is_the_limit() -> None:
    told = sentences([RIGHT, NOT_RETRIEVED, TOO_DEEP])
    assert told[0] == "No wrong answer had a relevant passage among those read: the retriever is the limit."
    assert told[1].startswith("For 1 of the 2 that were not retrieved, a relevant passage is among the first 3 of")


def test_the_larger_limit_is_named_only_where_it_is_surely_larger() -> None:
    """Wilson's interval of 3 of 5 reaches from .23 to .88, that of 30 of 40 from .60 to .86."""
    assert "neither the retriever nor the generator" in sentences([NOT_RETRIEVED] * 3 + [READ_WRONGLY] * 2)[0]
    assert sentences([NOT_RETRIEVED] * 30 + [READ_WRONGLY] * 10)[0] == (
        "30 of 40 wrong answers had no relevant passage among those read: the retriever is the larger limit."
    )
    assert sentences([NOT_RETRIEVED] * 10 + [READ_WRONGLY] * 30)[0] == (
        "30 of 40 wrong answers had a relevant passage among those read: the generator is the larger limit."
    )


def test_ceilings_by_hand() -> None:
    """5 questions: 1 right, 2 more had the passage, 2 had not. A perfect reader: 3 of 5. Of the 3 with the passage 1 is
    right: a perfect retriever alone 1 of 3."""
    told = " ".join(sentences(ALL))
    assert "Exact match is 20.0%. It would be 60.0% if every relevant" in told and "and 33.3% if there had" in told
    assert "1 of the 2 share words with the expected answer" in told
    assert "1 stand in a relevant passage (the wrong part of it), 1 in another passage alone, 0 in no passage" in told
    empty = sentences([replace(READ_WRONGLY, prediction=" ")])
    assert "0 in no passage (pieced together, or never read); 1 are empty." in empty[1]


def test_what_cannot_be_said_is_not_said() -> None:
    assert sentences([]) == []
    assert sentences([RIGHT, RIGHT]) == ["All 2 answers are right."]
    assert sentences([CLOSED, CLOSED])[0].startswith("The generator answered from the question alone")
    assert list(meanings([CLOSED])) == ["without_passages"]
    without_texts = replace(READ_WRONGLY, passages=(HIT._replace(text=""), MISS))
    assert not any("stand in" in text for text in sentences([without_texts]))
    assert "in a single word" in sentences([READ_WRONGLY], free_text=True)[-1]


def test_without_a_generator_only_retrieval_is_judged() -> None:
    first, later, never = (
        replace(READ_WRONGLY, exact_match=None, f1=None, hits=hits)
        for hits in ((True, False, False), (False, False, True), (False, False, False))
    )
    assert [outcome(one) for one in (first, later, never)] == ["right", "not_first", "not_retrieved"]
    assert sentences([first, later, never]) == [
        "For 2 of 3 questions the first passage is not relevant: for 1 of them a relevant one follows among the first "
        "3, for 1 none does. No generator took part."
    ]
    assert meanings([first])["not_retrieved"][1] == "no relevant passage among the first 3"
