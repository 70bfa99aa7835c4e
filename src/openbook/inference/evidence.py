"""The passages found for a question, and what retrieval alone is measured by: nothing yet about answers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from openbook.batch import MISSING_ROW, Batch, Example, Retrieved
from openbook.data.corpus import Corpus
from openbook.metrics.matching import normalize_answer
from openbook.metrics.prediction import Prediction, ReadPassage
from openbook.metrics.retrieval import RECALL_AT, answer_hits, gold_hits, judgements, relevant_passages
from openbook.metrics.summary import summarize
from openbook.objectives.marginal import doc_logprobs
from openbook.retrieval.base import Retriever
from openbook.utils.distributed import sum_over_ranks


def own_row(example: Example, corpus: Corpus, identical_ids: str) -> int:
    """The row of the passage that is the question itself and no answer to it; MISSING_ROW where there is none.

    BEIR (Thakur et al. 2021) ignores every hit with the query's own id ("ignore"); ids of two numberings may also meet
    by chance, so "auto" asks for the question's text as well, up to case, punctuation and articles.
    """
    row = None if identical_ids == "keep" else corpus.row_of(example.id)
    if row is None:
        return MISSING_ROW
    passage = corpus.passage(row)
    texts = (passage.text, f"{passage.title} {passage.text}")
    same = identical_ids == "ignore" or normalize_answer(example.question) in map(normalize_answer, texts)
    return row if same else MISSING_ROW


def without_rows(top: Retrieved, own: Tensor) -> Retrieved:
    """The hits [batch, k] of top [batch, k + 1] without the row `own` [batch] of each question; the last is left out
    where that is not among them. MISSING_ROW stands for none."""
    order = (top.rows == own[:, None]).int().argsort(dim=1, stable=True)[:, :-1]
    return Retrieved(top.rows.gather(1, order), top.index_scores.gather(1, order.to(top.index_scores.device)))


@torch.inference_mode()
def best_passages(
    batch: Batch,
    retriever: Retriever[Any],
    n_docs: int,
    index_is_exact: bool,
    depth: int = 0,
    own: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Rows [batch, top_k] (on the CPU) of the 20 (or `depth`) best passages at least, and doc_scores [batch, n_docs] of
    the first.

    Those that are read are ordered (unless the retriever's rerank is -1) and weighted by freshly computed scores, or by
    the index's own where index_is_exact says that they are the same. own: for each question a row to leave out;
    all ranks give some, or none does.
    """
    queries = retriever.represent(batch)
    search = retriever.search if index_is_exact else retriever.retrieve
    most, leaves_out = max(n_docs, depth, *RECALL_AT), False
    if own:  # ranks search together, for as many passages
        n_own = sum(row != MISSING_ROW for row in own)
        leaves_out = bool(sum_over_ranks(torch.tensor(n_own, device=batch.weight.device)))
    top = search(queries, most + leaves_out)
    if leaves_out:
        top = without_rows(top, torch.tensor(own))
    read = Retrieved(top.rows[:, :n_docs], top.index_scores[:, :n_docs])
    rows, behind = read.rows, top.rows[:, n_docs:]
    doc_scores = read.index_scores / retriever.temperature if index_is_exact else retriever.score(queries, read)
    if retriever.rerank >= 0 and not index_is_exact:  # their fresh scores are known anyway
        order = doc_scores.argsort(dim=1, descending=True, stable=True)
        rows, doc_scores = rows.gather(1, order.cpu()), doc_scores.gather(1, order)
    return torch.cat([rows, behind], dim=1), doc_scores


def reading_order(rows: Sequence[int], prior: Sequence[float]) -> list[int]:
    """Places of the passages that are read, highest prior first: the order of Prediction.passages."""
    return sorted((place for place in range(len(prior)) if rows[place] >= 0), key=lambda n: -prior[n])


@torch.inference_mode()
def found_passages(
    batch: Batch,
    rows: Tensor,
    doc_scores: Tensor,
    corpus: Corpus,
    regex: bool = False,
    posterior: Tensor | None = None,
    depth: int = 0,
) -> list[Prediction]:
    """One Prediction per example of the batch, padding examples (weight 0) left out, with no answer.

    rows [batch, top_k], best first; doc_scores [batch, n_docs] of the first of them. posterior [batch, n_docs]: what
    an answer made of them; without one it is the prior. regex: the answers are regular expressions. depth: of so many
    passages also the `ranking` is kept.
    """
    priors = doc_logprobs(doc_scores).exp()
    after = (priors if posterior is None else posterior).tolist()
    predictions = []
    for number, (example, top, prior) in enumerate(zip(batch.examples, rows.tolist(), priors.tolist(), strict=True)):
        if batch.weight[number] == 0:
            continue
        passages = {place: corpus.passage(row) for place, row in enumerate(top) if row >= 0}
        # Ids of another corpus say nothing about this one: then, as without ids, a passage with an answer counts.
        known = tuple(identity for identity in example.positive_ids if corpus.row_of(identity) is not None)
        relevant = relevant_passages(replace(example, positive_ids=known), list(passages.values()), regex)
        relevant_at = dict(zip(passages, relevant, strict=True))
        read = [
            ReadPassage(passage.id, passage.title, prior[place], after[number][place], relevant_at[place], passage.text)
            for place in reading_order(top, prior)
            for passage in [passages[place]]
        ]
        first = list(passages.values())[: max(depth, *RECALL_AT)]
        held, first = answer_hits(example.answers, first, regex), first[: max(RECALL_AT)]
        ranked = [passage.id for passage in passages.values()][:depth]
        with_answer = held[: len(first)] if example.answers else ()
        positive = gold_hits(known, first)
        if not first and len(top) > 1:  # searched for and not found is a miss; a closed book does not search
            with_answer, positive = (False,) if example.answers else (), (False,) if known else ()
        predictions.append(
            Prediction(
                id=example.id,
                question=example.question,
                answers=example.answers,
                prediction="",
                relation=example.relation,
                phrasing=example.phrasing,
                passages=tuple(read),
                exact_match=None,
                f1=None,
                hits=tuple(relevant_at.get(place, False) for place in range(max(RECALL_AT))),
                answer_hits=with_answer,
                gold_hits=positive,
                ranking=tuple(zip(ranked, held, strict=False)),
                judged=judgements(example) if depth and known else (),
            )
        )
    return predictions


def summarize_found(predictions: Sequence[Prediction], resamples: int = 0, seed: int = 0) -> dict[str, Any]:
    """`metrics.summarize`, with null for what only an answer could have."""
    return dict.fromkeys(("exact_match", "f1")) | summarize(predictions, resamples=resamples, seed=seed)
