"""One generation: what it retrieves is what the index says, what it answers is what the test answered."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from openbook.batch import Example
from openbook.commands.evaluate import load_served
from openbook.commands.trained.serve import load
from openbook.errors import OpenBookError
from openbook.serving.current import Source
from openbook.serving.served import HowToAnswer
from openbook.tracking.run_contents import read_run
from openbook.tracking.run_folder import RunFolder
from tests.serving.conftest import Trained


def test_passages_and_scores_are_inner_products_over_the_temperature(trained: Trained) -> None:
    served, asked = trained.original, trained.questions[:3]
    found = served.retrieve(asked, 5)
    retriever = served.module.retriever
    with torch.inference_mode():
        q = retriever.represent(served.batch_of([Example(text, text, ("",)) for text in asked]))
        d = retriever.passages.encode_once(torch.arange(served.corpus.n_passages))  # type: ignore[attr-defined]
        scores = q.double() @ d.double().T / retriever.temperature
    for own, hits in zip(scores, found, strict=True):
        best = own.topk(5)
        assert [hit.score for hit in hits] == pytest.approx(best.values.tolist(), rel=1e-4)
        assert [hit.id for hit in hits] == [served.corpus.passage(row).id for row in best.indices.tolist()]


def test_a_softmax_over_the_scores_is_the_prior_of_an_answer(trained: Trained) -> None:
    hits = trained.original.retrieve(trained.questions[:1], 3)[0]
    (answer,) = trained.original.answer(trained.questions[:1])
    total = math.fsum(math.exp(hit.score) for hit in hits)
    assert [passage.prior for passage in answer.passages] == pytest.approx(
        [math.exp(hit.score) / total for hit in hits], rel=1e-4
    )
    assert [passage.id for passage in answer.passages] == [hit.id for hit in hits]


def test_answers_are_those_of_the_test(trained: Trained) -> None:
    tested = {one.question: one for one in read_run(trained.path).predictions}
    for one in trained.original.answer(trained.questions[:6]):
        assert one.prediction == tested[one.question].prediction
        assert one.logprob == pytest.approx(tested[one.question].logprob, rel=1e-4)
        assert one.answers == () and one.exact_match is None and not any(p.relevant for p in one.passages)


def test_what_a_question_asks_for_is_what_overrides_would_do(trained: Trained) -> None:
    how = HowToAnswer("rag_sequence", 2, 2, "fast")
    words = ("objective=rag_sequence", "evaluate.n_docs=2", "decode.beams=2", "decode.rag_sequence=fast")
    (asked,) = trained.original.answer(trained.questions[:1], how)
    (overridden,) = load(Source(str(trained.path), words)).answer(trained.questions[:1])
    assert len(asked.passages) == 2 and not asked.tokens
    assert (asked.prediction, asked.logprob) == (overridden.prediction, pytest.approx(overridden.logprob, rel=1e-5))


def test_fewer_passages_than_asked_for_are_all_there_are(trained: Trained) -> None:
    (hits,) = trained.original.retrieve(trained.questions[:1], 90)
    assert len(hits) == len({hit.id for hit in hits}) == trained.original.corpus.n_passages


def test_a_lossy_index_that_re_ranks_orders_by_fresh_scores(trained: Trained) -> None:
    words = ("index.factory=IVF2,PQ2x4", "index.nprobe=2")
    exact = trained.original.retrieve(trained.questions[:2], 5)
    plain = load(Source(str(trained.path), words)).retrieve(trained.questions[:2], 5)
    fresh = load(Source(str(trained.path), (*words, "retriever.rerank=37"))).retrieve(trained.questions[:2], 5)
    assert plain != exact
    for own, hits in zip(exact, fresh, strict=True):
        assert [hit.id for hit in hits] == [hit.id for hit in own]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in own], rel=1e-4)


def test_what_a_run_cannot_do_is_said(trained: Trained) -> None:
    with pytest.raises(OpenBookError, match=r"objective does not have \(decoding\): got fast with rag_token"):
        trained.original.answer(["who ?"], HowToAnswer(decoding="fast"))
    with pytest.raises(OpenBookError, match="a question is longer than the limit"):
        trained.original.retrieve(["alpha " * 400], 3)
    run = RunFolder(trained.path)
    alone, _ = load_served(run, run.load_config(["objective=dpr"], training=False))
    assert alone.retrieve(trained.questions[:1], 3) == trained.original.retrieve(trained.questions[:1], 3)
    with pytest.raises(OpenBookError, match="this run trained no generator"):
        alone.answer(["who ?"])
    blind = replace(alone, module=_ClosedBook())  # type: ignore[arg-type]
    with pytest.raises(OpenBookError, match="this run retrieves nothing"):
        blind.retrieve(["who ?"], 3)


class _ClosedBook:
    class retriever:  # noqa: N801
        has_passages = False
