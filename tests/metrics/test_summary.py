from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from openbook.batch import Example, Passage
from openbook.errors import OpenBookError
from openbook.metrics.prediction import Prediction, ReadPassage, TokenProvenance
from openbook.metrics.retrieval import answer_hits, first_hit, gold_hits, relevant_passages
from openbook.metrics.summary import summarize


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


def test_relevant_passages_prefer_known_positives() -> None:
    passages = [Passage("p1", "", "Lagos is big"), Passage("p2", "", "Abuja is the capital")]
    known = Example("q", "?", ("Abuja",), positive_ids=("p1",))
    assert relevant_passages(known, passages) == (True, False)
    assert relevant_passages(Example("q", "?", ("Abuja",)), passages) == (False, True)


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
        "mrr": pytest.approx((1 + 1 / 3) / 2),
        "n_questions": 2,
    }
    assert summary["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 7) / 5)  # beyond the 20th there is no rank
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


def plain(number: int, **fields: Any) -> Prediction:
    return replace(prediction(number, relation="", phrasing="", right=False, hits=()), **fields)


def test_hits_by_answer_and_by_id() -> None:
    passages = [Passage("p1", "", "Lagos is big"), Passage("p2", "", "born in 1963"), Passage("p3", "", "since 19")]
    assert answer_hits(("lagos",), passages) == (True, False, False)
    assert answer_hits((r"19\d\d",), passages, regex=True) == (False, True, False)
    assert gold_hits(("p3", "p9"), passages) == (False, False, True)
    assert gold_hits((), passages) == ()
    assert relevant_passages(Example("q", "?", (r"19\d\d",)), passages, regex=True) == (False, True, False)


def test_first_hit_counts_twenty_passages() -> None:
    assert first_hit((False, False, True, True)) == 3
    assert first_hit((False,) * 19 + (True,)) == 20
    assert first_hit((False,) * 20 + (True,)) == first_hit(()) == math.inf


def test_later_fields_survive_json_and_may_be_missing() -> None:
    late = {
        "logprob": -0.25,
        "candidates": (("Bamako", -0.25), ("Lagos", -3.5)),
        "tokens": (TokenProvenance("Bam", (0.75, 0.25)), TokenProvenance("ako", (0.5, 0.5))),
        "answer_hits": (True, False, True),
        "gold_hits": (False, True),
        "gold_logprob": -2.0,
        "closed_book_logprob": -7.0,
        "label": "SUPPORTS",
    }
    full = plain(1, **late)
    fields = json.loads(json.dumps(full.to_json()))
    assert fields["tokens"][0] == {"text": "Bam", "weights": [0.75, 0.25]}
    assert fields["candidates"][1] == ["Lagos", -3.5]
    assert Prediction.from_json(fields) == full
    older = {name: value for name, value in fields.items() if name not in late}
    assert Prediction.from_json(older | {"unknown": 1}) == plain(1)
    with pytest.raises(KeyError, match="hits"):
        Prediction.from_json({name: value for name, value in fields.items() if name != "hits"})


def test_passages_and_utility_by_hand() -> None:
    no, yes = (False,) * 20, (True,)
    records = [
        plain(1, answer_hits=yes, gold_hits=(False, True), gold_logprob=-1.0, closed_book_logprob=-4.0),
        plain(2, answer_hits=no, gold_hits=(False,) * 4 + yes, gold_logprob=-6.0, closed_book_logprob=-5.0),
        plain(3, answer_hits=(False,) * 9 + yes, gold_hits=no, gold_logprob=-1.0),
        plain(4, answer_hits=(False, True)),
        plain(5, gold_logprob=-2.5, closed_book_logprob=-2.5),
    ]
    summary = summarize(records)
    assert [summary[f"answer_recall_at_{k}"] for k in (1, 5, 20)] == [1 / 4, 2 / 4, 3 / 4]
    assert [summary[f"gold_recall_at_{k}"] for k in (1, 5, 20)] == [0.0, 2 / 3, 2 / 3]
    assert summary["utility"] == pytest.approx((3 - 1 + 0) / 3)
    assert summary["utility_positive"] == pytest.approx(1 / 3)
    assert summary["recall_at_20"] == 0.0
    late = {"answer_recall_at_1", "gold_recall_at_1", "utility", "utility_positive", "rouge_l", "label_accuracy"}
    assert not late & set(summarize([plain(1)])) and "intervals" not in summary
    assert late & set(summarize([plain(1), plain(2, answer_hits=no)])) == {"answer_recall_at_1"}


def test_generation_by_hand() -> None:
    records = [
        plain(1, prediction="The cat sat.", answers=("the cat sat",), relation="a"),
        plain(2, prediction="the dog", answers=("the big dog ran", "no"), relation="b"),
    ]
    summary = summarize(records, task="generation", resamples=50)
    # 5 of 5 words match; 5 produced against the nearest gold lengths 3 + 1
    assert summary["bleu_1"] == 1.0
    # 1: P = R = 1. 2: P = 2/2, R = 2/4, beta**2 = 1.44: 2.44 * 0.5 / (0.5 + 1.44)
    assert summary["rouge_l"] == pytest.approx((1 + 2.44 * 0.5 / 1.94) / 2)
    assert summary["distinct_1"] == 4 / 5
    assert summary["distinct_2"] == 1.0
    assert summary["distinct_3"] == 1.0
    assert "distinct_3" not in summary["by_relation"]["b"]  # two words have no trigram
    assert 0 < summary["q_bleu_1"] < 1
    assert {"rouge_l", "bleu_1", "q_bleu_1"} <= set(summary["intervals"])
    assert not {"distinct_1", "n_questions"} & set(summary["intervals"])
    assert "rouge_l" not in summarize(records)


LABELS = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")


def labelled(number: int, gold: str, scores: tuple[float, ...]) -> Prediction:
    candidates = tuple(sorted(zip(LABELS, scores, strict=False), key=lambda scored: -scored[1]))
    return plain(number, answers=(gold,), label=candidates[0][0], candidates=candidates)


def test_label_accuracy_by_hand() -> None:
    records = [
        labelled(1, "SUPPORTS", (-1, -2, -3)),  # right, right between two
        labelled(2, "REFUTES", (-3, -2, -1)),  # wrong, right between two
        labelled(3, "REFUTES", (-2, -3, -1)),  # wrong, wrong
        labelled(4, "NOT ENOUGH INFO", (-2, -3, -1)),  # right, not counted
        labelled(5, "supports", (-1, -2, -3)),  # right, right: normalised as answers are
        labelled(6, "REFUTES", (-9, -2, -1)),  # wrong, right between two
        plain(7, answers=("REFUTES",)),  # not predicted
    ]
    summary = summarize(records, task="labels", labels=LABELS, resamples=20)
    assert summary["label_accuracy"] == 3 / 6
    assert summary["label_accuracy_2way"] == 4 / 5
    assert set(summary["intervals"]) >= {"label_accuracy", "label_accuracy_2way"}
    assert "label_accuracy_2way" not in summarize(records, task="labels")
    unscored = [*records, replace(records[1], candidates=())]
    assert "label_accuracy_2way" not in summarize(unscored, task="labels", labels=LABELS)
    assert summarize(unscored, task="labels", labels=LABELS)["label_accuracy"] == 3 / 7


def test_summarize_refuses_what_it_does_not_know() -> None:
    with pytest.raises(
        OpenBookError, match=r"unknown task \(evaluate.task\): got qna, expected qa or generation or labels"
    ):
        summarize([plain(1)], task="qna")  # type: ignore[arg-type]
    with pytest.raises(OpenBookError, match="the labels are one text: got 'A,B'"):
        summarize([plain(1)], task="labels", labels="A,B")


def test_intervals_are_of_the_counted_questions() -> None:
    trained = [plain(n, phrasing="trained", exact_match=float(n % 3 == 0), f1=n / 41) for n in range(41)]
    apart = [plain(n, phrasing="held_out", exact_match=1.0, f1=1.0) for n in range(41, 71)]
    summary = summarize(trained + apart, resamples=300, seed=5)
    assert summary["intervals"] == summarize(trained, resamples=300, seed=5)["intervals"]
    assert summary["intervals"] != summarize(trained, resamples=300, seed=6)["intervals"]
    for name, (low, high) in summary["intervals"].items():
        assert low <= summary[name] <= high
    assert summary["intervals"]["recall_at_1"] == [0.0, 0.0]
    assert 0.2 < summary["intervals"]["exact_match"][1] - summary["intervals"]["exact_match"][0] < 0.4
    assert json.loads(json.dumps(summary)) == summary


def test_labels_are_no_answers() -> None:
    """SQuAD's normalisation would make one of <, = and >."""
    records = [plain(n, answers=("<",), label=label) for n, label in enumerate("<=>")]
    assert summarize(records, task="labels", labels=("<", "=", ">"))["label_accuracy"] == pytest.approx(1 / 3)
