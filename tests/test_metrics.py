from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest
from torchmetrics.functional.text import squad

from openbook.batch import Example, Passage
from openbook.errors import OpenBookError
from openbook.metrics import (
    Prediction,
    ReadPassage,
    exact_match,
    f1,
    has_answer,
    normalize_answer,
    recall_at_k,
    relevant_passages,
    summarize,
)


def prediction(number: int, *, relation: str, phrasing: str, right: bool, hits: tuple[bool, ...]) -> Prediction:
    passages = (ReadPassage("p1", "Chad", 0.7, 0.9, True, "N'Djamena"), ReadPassage("p2", "Mali", 0.3, 0.1, False))
    return Prediction(
        id=f"q{number}",
        question="Which?",
        answers=("N'Djamena", "Ndjamena"),
        prediction="ndjamena" if right else "Bamako",
        relation=relation,
        phrasing=phrasing,
        passages=passages,
        exact_match=float(right),
        f1=float(right),
        hits=hits,
    )


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat, sat.", "cat sat"),
        ("An apple a day", "apple day"),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("the", ""),
        ("Theodore-the-Great", "theodorethegreat"),
        ("São Paulo\n", "são paulo"),
    ],
)
def test_normalize_answer(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


def test_f1_by_hand() -> None:
    # produced: big red dog (3 tokens), gold: red dog house party (4): 2 in common, P = 2/3, R = 2/4, F1 = 4/7
    assert f1("the big red dog", ["red dog house party"]) == pytest.approx(4 / 7)
    # a token counts as often as both have it: common = 1, P = 1/3, R = 1/1
    assert f1("no no no", ["no"]) == pytest.approx(0.5)
    assert f1("x", ["y", "x"]) == 1.0


def test_answers_agree_with_torchmetrics() -> None:
    words = ["the", "a", "An", "Paris", "paris.", "New", "York", "U.S.", "42", "é", "-", "dog's", "", "THE,", "«x»"]
    draw = random.Random(7)
    cases = [(a, [b]) for a, b in itertools.product(words, repeat=2)]
    cases += [
        (
            " ".join(draw.choices(words, k=draw.randint(0, 6))),
            [" ".join(draw.choices(words, k=draw.randint(0, 6))) for _ in range(draw.randint(1, 4))],
        )
        for _ in range(400)
    ]
    seen = set()
    for produced, golds in cases:
        theirs = squad(
            [{"prediction_text": produced, "id": "1"}],
            [{"answers": {"answer_start": [0] * len(golds), "text": golds}, "id": "1"}],
        )
        assert exact_match(produced, golds) == pytest.approx(theirs["exact_match"].item() / 100), (produced, golds)
        assert f1(produced, golds) == pytest.approx(theirs["f1"].item() / 100, abs=1e-6), (produced, golds)
        seen.add(round(f1(produced, golds), 3))
    assert len(seen) > 10


@pytest.mark.parametrize("answers", [[], "Paris"])
def test_no_answers_is_an_error(answers: list[str] | str) -> None:
    with pytest.raises(
        OpenBookError, match=r"a prediction needs a list of answers: got .*, expected at least one text"
    ):
        exact_match("Paris", answers)


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("The party was in Rome.", ["art"], False),
        ("The ART of war", ["art"], True),
        ("He went to New  York, then home", ["new york"], True),
        ("He went to New-York", ["New York"], False),
        ("York, New", ["New York"], False),
        ("the São Paulo skyline", ["Sa\u0303o Paulo"], True),
        ("the Sao Paulo skyline", ["São Paulo"], False),
        ("It cost $5.00 there", ["$5.00"], True),
        ("It cost $5.007 there", ["5.00"], False),
        ("anything", ["", "  "], False),
        ("", ["x"], False),
        ("a\u00a0b\nc", ["a b c"], True),
        ("in 1066", ["1 066", "1066"], True),
        ("हिन्दी भाषा", ["हिन्द"], False),
    ],
)
def test_has_answer(text: str, answers: list[str], found: bool) -> None:
    assert has_answer(text, answers) is found


def test_relevant_passages_prefer_known_positives() -> None:
    passages = [Passage("p1", "", "Lagos is big"), Passage("p2", "", "Abuja is the capital")]
    known = Example("q", "?", ("Abuja",), positive_ids=("p1",))
    assert relevant_passages(known, passages) == (True, False)
    assert relevant_passages(Example("q", "?", ("Abuja",)), passages) == (False, True)


def test_recall_at_k_by_hand() -> None:
    relevant = np.array([[0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=np.bool_)
    assert [recall_at_k(relevant, k) for k in (1, 2, 3, 20)] == [1 / 5, 2 / 5, 3 / 5, 3 / 5]
    assert recall_at_k(np.zeros((3, 0), dtype=np.bool_), 5) == 0.0


def test_recall_at_k_refuses_nothing() -> None:
    with pytest.raises(OpenBookError, match="got 0, expected 1 or more"):
        recall_at_k(np.ones((2, 3), dtype=np.bool_), 0)
    with pytest.raises(OpenBookError, match="no questions to average over"):
        recall_at_k(np.ones((0, 3), dtype=np.bool_), 1)


def test_summarize_by_hand() -> None:
    late = (False,) * 6 + (True,)
    records = [
        prediction(1, relation="capital", phrasing="seen", right=True, hits=(True,)),
        prediction(2, relation="capital", phrasing="new", right=False, hits=(False, False, True)),
        prediction(3, relation="river", phrasing="new", right=False, hits=late),
        prediction(4, relation="", phrasing="", right=True, hits=()),
        prediction(5, relation="river", phrasing="new", right=False, hits=(False,) * 20 + (True,)),
    ]
    summary = summarize(records)
    assert summary["n_questions"] == 5
    assert summary["exact_match"] == summary["f1"] == pytest.approx(2 / 5)
    assert [summary[f"recall_at_{k}"] for k in (1, 5, 20)] == pytest.approx([1 / 5, 2 / 5, 3 / 5])
    assert list(summary["by_relation"]) == ["capital", "river"]
    assert summary["by_relation"]["capital"] == {
        "exact_match": 0.5,
        "f1": 0.5,
        "recall_at_1": 0.5,
        "recall_at_5": 1.0,
        "recall_at_20": 1.0,
        "n_questions": 2,
    }
    assert summary["by_phrasing"]["new"]["recall_at_20"] == pytest.approx(2 / 3)
    assert json.loads(json.dumps(summary)) == summary


def test_summarize_refuses_nothing() -> None:
    with pytest.raises(OpenBookError, match="nothing to summarize: got 0 predictions"):
        summarize([])


def test_prediction_survives_json() -> None:
    record = prediction(1, relation="capital", phrasing="new", right=True, hits=(False, True))
    line = json.dumps(record.to_json())
    assert Prediction.from_json(json.loads(line)) == record
    assert json.loads(line)["passages"][0]["posterior"] == 0.9


def test_held_out_phrasings_are_reported_apart() -> None:
    records = [
        prediction(1, relation="capital", phrasing="trained", right=True, hits=(True,)),
        prediction(2, relation="capital", phrasing="held_out", right=False, hits=(False,)),
        prediction(3, relation="river", phrasing="trained", right=True, hits=(True,)),
    ]
    summary = summarize(records)
    assert (summary["n_questions"], summary["exact_match"], summary["recall_at_1"]) == (2, 1.0, 1.0)
    assert summary["by_phrasing"]["held_out"]["exact_match"] == 0.0
    assert summary["by_relation"]["capital"]["n_questions"] == 1
    assert summarize(records[1:2])["n_questions"] == 1
