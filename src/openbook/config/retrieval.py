"""Settings of the retriever, its index and how the index is refreshed."""

from dataclasses import dataclass
from typing import Literal

from openbook.config.data import CHANGED, ORIGINAL_FACTS
from openbook.config.models import MINILM
from openbook.config.unit import unit

RefreshMode = Literal["blocking", "amortized", "rolling", "hot"]


IN_PLACE: tuple[RefreshMode, ...] = ("rolling", "hot")
"""The ways to refresh that replace passages one by one, so that they come to have different ages."""


@dataclass(frozen=True)
class RetrieverConfig:
    kind: Literal["dense", "bm25"] = unit(
        "dense",
        "two encoders and an index of embeddings; or BM25 scores as the logits of p(z|x), which nothing trains",
    )
    start_from: str = unit(
        "",
        "run folder, or experiment for its newest run of this seed, whose trained encoders this run starts with",
    )
    question_encoder: str = unit(MINILM, "folder of a transformers encoder (config.json, model.safetensors, tokenizer)")
    passage_encoder: str = unit(MINILM, "folder, likewise; separate weights even when it is the same folder")
    tied: bool = unit(False, "one encoder for both sides")
    pooling: Literal["mean", "cls"] = unit("mean", "how token states become one embedding")
    normalize: bool = unit(True, "true: cosine scores; false: plain inner product (DPR)")
    temperature: float = unit(0.05, "doc_scores = inner product / temperature")
    n_docs: int = unit(4, "passages marginalised per question in training")
    rerank: int = unit(
        0,
        "candidates that the index gives, of which the best by fresh scores are read; 0: as many as are read, "
        "which are put in order by fresh scores at no cost; -1: the index's order stands",
    )
    on_collapse: Literal["warn", "stop"] = unit(
        "warn",
        "what happens when every question is given the same few passages",
    )
    train_question_encoder: bool = unit(True, "whether gradients reach the question encoder")
    train_passage_encoder: bool = unit(
        True,
        "whether gradients reach the passage encoder; then the index goes stale and wants refreshing",
    )
    train_word_embeddings: bool = unit(
        True,
        "whether training changes the encoders' word embeddings; half of a small encoder's weights are there",
    )
    dropout: float = unit(0.0, "probability, in both encoders while they train")
    tokens_per_backward: int = unit(
        0,
        "tokens of passages, padding included, whose activations are kept at once for the passage encoder's "
        "gradient; every passage is then encoded twice (gradient caching), and memory no longer grows with "
        "n_docs and the batch; 0: of all passages, encoded once",
    )


@dataclass(frozen=True)
class IndexConfig:
    factory: str = unit("Flat", "FAISS factory string, inner product; 'IVF256,Flat', 'HNSW32', …")
    device: Literal["auto", "cpu", "gpu"] = unit(
        "auto",
        "where it is searched; auto takes a GPU where torch and FAISS both have one",
    )
    nprobe: int = unit(16, "lists visited per query (IVF families)")
    ef_search: int = unit(64, "candidates per query (HNSW families)")
    gpu_temp_memory: int = unit(256, "MiB that FAISS may take for its work on a GPU, per rank")
    keep_vectors: int = unit(
        4,
        "sets of passage vectors kept in data.cache (fp32, Flat only), so that the same weights encode only "
        "passages that have changed; 0: none",
    )


@dataclass(frozen=True)
class RefreshConfig:
    every: str = unit(
        "30",
        "optimizer steps between refreshes, or spans like 0-1000:100,1000-:500, or `staleness`; 0: never refreshed",
    )
    mode: RefreshMode = unit(
        "blocking",
        "training waits; a slice after every step and then a swap; the oldest passages replaced after every "
        "step; likewise, but those first that recent questions wanted",
    )
    spread: int = unit(10, "optimizer steps over which an amortized refresh is spread")
    share: float = unit(1.0, "share of the corpus that rolling and hot encode per `every` steps")
    min_overlap: float = unit(
        0.7,
        "with every=staleness: overlap@k of stale and fresh results under which the index is refreshed",
    )
    floor: int = unit(10, "with every=staleness: fewest optimizer steps between refreshes")
    ceiling: int = unit(200, "with every=staleness: most optimizer steps between refreshes; 0: any number")
    look_every: int = unit(
        0,
        "optimizer steps between looks at how stale the index is on probe questions; 0: only at refreshes",
    )
    probes: int = unit(128, "validation questions on which the old and the new index are compared")
    overlap_k: int = unit(10, "top-k of that comparison")
    fresh_test: bool = unit(
        True,
        "encode the corpus once more before the test when the passage encoder has moved since the last refresh",
    )


@dataclass(frozen=True)
class HotSwapConfig:
    """Knowledge hot-swap: a trained run answers from another corpus, without training (hot-swap only)."""

    corpus: str = unit(CHANGED, "the other file of passages; the first is data.corpus")
    facts: str = unit(ORIGINAL_FACTS, "file of questions about what differs, with the answers of data.corpus")
    changed_facts: str = unit(CHANGED, "file of the same questions (the same ids), with the answers of hot_swap.corpus")
