"""Tags, and the numbers of a test under flat names."""

from __future__ import annotations

from openbook.config.load import load_experiment
from openbook.tracking.loggers.run_facts import numbers, tags


def test_every_number_has_a_flat_name_and_groups_are_left_out() -> None:
    summary = {
        "exact_match": 0.5,
        "n_questions": 7,
        "intervals": {"exact_match": [0.1, 0.9]},
        "by_relation": {"capital": {"f1": 1.0}},
        "by_phrasing": {"held_out": {"f1": 1.0}},
        "retrieval": {"by_ids": {"ndcg_at_10": 0.25, "n_questions": 5}},
        "fused": True,
        "name": "x",
    }
    assert numbers("test", summary) == {
        "test/exact_match": 0.5,
        "test/n_questions": 7,
        "test/retrieval/by_ids/ndcg_at_10": 0.25,
        "test/retrieval/by_ids/n_questions": 5,
    }


def test_runs_are_told_apart_by_what_is_usually_varied() -> None:
    config = load_experiment("rag_sequence", ["seed=3", "refresh.mode=amortized", "retriever.n_docs=8"])
    assert tags(config) == ["rag_sequence", "refresh:amortized", "n_docs:8", "seed:3"]
