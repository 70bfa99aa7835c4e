"""Which passages are read of a question asked in several wordings: by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from openbook.batch import MISSING_ROW, Retrieved
from openbook.retrieval.paraphrases import retrieve_for_all

# Passages at the corners of a space: a query's scores are its coordinates.
N_PASSAGES = 5


def by_score(queries: Tensor, top_k: int) -> Retrieved:
    scores, rows = queries.sort(dim=1, descending=True, stable=True)
    missing = torch.full((len(queries), max(top_k - N_PASSAGES, 0)), MISSING_ROW)
    rows = torch.cat([rows[:, :top_k], missing], 1)
    return Retrieved(rows, torch.cat([scores[:, :top_k], torch.full(missing.shape, -torch.inf)], 1))


def stand_in(temperature: float) -> Any:
    return SimpleNamespace(retrieve=by_score, search=by_score, temperature=temperature)


def test_the_passages_of_the_highest_mean_prior_are_read() -> None:
    queries = torch.tensor([[4.0, 3, 2, 1, 0], [0.0, 1, 2, 3, 4], [1.0, 0, 0, 0, 0]])
    wordings = torch.tensor([[0.0, 0, 0, 9, 0], [0.0, 0, 8, 0, 0], [0.0, 0, 0, 0, 5]])
    of = torch.tensor([0, 0, 2])
    temperature = 2.0
    found = retrieve_for_all(stand_in(temperature), queries, wordings, of, 2)
    for question in range(3):
        priors = [(queries[question].double() / temperature).softmax(0)]
        for wording in wordings[of == question].double():
            best = wording.topk(2).indices  # of a wording, what it would read
            prior = torch.zeros(N_PASSAGES, dtype=torch.float64)
            prior[best] = (wording[best] / temperature).softmax(0)
            priors.append(prior)
        mean = torch.stack(priors).mean(0)
        expected = mean.sort(descending=True, stable=True).indices[:2].tolist()
        assert found.rows[question].tolist() == expected
        assert found.index_scores[question].tolist() == queries[question, expected].tolist()  # the question's own
    assert found.rows.tolist() == [[2, 3], [4, 3], [4, 0]]  # the second has no other wording


def test_without_other_wordings_it_is_the_order_of_the_index() -> None:
    queries = torch.randn(4, N_PASSAGES, generator=torch.Generator().manual_seed(0))
    none = torch.empty(0, N_PASSAGES), torch.empty(0, dtype=torch.int64)
    found, plain = retrieve_for_all(stand_in(1.0), queries, *none, 3), by_score(queries, 3)
    assert torch.equal(found.rows, plain.rows) and torch.equal(found.index_scores, plain.index_scores)


@pytest.mark.parametrize("top_k", [N_PASSAGES, N_PASSAGES + 2])
def test_missing_hits_stay_behind(top_k: int) -> None:
    queries = torch.zeros(1, N_PASSAGES)
    found = retrieve_for_all(stand_in(1.0), queries, torch.ones(2, N_PASSAGES), torch.tensor([0, 0]), top_k)
    assert sorted(found.rows[0, :N_PASSAGES].tolist()) == list(range(N_PASSAGES))
    assert (found.rows[0, N_PASSAGES:] == MISSING_ROW).all()
