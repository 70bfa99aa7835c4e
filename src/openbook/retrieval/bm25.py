"""BM25 instead of the trained retriever: the comparison of Lewis et al. 2020, section 4.5 and table 6.

    p(z|x) = softmax over the n_docs retrieved of BM25(x, z) / temperature          (the paper's temperature is 1)

Nothing here learns, so there is no index to refresh. Scores are those of Lucene's BM25 with k1 = 1.5 and b = 0.75, the
defaults of bm25s (Lu 2024, arXiv:2407.03618), over title and text. Words are runs of two or more letters or digits in
lower case, unstemmed, English stop words left out; where no spaces stand between words, pairs of signs.
"""

import logging
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openbook.batch import MISSING_ROW, Batch, Retrieved, to_device
from openbook.data.corpus import Corpus
from openbook.errors import OpenBookError
from openbook.metrics.scripts import with_spaces
from openbook.retrieval.base import Retriever


@cache
def _bm25s() -> Any:
    """The library, imported where BM25 is used only, and without jax: where that is installed bm25s imports it for its
    top-k, which is not used here, and jax takes three quarters of a GPU's memory when it starts."""
    unseen = "jax" not in sys.modules
    if unseen:
        sys.modules["jax"] = None  # type: ignore[assignment]  # what Python raises ImportError for
    try:
        import bm25s
    finally:
        if unseen:
            del sys.modules["jax"]

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs at DEBUG by default
    return bm25s


class BM25Index:
    """BM25 over texts, a pure function of them; kept in memory: 8 bytes per distinct word of each text."""

    def __init__(self, texts: Iterable[str]):
        bm25s = _bm25s()
        words = bm25s.tokenize(
            [with_spaces(text) for text in texts], stopwords="en", return_ids=True, show_progress=False
        )
        if not words.vocab:
            raise OpenBookError(
                "BM25 finds no word in the passages",
                where="retriever.kind",
                got="bm25",
                expected="words of two or more letters or digits",
                action="Set retriever.kind=dense for such a corpus.",
            )
        self._bm25 = bm25s.BM25(k1=1.5, b=0.75, method="lucene", backend="numpy", csc_backend="numpy")
        self._bm25.index(words, create_empty_token=False, show_progress=False)

    def search(self, questions: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows [n, top_k] int64 and BM25 scores [n, top_k] float32, best first, equal scores by row.

        A text that shares no word with the question is no hit: MISSING_ROW and -inf.
        """
        rows = np.full((len(questions), top_k), MISSING_ROW, dtype=np.int64)
        scores = np.full((len(questions), top_k), -np.inf, dtype=np.float32)
        asked = _bm25s().tokenize(
            [with_spaces(question) for question in questions], stopwords="en", return_ids=False, show_progress=False
        )
        for place, words in enumerate(asked):
            known = self._bm25.get_tokens_ids(words)
            if known:
                all_scores = self._bm25.get_scores_from_ids(known)
                best = _best(all_scores, top_k)
                rows[place, : len(best)], scores[place, : len(best)] = best, all_scores[best]
        return rows, scores


class BM25Retriever(nn.Module, Retriever[list[str]]):
    """BM25 scores as the logits of p(z|x); queries are the question strings.

    It has no parameters and no state; every process builds the same index from the corpus of n_passages.
    """

    _place: Tensor

    def __init__(self, index: BM25Index, n_passages: int, temperature: float = 1.0):
        super().__init__()
        self.index, self.n_passages, self.temperature = index, n_passages, temperature
        self.register_buffer("_place", torch.empty(0), persistent=False)  # knows the device that scores go to

    def represent(self, batch: Batch) -> list[str]:
        return [example.question for example in batch.examples]

    def retrieve(self, queries: list[str], top_k: int) -> Retrieved:
        """The top_k by BM25, scores without temperature; see BM25Index.search."""
        rows, scores = self.index.search(queries, top_k)
        return Retrieved(torch.from_numpy(rows), to_device(torch.from_numpy(scores), self._place.device))

    def score(self, queries: list[str], retrieved: Retrieved) -> Tensor:
        """doc_scores [batch, n_docs] fp32: the scores of `retrieve`, which never go stale, over the temperature."""
        scores = retrieved.index_scores / self.temperature
        return torch.where(to_device(retrieved.mask, scores.device), scores, -torch.inf)

    def index_is_exact(self) -> bool:
        return True

    def index_facts(self) -> dict[str, Any]:
        return {"generation": 0, "n_passages": self.n_passages, "factory": "BM25"}


def passage_texts(corpus: Corpus) -> Iterable[str]:
    """Title and text of every passage, by row: what BM25 indexes."""
    passages = map(corpus.passage, range(corpus.n_passages))
    return (f"{passage.title} {passage.text}" for passage in passages)


def _best(scores: np.ndarray, top_k: int) -> np.ndarray:
    """The rows of the top_k positive scores, highest first, equal ones by row."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > top_k:
        least = np.partition(scores[rows], -top_k)[-top_k]
        rows = rows[scores[rows] >= least]
    return rows[np.argsort(-scores[rows], kind="stable")][:top_k]
