"""Which questions the table has, in which order, and what stands beside them."""

from __future__ import annotations

from openbook.metrics.prediction import Prediction, ReadPassage
from openbook.tracking.loggers.predictions_table import columns, rows


def one(name: str, exact: float | None, f1: float | None, hits: tuple[bool, ...] = (), n: int = 5) -> Prediction:
    passages = tuple(
        ReadPassage(f"p{k}", f"title {k}", (k + 1) / 15, (n - k) / 15, False, f"text {k}") for k in range(n)
    )
    return Prediction(name, f"{name}?", ("a", "b"), "c", "", "", passages, exact, f1, hits)


def test_wrong_ones_come_first_and_the_rest_is_left_out() -> None:
    known = [one("right", 1.0, 1.0), one("near", 0.0, 0.5), one("far", 0.0, 0.0), one("also right", 1.0, 1.0)]
    assert [row[0] for row in rows(known, 9)] == ["far", "near", "also right", "right"]
    assert [row[0] for row in rows(known, 2)] == ["far", "near"] and rows(known, 0) == []


def test_without_a_generator_wrong_is_a_first_passage_that_is_not_relevant() -> None:
    known = [one("right", None, None, (True, False)), one("wrong", None, None, (False, True)), one("none", None, None)]
    assert [row[0] for row in rows(known, 9)] == ["none", "wrong", "right"]


def test_passages_stand_in_the_order_of_their_posterior() -> None:
    (row,) = rows([one("q", 0.0, 0.25)], 1)
    named = dict(zip(columns(), row, strict=True))
    assert (named["answers"], named["prediction"], named["f1"]) == ("a | b", "c", 0.25)
    assert [named[f"passage_{k}_title"] for k in (1, 2, 3)] == ["title 0", "title 1", "title 2"]
    assert (named["passage_2_text"], named["passage_2_prior"], named["passage_2_posterior"]) == (
        "text 1",
        2 / 15,
        4 / 15,
    )


def test_fewer_passages_leave_cells_empty() -> None:
    (row,) = rows([one("q", 1.0, 1.0, n=1)], 1)
    assert len(row) == len(columns()) and row[-8:] == [None] * 8 and row[6] == "title 0"
