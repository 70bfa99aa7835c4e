"""Before and after on the same questions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from openbook.metrics.paired import improvements, per_question
from openbook.metrics.prediction import Prediction


def asked(number: int, hits: tuple[bool, ...], f1: float | None = 0.0, phrasing: str = "") -> Prediction:
    given: dict[str, Any] = {"exact_match": None if f1 is None else float(f1 == 1), "f1": f1, "hits": hits}
    return Prediction(str(number), "q", ("a",), "a", "", phrasing, (), **given)


def test_what_each_question_is_worth_by_hand() -> None:
    values = per_question([asked(1, (False, True), 0.5), asked(2, (), None), asked(3, (True,), 1.0, "held_out")])
    assert values == {
        "1": {"recall_at_1": 0, "recall_at_5": 1, "recall_at_20": 1, "mrr": 0.5, "exact_match": 0, "f1": 0.5},
        "2": {"recall_at_1": 0, "recall_at_5": 0, "recall_at_20": 0, "mrr": 0.0},
    }


def test_a_paired_interval_is_that_of_the_differences() -> None:
    random = np.random.default_rng(0)
    before = [asked(n, (bool(random.random() < 0.5),), 0.2) for n in range(300)]
    after = [asked(n, one.hits if n % 10 else (True,), 0.2) for n, one in enumerate(before)]
    found = improvements(per_question(before), per_question(after), 2000)
    gained = np.array([float(new.hits[0]) - float(old.hits[0]) for old, new in zip(before, after, strict=True)])
    assert found["recall_at_1"]["difference"] == pytest.approx(gained.mean())
    low, high = found["recall_at_1"]["interval"]
    assert found["recall_at_1"]["improved"] and 0 < low < gained.mean() < high
    normal = 1.96 * gained.std() / np.sqrt(len(gained))
    assert high - low == pytest.approx(2 * normal, rel=0.15)
    flat = {"improved": False, "worsened": False, "difference": 0.0, "interval": [0.0, 0.0], "changed": 0}
    assert found["f1"] == flat


@pytest.mark.parametrize(("n", "sure"), [(1, False), (5, False), (6, True)])
def test_a_handful_of_questions_proves_nothing(n: int, sure: bool) -> None:
    before = {str(number): {"mrr": 0.1, "f1": 0.5} for number in range(20)}
    after = {str(number): {"mrr": 0.1 + 0.3 * (number < n), "f1": 0.5 - 0.2 * (number < n)} for number in range(20)}
    few = improvements({name: before[name] for name in map(str, range(n))}, after)
    assert few["mrr"]["interval"][0] > 0 and few["mrr"]["changed"] == n
    assert (few["mrr"]["improved"], few["f1"]["worsened"]) == (sure, sure)
    assert improvements(before, after)["mrr"]["changed"] == n


def test_only_questions_that_both_have_are_compared() -> None:
    before = {"1": {"f1": 0.0}, "2": {"f1": 1.0}}
    assert improvements(before, {"2": {"f1": 0.5}, "3": {"f1": 1.0}})["f1"]["difference"] == -0.5
    assert improvements({}, {"3": {"f1": 1.0}}) == {}
