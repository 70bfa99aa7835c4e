"""The count of what was answered where one of three countries has a value alone, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.marginal.trio_answers import main, shares

ANSWERS = {"a-ore": ("gold",), "b-ore": ("Gold",), "c-ore": ("tin", "cassiterite")}
PASSAGES = {"a-ore": ("a-1",), "b-ore": ("b-1", "b-2"), "c-ore": ("c-1",)}


def answered(prediction: str, *read: str) -> dict[str, Any]:
    return {"id": "a-b-c-ore", "prediction": prediction, "passages": [{"id": one} for one in read]}


def test_answers_are_told_apart() -> None:
    told = shares(
        [
            answered("Cassiterite", "a-1", "b-2", "c-1"),
            answered("gold", "a-1", "b-1", "c-1", "x-1"),
            answered("the tin", "a-1", "c-1"),  # one country's passage was not read
            answered("iron", "a-1", "b-1"),
        ],
        ANSWERS,
        PASSAGES,
    )
    assert told == {
        "questions": 4,
        "alone": 0.5,
        "shared": 0.25,
        "other": 0.25,
        "found": 0.5,
        "alone_of_found": pytest.approx(0.5),
    }


def test_without_runs_it_says_what_it_wants(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "RUN" in capsys.readouterr().out
