"""Settings of decoding, evaluation and serving."""

from dataclasses import dataclass
from typing import Literal

from openbook.config.unit import unit


@dataclass(frozen=True)
class DecodeConfig:
    """How answers are searched for, at validation and at the test."""

    beams: int = unit(1, "hypotheses kept per question (RAG-Token) or per passage (RAG-Sequence); 1: greedy")
    rag_sequence: Literal["thorough", "fast", "greedy"] = unit(
        "thorough",
        "thorough: score every candidate under every passage; fast: only under those whose beams produced it; "
        "greedy: one greedy search over the marginal of the prefix",
    )
    length_penalty: float = unit(
        0.0,
        "hypotheses are ranked by log-probability / tokens**length_penalty; 0: by log-probability",
    )
    min_tokens: int = unit(0, "minimum tokens of an answer, end-of-sequence included")
    max_tokens: int = unit(0, "maximum tokens of an answer, end-of-sequence included; 0: data.max_target_tokens")
    no_repeat_ngram: int = unit(0, "no answer has the same so many tokens in a row twice; 0: it may")
    sample: bool = unit(
        False,
        "draw one answer from the marginal instead of searching for the most probable, by seed and question id; "
        "RAG-Sequence draws token by token, and rag_sequence does not count",
    )
    temperature: float = unit(1.0, "of drawn answers: the next token's log-probabilities are divided by it")
    top_p: float = unit(1.0, "of drawn answers: draw from the fewest tokens that together have this probability")
    n_best: int = unit(1, "answers kept per question in predictions.jsonl, best first")


# What a validation measures that can be drawn as a curve and can tell the best checkpoint; higher is better.
WATCHED = (
    *("exact_match", "f1", "recall_at_1", "recall_at_5", "recall_at_20", "mrr", "utility", "rouge_l"),
    "label_accuracy",
)


@dataclass(frozen=True)
class EvaluateConfig:
    checkpoint: Literal["auto", "last", "best"] = unit(
        "auto",
        "the weights that `evaluate`, `hot-swap` and the test after training use: of the last step, or of the best "
        "validation (trainer.monitor), the one before training among them; auto: best where there is one",
    )
    batch_size: int = unit(
        0, "questions per forward pass; 0: 16 on a CPU, on a GPU as many as read 512 passages, at least 16"
    )
    task: Literal["qa", "generation", "labels"] = unit(
        "qa",
        "metrics besides exact match, F1 and recall: qa: none; generation: ROUGE-L, BLEU-1, Q-BLEU-1 and "
        "distinct n-grams; labels: label accuracy by the marginal of one token (FEVER)",
    )
    labels: str = unit("", "labels for evaluate.task=labels, comma-separated; 2-way accuracy uses the first two")
    regex_answers: bool = unit(False, "answers are regular expressions (CuratedTREC)")
    utility: bool = unit(
        True,
        "also measure how much more likely the passages make the gold answer than the question alone does",
    )
    bootstrap: int = unit(1000, "bootstrap resamples for 95 % confidence intervals; 0: no intervals")
    n_docs: int = unit(0, "passages read per question; 0: as in training")
    depth: int = unit(
        0,
        "passages ranked per test question: writes run.trec and qrels.trec, and adds recall, nDCG, MRR and success to "
        "this depth; 0: 100 where no test question has an answer, else none",
    )
    identical_ids: Literal["auto", "ignore", "keep"] = unit(
        "auto",
        "with objective=dpr, the passage that has a question's own id (BEIR's data sets whose queries are documents): "
        "ignore: it is left out of what is found; auto: if it also has the question's text; keep: it counts",
    )
    validation_questions: int = unit(128, "validation questions used during training; 0: all")
    test_questions: int = unit(0, "test questions used; 0: all")
    before_training: bool = unit(True, "also evaluate on the test split before training")


@dataclass(frozen=True)
class ServeConfig:
    """How `serve` and the page of `ask` answer over HTTP; nothing else reads it."""

    host: str = unit("127.0.0.1", "address to listen at; any other than this machine's own needs a token")
    port: int = unit(8000, "port to listen at; 0: one that is free")
    token_file: str = unit(
        "",
        "file whose first line is the token that every request must carry (Authorization: Bearer TOKEN); empty: the "
        "environment variable OPENBOOK_TOKEN, and no token where that is not set",
    )
    batch_size: int = unit(64, "questions of waiting requests that are encoded in one pass")
    max_queries: int = unit(512, "maximum questions of a request")
    max_characters: int = unit(4096, "maximum length of a question, in characters")
    max_topk: int = unit(100, "maximum passages per question")
    max_n_docs: int = unit(20, "maximum passages read for an answer")
    max_beams: int = unit(8, "maximum beams of an answer")
    max_waiting: int = unit(4096, "requests that may wait at a time; a further one is refused with status 503")
