"""Questions to answers with their passages: retrieve, read, decode, compare with the gold answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch

from openbook.batch import MISSING_ROW, Batch, Example
from openbook.contexts import ContextBuilder, closed_book_rows
from openbook.corpus import Corpus
from openbook.decode import Decoded, Objective, greedy
from openbook.generator import Generator
from openbook.metrics import RECALL_AT, Prediction, ReadPassage, exact_match, f1, relevant_passages
from openbook.objectives import doc_logprobs
from openbook.retriever import Retriever


@torch.inference_mode()
def answer(
    batch: Batch,
    retriever: Retriever | None,
    generator: Generator,
    contexts: ContextBuilder,
    corpus: Corpus,
    objective: str,
    n_docs: int,
    max_length: int,
    detokenize: Callable[[list[int]], str],
    index_is_exact: bool = False,
) -> list[Prediction]:
    """One Prediction per example of the batch, padding examples (weight 0) left out.

    The index gives the top 20 for recall; the first n_docs of them are read, ordered (unless the retriever's rerank is
    -1) and weighted by freshly computed scores, or by the index's own where index_is_exact says that they are the same
    (up to the dtype the corpus was encoded in).
    Without a retriever (closed book) the generator reads the question alone and nothing is retrieved. The caller puts
    the modules in eval mode.
    """
    if retriever is None:
        top = closed_book_rows(batch)
        read, logprobs = top, torch.zeros(top.shape, device=top.device)
    else:
        question_emb = retriever.encode_questions(batch.question_ids, batch.question_mask)
        look = retriever.search if index_is_exact else retriever.retrieve
        found = look(question_emb, max(n_docs, *RECALL_AT))
        first = type(found)(found.rows[:, :n_docs], found.index_scores[:, :n_docs])
        exact = first.index_scores / retriever.temperature if index_is_exact else retriever.score(question_emb, first)
        if retriever.rerank >= 0 and not index_is_exact:  # their fresh scores are known anyway
            order = exact.argsort(dim=1, descending=True, stable=True)
            first, exact = (
                type(found)(first.rows.gather(1, order), first.index_scores.gather(1, order)),
                exact.gather(1, order),
            )
        top = torch.cat([first.rows, found.rows[:, n_docs:]], dim=1)
        read, logprobs = first.rows, doc_logprobs(exact)
    context_ids, context_mask = contexts(batch.context_questions, read)
    decoded = greedy(generator, context_ids, context_mask, logprobs, cast(Objective, objective), max_length)
    return [
        _prediction(
            number, batch.examples[number], top[number].tolist(), decoded, corpus, n_docs, generator, detokenize
        )
        for number in range(len(batch.examples))
        if batch.weight[number] > 0
    ]


def _prediction(
    number: int,
    example: Example,
    rows: list[int],
    decoded: Decoded,
    corpus: Corpus,
    n_docs: int,
    generator: Generator,
    detokenize: Callable[[list[int]], str],
) -> Prediction:
    ids = decoded.token_ids[number].tolist()
    text = detokenize(ids[: ids.index(generator.eos_token_id)] if generator.eos_token_id in ids else ids)
    present = [place for place, row in enumerate(rows) if row != MISSING_ROW]
    passages = [corpus.passage(rows[place]) for place in present]
    # Ids of another corpus say nothing about this one: then, as without ids, a passage with an answer counts.
    known = tuple(identity for identity in example.positive_ids if corpus.row_of(identity) is not None)
    relevant = relevant_passages(replace(example, positive_ids=known), passages)
    prior, posterior = decoded.prior[number].tolist(), decoded.posterior[number].tolist()
    read = [
        ReadPassage(passage.id, passage.title, prior[place], posterior[place], hit, passage.text)
        for place, passage, hit in zip(present, passages, relevant, strict=True)
        if place < n_docs
    ]
    read.sort(key=lambda passage: -passage.prior)
    hits = [False] * max(RECALL_AT)
    for place, hit in zip(present, relevant, strict=True):
        if place < len(hits):
            hits[place] = hit
    return Prediction(
        id=example.id, question=example.question, answers=example.answers, prediction=text, relation=example.relation,
        phrasing=example.phrasing, passages=tuple(read), exact_match=exact_match(text, example.answers),
        f1=f1(text, example.answers), hits=tuple(hits),
    )  # fmt: skip
