"""Settings of the retriever, its index and how the index is refreshed."""

from dataclasses import dataclass, field
from typing import Literal

from openbook.config.data import CHANGED, ORIGINAL_FACTS
from openbook.config.models import MINILM, LoraConfig
from openbook.config.unit import unit

RefreshMode = Literal["blocking", "amortized", "rolling", "hot"]


# The ways to refresh that replace passages one by one, so that they come to have different ages.
IN_PLACE: tuple[RefreshMode, ...] = ("rolling", "hot")


@dataclass(frozen=True)
class RetrieverConfig:
    kind: Literal["dense", "bm25"] = unit(
        "dense",
        "dense: two encoders and an index of embeddings; bm25: BM25 scores as the logits of p(z|x), not trained",
    )
    start_from: str = unit(
        "",
        "what the encoders start from: a run folder, or an experiment (its newest run with this seed); an export; a "
        "folder of peft's adapters; or an encoder's folder or hub name, which is then both encoders",
    )
    question_encoder: str = unit(MINILM, "folder of a transformers encoder (config.json, model.safetensors, tokenizer)")
    passage_encoder: str = unit(MINILM, "folder of the passage encoder; separate weights even if it is the same folder")
    tied: bool = unit(False, "share one encoder for questions and passages")
    pooling: Literal["auto", "cls", "mean", "last"] = unit(
        "auto",
        "how token states become one embedding: the first token's, their mean, or the last token's; auto: as each "
        "encoder's folder states (modules.json, DPR), else last for decoders and mean for all others",
    )
    normalize: Literal["auto", "true", "false"] = unit(
        "auto", "true: cosine scores; false: plain inner product; auto: as each encoder's folder states, else true"
    )
    override_folder: bool = unit(
        False, "true: pooling and normalize may contradict what an encoder's folder states; false: that is refused"
    )
    question_prefix: str = unit(
        "auto", "text before every question for its encoder, 'query: ' or an instruction; auto: the folder's prompt"
    )
    passage_prefix: str = unit("auto", "text before every passage for its encoder; auto: the folder's prompt")
    passage_layout: Literal["auto", "pair", "joined", "separated"] = unit(
        "auto",
        "title and text for the passage encoder: pair: by its tokenizer's template for two texts (DPR); joined: one "
        "text, a space between; separated: one separator between, which is what older runs read; auto: joined for "
        "decoders and sentence-transformers folders, pair for all others and the packaged MiniLM",
    )
    dim: int = unit(
        0, "first numbers of an embedding that are used (Matryoshka); 0: all, or as many as the folder states"
    )
    projection: int = unit(
        0, "dim of a new linear layer on each encoder, trained with it, into one shared space; 0: none"
    )
    temperature: float = unit(
        0.0, "doc_scores = inner product / temperature; 0: 0.05 for cosine scores, 1 for BM25 and plain inner products"
    )
    n_docs: int = unit(4, "passages marginalised per question in training")
    rerank: int = unit(
        0,
        "candidates from the index, of which the best by fresh scores are read; 0: as many as are read, "
        "reordered by fresh scores at no cost; -1: keep the index's order",
    )
    on_collapse: Literal["warn", "stop"] = unit(
        "warn",
        "what to do when every question retrieves the same few passages",
    )
    teacher: Literal["auto", "generator", "both"] = unit(
        "auto",
        "what the encoders learn from: generator: the marginal likelihood alone (the paper); both: positive passages "
        "too, named by the questions or found by BM25, and the generator as far as it agrees with them; auto: both for "
        "data of your own, generator for embedded data",
    )
    paraphrases: int = unit(
        8,
        "other wordings of a training question, of those that its data has, from which the question encoder learns "
        "beside it where a generator reads one passage at a time; 0: none",
    )
    train_question_encoder: bool = unit(True, "train the question encoder")
    train_passage_encoder: bool = unit(
        True,
        "train the passage encoder; the index then goes stale and needs refreshing",
    )
    train_word_embeddings: bool = unit(True, "train the encoders' word embeddings (half of a small encoder's weights)")
    dropout: float = unit(0.0, "dropout probability in both encoders during training")
    lora: LoraConfig = field(default_factory=LoraConfig)
    tokens_per_backward: int = unit(
        0,
        "maximum passage tokens, padding included, whose activations are held at once for the passage "
        "encoder's gradient; every passage is then encoded twice (gradient caching) and memory does not grow "
        "with n_docs and batch size; 0: all passages, encoded once",
    )

    @property
    def trains(self) -> bool:
        """Whether an encoder trains."""
        return self.train_question_encoder or self.train_passage_encoder


@dataclass(frozen=True)
class IndexConfig:
    factory: str = unit("Flat", "FAISS factory string, inner product; 'IVF256,Flat', 'HNSW32', …")
    device: Literal["auto", "cpu", "gpu"] = unit(
        "auto",
        "where the index is searched; auto uses a GPU if torch has one, and beyond Flat, SQfp16 if FAISS has one too",
    )
    nprobe: int = unit(16, "lists visited per query (IVF families)")
    ef_search: int = unit(64, "candidates per query (HNSW families)")
    gpu_temp_memory: int = unit(256, "MiB that a search may take for its work on a GPU, per rank")
    keep_vectors: int = unit(
        4,
        "sets of passage vectors kept in data.cache (fp32, Flat only), so that known weights encode only "
        "changed passages; 0: none",
    )


@dataclass(frozen=True)
class RefreshConfig:
    every: str = unit(
        "auto",
        "optimizer steps between refreshes, or spans like 0-1000:100,1000-:500, or `staleness`; 0: never refreshed; "
        "auto: from what a refresh costs",
    )
    mode: RefreshMode = unit(
        "blocking",
        "blocking: training waits; amortized: a slice after every step, then a swap; rolling: replace the "
        "oldest passages after every step; hot: likewise, prioritising recently retrieved passages",
    )
    spread: int = unit(10, "optimizer steps over which an amortized refresh is spread")
    share: float = unit(1.0, "share of the corpus that rolling and hot encode per `every` steps")
    min_overlap: float = unit(
        0.7,
        "with every=staleness: refresh when overlap@k of stale and fresh results falls below this",
    )
    floor: int = unit(10, "with every=staleness: minimum optimizer steps between refreshes")
    ceiling: int = unit(200, "with every=staleness: maximum optimizer steps between refreshes; 0: unlimited")
    look_every: int = unit(0, "optimizer steps between staleness probes; 0: only at refreshes")
    probes: int = unit(128, "validation questions used to compare the old and the new index")
    overlap_k: int = unit(10, "k of overlap@k")
    fresh_test: bool = unit(
        True,
        "re-encode the corpus before the test if the passage encoder has changed since the last refresh",
    )


@dataclass(frozen=True)
class HotSwapConfig:
    """Knowledge hot-swap: a trained run answers from another corpus, without training (hot-swap only)."""

    corpus: str = unit(CHANGED, "the second file of passages; the first is data.corpus")
    facts: str = unit(ORIGINAL_FACTS, "questions about the facts that differ, with the answers of data.corpus")
    changed_facts: str = unit(CHANGED, "the same questions (same ids), with the answers of hot_swap.corpus")
