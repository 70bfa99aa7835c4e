"""Results published by Lewis et al. 2020 (arXiv:2005.11401v4), to be shown next to one's own.

They were measured on other questions, over 21 million passages and with BART-large: the order of the methods can be
compared, the absolute values cannot.
"""

from typing import NamedTuple

DATASETS = ("Natural Questions", "TriviaQA", "WebQuestions", "CuratedTREC")


class Published(NamedTuple):
    """A method's name in the paper and its exact match in per cent, one per DATASETS; None if not published.

    test: table 1. dev: table 6, the ablations.
    """

    name: str
    test: tuple[float | None, ...] = (None,) * 4
    dev: tuple[float | None, ...] = (None,) * 4

    def best(self, n_datasets: int) -> str:
        """Its `percentages` on the first datasets: of table 1; where that has none, of table 6, with "(dev)"."""
        test, dev = self.test[:n_datasets], self.dev[:n_datasets]
        return f"{percentages(dev)} (dev)" if any(dev) and not any(test) else percentages(test)


RAG_TOKEN = Published("RAG-Token", (44.1, 55.2, 45.5, 50.0), (43.5, 54.8, 46.5, 51.9))
RAG_SEQUENCE = Published("RAG-Sequence", (44.5, 56.8, 45.2, 52.2), (44.0, 55.8, 44.9, 53.4))

# Experiment -> its counterpart in the paper; other experiments have none.
COUNTERPARTS = {
    "rag_token": RAG_TOKEN,
    "rag_sequence": RAG_SEQUENCE,
    "frozen_retriever": Published("RAG-Token-Frozen", dev=(37.8, 50.1, 37.1, 51.1)),
    "bm25": Published("RAG-Token-BM25", dev=(29.7, 41.5, 32.1, 33.1)),
    # TriviaQA is published for T5 on the Wikipedia test set only, which is another one.
    "closed_book": Published("T5-11B+SSM", (36.6, None, 44.7, None)),
    "dpr_rag_token": RAG_TOKEN,  # the paper's retriever starts from DPR's encoders, too
}

# Further rows of tables 1 and 6.
OTHERS = (
    Published("T5-11B, closed book", (34.5, None, 37.4, None)),
    Published("DPR with an extractive reader", (41.5, 57.9, 41.1, 50.6)),
    Published("RAG-Sequence-Frozen", dev=(41.2, 52.1, 41.8, 52.6)),
    Published("RAG-Sequence-BM25", dev=(31.8, 44.1, 36.6, 33.8)),
)

# Section 4.5, index hot-swapping: 82 heads of state that changed between the Wikipedia of December 2016, their original
# index here, and that of December 2018; share answered right, 0 to 1.
HOT_SWAP = {
    "original_index": {"original_facts": 0.70, "changed_facts": 0.04},
    "changed_index": {"original_facts": 0.12, "changed_facts": 0.68},
}

N_DOCS_AT_TEST = (
    "The paper's figure 3: more passages at test time help RAG-Sequence throughout; RAG-Token is best at about 10."
)


class Pair(NamedTuple):
    """Two experiments of which `ahead` is better in the paper. split: `test` or `dev`, the source of its results."""

    what: str
    ahead: str
    behind: str
    split: str

    def published(self) -> tuple[float, float]:
        """Both exact matches on Natural Questions, per cent."""
        ahead, behind = (getattr(COUNTERPARTS[name], self.split)[0] for name in (self.ahead, self.behind))
        return ahead, behind


# What the paper's results show, in the order of its claims (sections 4.1 and 4.5).
PAIRS = (
    Pair("a learned retriever over a frozen one", "rag_token", "frozen_retriever", "dev"),
    Pair("a learned retriever over BM25", "rag_token", "bm25", "dev"),
    Pair("a frozen dense retriever over BM25", "frozen_retriever", "bm25", "dev"),
    Pair("RAG-Sequence over RAG-Token", "rag_sequence", "rag_token", "test"),
    Pair("retrieval over a closed book", "rag_token", "closed_book", "test"),
)


def percentages(figures: tuple[float | None, ...]) -> str:
    """'44.1 / 55.2 / 45.5 / 50.0', or '-' if all are missing."""
    if all(figure is None for figure in figures):
        return "-"
    return " / ".join("-" if figure is None else f"{figure:.1f}" for figure in figures)
