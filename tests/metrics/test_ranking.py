"""Measures of a ranking: by hand, and as trec_eval has them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from openbook.metrics.prediction import Prediction
from openbook.metrics.ranking import ndcg, recall, reciprocal_rank, summarize_ranking
from openbook.tracking.trec import QRELS, RUN, write_trec


def record(
    name: str, ranking: tuple[tuple[str, bool], ...], judged: tuple[tuple[str, int], ...], answers: tuple[str, ...] = ()
) -> Prediction:
    return Prediction(name, "q", answers, "", "", "", (), None, None, (), ranking=ranking, judged=judged)


def test_by_hand() -> None:
    """Grades 0, 2, 0, 1 of the ranking; relevant are passages of grades 2, 1 and 3, the last one not found."""
    grades, ideal = [0, 2, 0, 1], [2, 1, 3]
    assert recall(grades, ideal, 1) == 0 and recall(grades, ideal, 2) == 1 / 3 and recall(grades, ideal, 4) == 2 / 3
    assert reciprocal_rank(grades, 10) == 1 / 2 and reciprocal_rank(grades, 1) == 0
    best = 3 + 2 / math.log2(3) + 1 / 2  # log2(4) = 2
    assert ndcg(grades, ideal, 4) == pytest.approx((2 / math.log2(3) + 1 / math.log2(5)) / best, rel=1e-15)
    assert ndcg(grades, ideal, 2) == pytest.approx((2 / math.log2(3)) / (3 + 2 / math.log2(3)), rel=1e-15)


def test_parts_count_their_own_questions() -> None:
    records = [
        record("a", (("1", False), ("2", True)), (("2", 1),), ("x",)),
        record("b", (("1", True),), (), ("y",)),
        record("c", (), (("9", 1),)),
    ]
    found = summarize_ranking(records, depth=5)
    assert found["by_ids"]["n_questions"] == 2 and found["by_answers"]["n_questions"] == 2
    assert found["by_ids"]["success_at_1"] == 0 and found["by_ids"]["recall_at_5"] == 0.5
    assert found["by_answers"] == {"success_at_1": 0.5, "success_at_5": 1.0, "mrr_at_5": 0.75, "n_questions": 2}
    assert summarize_ranking([record("d", (("1", False),), ())], 5) == {}


def test_predictions_with_a_ranking_come_back_and_others_are_as_before() -> None:
    one = record("a", (("1", False), ("2", True)), (("2", 3),))
    assert Prediction.from_json(one.to_json()) == one
    plain = record("a", (), ())
    assert not {"ranking", "judged"} & plain.to_json().keys() and Prediction.from_json(plain.to_json()) == plain


def random_records(seed: int = 5, n: int = 17, depth: int = 31) -> list[Prediction]:
    draw = np.random.default_rng(seed)
    records = []
    for number in range(n):
        ids = [f"p {one}" for one in draw.permutation(97)[:depth]]
        judged = {f"p {one}": int(draw.integers(1, 4)) for one in draw.permutation(97)[: draw.integers(1, 13)]}
        records.append(record(f"q{number}", tuple((one, False) for one in ids), tuple(judged.items())))
    return records


def test_files_are_what_trec_reads(tmp_path: Path) -> None:
    write_trec(tmp_path, [record("a b", (("x%y", True), ("z", False)), (("x%y", 2),))])
    assert (tmp_path / RUN).read_text() == "a%20b Q0 x%25y 1 2 openbook\na%20b Q0 z 2 1 openbook\n"
    assert (tmp_path / QRELS).read_text() == "a%20b 0 x%25y 2\n"
    write_trec(tmp_path / "none", [record("a", (), ())])
    assert not (tmp_path / "none").exists()


def test_the_numbers_are_those_of_trec_eval(tmp_path: Path) -> None:
    measures = pytest.importorskip("ir_measures")
    pytest.importorskip("pytrec_eval")
    records = random_records()
    write_trec(tmp_path, records)
    ours = summarize_ranking(records, depth=31)["by_ids"]
    names = {f"recall_at_{k}": measures.R @ k for k in (1, 5, 10, 20, 31)}
    names |= {f"success_at_{k}": measures.Success @ k for k in (1, 5, 10, 20, 31)}
    names |= {f"ndcg_at_{k}": measures.nDCG @ k for k in (10, 31)}
    names |= {"mrr_at_31": measures.RR}
    qrels, run = measures.read_trec_qrels(str(tmp_path / QRELS)), measures.read_trec_run(str(tmp_path / RUN))
    theirs = measures.pytrec_eval.calc_aggregate(list(names.values()), qrels, run)
    assert ours.keys() == names.keys() | {"mrr_at_10", "n_questions"}
    for name, measure in names.items():
        assert ours[name] == pytest.approx(theirs[measure], rel=1e-12), name
