"""The last line of a run."""

from __future__ import annotations

from typing import Any

import pytest

from openbook.reporting.verdict import verdict

UP, DOWN, FLAT = (0.05, 0.02, 0.08), (-0.06, -0.1, -0.02), (0.01, -0.02, 0.04)


def summary(recall: tuple[float, float, float], f1: tuple[float, float, float], **more: Any) -> dict[str, Any]:
    found = {
        name: {"improved": low > 0, "difference": difference, "interval": [low, high]}
        for name, (difference, low, high) in {"f1": f1, "recall_at_1": recall}.items()
    }
    rates = {"recall_at_1": 0.3, "f1": 0.1, "recall_at_20": 0.6, "n_questions": 500}
    given = {"improved": found, "test": rates, "before_training": rates, "questions": {"train": 900}}
    return given | more


@pytest.mark.parametrize(
    ("recall", "f1", "more", "words"),
    [
        (UP, UP, {}, "training improved on its start: recall@1 0.300 -> 0.300 (+0.050, 95 % interval +0.020"),
        (UP, FLAT, {}, "improved retrieval"),
        (FLAT, UP, {}, "improved the answers"),
        (FLAT, FLAT, {}, "has not measurably improved on its start"),
        (DOWN, UP, {}, "training made it worse on the test questions: recall@1"),
        (FLAT, FLAT, {"agreement": 0.55}, "the generator reads wrongly"),
        (FLAT, FLAT, {"agreement": 0.9, "questions": {"train": 100}}, "100 training questions are few"),
        (FLAT, FLAT, {"test": {"recall_at_20": 0.2, "n_questions": 500}}, "not among the first 20"),
        (FLAT, FLAT, {"test": {"recall_at_20": 0.9, "n_questions": 40}}, "40 test questions tell changes"),
    ],
)
def test_it_says_what_happened_and_why(recall: Any, f1: Any, more: dict[str, Any], words: str) -> None:
    assert words in verdict(summary(recall, f1, **more))


def test_what_it_says_has_its_number() -> None:
    given = summary(FLAT, FLAT)
    del given["improved"]["f1"]
    given["improved"]["recall_at_20"] = {
        "improved": True,
        "worsened": False,
        "difference": 0.1,
        "interval": [0.05, 0.2],
    }
    assert "training improved on its start: recall@20" in verdict(given)
    still = summary((0.0, 0.0, 0.0), UP)
    assert verdict(still).endswith("retrieval did not change.")
    few = summary(DOWN, FLAT)
    few["improved"]["recall_at_1"]["worsened"] = False
    assert "has not measurably improved" in verdict(few)


def test_without_a_test_the_validations_tell() -> None:
    best = {"metric": "f1+mrr", "value": 0.4, "step": 0}
    assert "no validation was better than the one before training (f1+mrr 0.400)" in verdict({"best": best, "steps": 9})
    assert verdict({"best": best | {"step": 6}, "steps": 9}) == ""
