"""Which passages a question is trained on: never a positive one or one that holds an answer as a negative."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.batch import MISSING_ROW, Batch, Example
from openbook.config.training import DprConfig
from openbook.data.corpus import Corpus
from openbook.data.corpus_build import build_corpus
from openbook.errors import OpenBookError
from openbook.metrics.matching import has_answer
from openbook.retrieval.bm25 import BM25Index, passage_texts
from openbook.training.dpr_negatives import TrainingPassages

TEXTS = [
    ("omega", "the capital of omega is alpha"),  # 0: gold of the question about omega
    ("omega", "omega has the capital alpha , a city"),  # 1: another passage with the answer
    ("omega", "a river flows through omega"),  # 2: BM25 likes it, no answer
    ("sigma", "the capital of sigma is beta"),  # 3: gold of the question about sigma
    ("sigma", "sigma has a king and a capital"),  # 4
    ("kappa", "the capital of kappa is gamma , not alphabet"),  # 5
    ("kappa", "kappa lives on tau"),  # 6
]
OMEGA = Example("q0", "what is the capital of omega ?", ("alpha", "Alpha City"), ("p0",))
SIGMA = Example("q1", "what is the capital of sigma ?", ("beta",), ("p3", "p4"))
UNKNOWN = Example("q2", "which capital has omega ?", ("alpha",))
HOPELESS = Example("q3", "which capital has omega ?", ("delta",))
FOREIGN = Example("q4", "the capital of kappa ?", ("gamma",), ("from another corpus",))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Corpus:
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("corpus")
    lines = [{"id": f"p{row}", "title": title, "text": text} for row, (title, text) in enumerate(TEXTS)]
    (folder / "passages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return build_corpus(
        folder / "passages.jsonl", {"encoder": BertTokenizerFast.from_pretrained(tokenizer_folder)}, folder
    )


@pytest.fixture(scope="module")
def lexical(corpus: Corpus) -> BM25Index:
    return BM25Index(passage_texts(corpus))


def batch_of(examples: Sequence[Example], weight: Sequence[float] = (), cursor: int = 0) -> Batch:
    nothing: Any = torch.zeros(len(examples), 1, dtype=torch.int64)
    weights = torch.tensor(weight or [1.0] * len(examples))
    return Batch(nothing, nothing.bool(), ((),) * len(examples), nothing, weights, tuple(examples), cursor)


def test_a_positive_is_drawn_anew_at_each_visit_and_the_same_for_the_same_visit(corpus: Corpus) -> None:
    passages = TrainingPassages(corpus, None, DprConfig(), seed=5)
    drawn = [passages.positives(batch_of([OMEGA, SIGMA], cursor=cursor)) for cursor in range(40)]
    assert {row for row, _ in drawn} == {0}
    assert {row for _, row in drawn} == {3, 4}
    again = TrainingPassages(corpus, None, DprConfig(), seed=5)
    assert drawn == [again.positives(batch_of([OMEGA, SIGMA], cursor=cursor)) for cursor in range(40)]
    other = TrainingPassages(corpus, None, DprConfig(), seed=6)
    assert drawn != [other.positives(batch_of([OMEGA, SIGMA], cursor=cursor)) for cursor in range(40)]


def test_what_only_keeps_step_has_no_positive(corpus: Corpus) -> None:
    assert TrainingPassages(corpus, None, DprConfig()).positives(batch_of([OMEGA, SIGMA], [0, 1]))[0] == MISSING_ROW


def test_without_a_known_positive_bm25s_best_passage_with_an_answer_is_taken(corpus: Corpus) -> None:
    passages = TrainingPassages(corpus, None, DprConfig(bm25_negatives=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert passages.prepare([OMEGA, UNKNOWN, FOREIGN]) == 0
    found = passages.positives(batch_of([UNKNOWN, FOREIGN]))
    assert found[0] in (0, 1) and found[1] == 5


def test_questions_without_any_positive_are_left_out_with_one_warning(corpus: Corpus) -> None:
    passages = TrainingPassages(corpus, None, DprConfig())
    with pytest.warns(UserWarning, match=r"1 of 3 training questions have neither .* BM25's best 50") as said:
        assert passages.prepare([OMEGA, HOPELESS, UNKNOWN]) == 1
    assert len(said) == 1
    assert passages.positives(batch_of([HOPELESS])) == [MISSING_ROW]
    assert passages.hard_negatives(batch_of([HOPELESS]), [MISSING_ROW]) == []


def test_a_corpus_that_answers_nothing_is_an_error(corpus: Corpus) -> None:
    with pytest.raises(OpenBookError, match=r"no training question has a positive passage \(data.train\): got 1 quest"):
        TrainingPassages(corpus, None, DprConfig()).prepare([HOPELESS])


def test_bm25s_negatives_hold_no_answer_and_are_no_positive(corpus: Corpus, lexical: BM25Index) -> None:
    for n_wanted in (1, 2, 3, 5):
        passages = TrainingPassages(corpus, lexical, DprConfig(bm25_negatives=n_wanted))
        for example, gold in ((OMEGA, {0}), (SIGMA, {3, 4})):
            rows = passages.hard_negatives(batch_of([example]), [min(gold)])
            assert rows and len(rows) == len(set(rows)) <= n_wanted
            assert not gold & set(rows)
            assert not any(has_answer(TEXTS[row][1], example.answers) for row in rows)
    best = TrainingPassages(corpus, lexical, DprConfig(bm25_negatives=1)).hard_negatives(batch_of([OMEGA]), [0])
    in_order = [row for row in lexical.search([OMEGA.question], 7)[0][0].tolist() if row not in (0, 1)]
    assert best == in_order[:1]


def test_negatives_that_a_question_names_stand_for_bm25s(corpus: Corpus, lexical: BM25Index) -> None:
    """Each in its turn, a positive one never; BM25 fills up, and is not asked where nothing is missing."""
    named = replace(OMEGA, negative_ids=("p5", "p0", "p6", "not in the corpus"))
    one = TrainingPassages(corpus, None, DprConfig(bm25_negatives=1))
    drawn = {tuple(one.hard_negatives(batch_of([named], cursor=cursor), [0])) for cursor in range(20)}
    assert drawn == {(5,), (6,)} and one.bm25 is None
    three = TrainingPassages(corpus, lexical, DprConfig(bm25_negatives=3))
    rows = three.hard_negatives(batch_of([named, SIGMA]), [0, 3])
    others = TrainingPassages(corpus, lexical, DprConfig(bm25_negatives=3)).hard_negatives(batch_of([SIGMA]), [3])
    best = [row for row in lexical.search([OMEGA.question], 7)[0][0].tolist() if row not in (-1, 0, 1, 5, 6)]
    assert set(rows[:2]) == {5, 6} and rows[2:] == [best[0], *others]


def test_depth_bounds_where_negatives_are_looked_for(corpus: Corpus, lexical: BM25Index) -> None:
    all_of_them = TrainingPassages(corpus, lexical, DprConfig(bm25_negatives=5, depth=7)).hard_negatives(
        batch_of([OMEGA]), [0]
    )
    for depth in (1, 2, 3, 4):
        looked_at = lexical.search([OMEGA.question], depth)[0][0].tolist()
        rows = TrainingPassages(corpus, lexical, DprConfig(bm25_negatives=5, depth=depth)).hard_negatives(
            batch_of([OMEGA]), [0]
        )
        assert rows == [row for row in all_of_them if row in looked_at]


def test_the_index_gives_negatives_that_bm25_has_not_given(corpus: Corpus, lexical: BM25Index) -> None:
    index_rows = torch.tensor([[0, 1, 2, 6, 5, 4], [3, 4, 2, 0, 1, MISSING_ROW]])
    batch = batch_of([OMEGA, SIGMA])
    passages = TrainingPassages(corpus, lexical, DprConfig(bm25_negatives=1, index_negatives=2))
    from_bm25 = passages.hard_negatives(batch, [0, 3])
    both = passages.hard_negatives(batch, [0, 3], index_rows)
    assert both[: len(from_bm25)] == from_bm25
    wanted = [row for row in (2, 6, 5, 4) if row != from_bm25[0]][:2] + [
        row for row in (2, 0, 1) if row != from_bm25[1]
    ][:2]
    assert both[len(from_bm25) :] == wanted
    alone = TrainingPassages(corpus, None, DprConfig(bm25_negatives=0, index_negatives=2))
    assert alone.hard_negatives(batch, [0, 3], index_rows) == [2, 6, 2, 0]
    assert alone.hard_negatives(batch, [MISSING_ROW, 3], index_rows) == [2, 0]
    assert alone.hard_negatives(batch, [0, 3]) == []
    assert TrainingPassages(corpus, None, DprConfig(bm25_negatives=0, index_negatives=5)).hard_negatives(
        batch, [0, 3], index_rows
    ) == [
        2,
        6,
        5,
        4,
        2,
        0,
        1,
    ]


def test_false_negatives_do_not_compete(corpus: Corpus) -> None:
    rows = list(range(len(TEXTS)))
    mask = TrainingPassages(corpus, None, DprConfig()).competing([OMEGA, SIGMA], rows)
    assert mask.tolist() == [
        [False, False, True, True, True, True, True],  # "alphabet" is not "alpha"
        [True, True, True, False, False, True, True],  # both gold passages
    ]
    assert TrainingPassages(corpus, None, DprConfig(mask_false_negatives=False)).competing([OMEGA], rows).all()


def test_answers_may_be_patterns(corpus: Corpus) -> None:
    pattern = Example("q", "what ?", (r"kappa is \w+",))
    assert TrainingPassages(corpus, None, DprConfig(), regex=True).competing([pattern], [4, 5]).tolist() == [
        [True, False]
    ]
    assert TrainingPassages(corpus, None, DprConfig()).competing([pattern], [4, 5]).all()
