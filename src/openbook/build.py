"""From a configuration to parts: the only place, with `train`, where settings become arguments."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from openbook.answering import Answering
from openbook.callbacks import IndexRefresh
from openbook.config import BUILT_IN, CHANGED, EMBEDDED, MINILM, Config, FactbookConfig
from openbook.contexts import ContextBuilder
from openbook.corpus import Corpus, build_corpus
from openbook.datamodule import QuestionAnswerData
from openbook.dpr_module import DprModule
from openbook.encoders import load_encoder, load_tokenizer
from openbook.factbook import MAIN_SECTIONS, WHOLE_BOOK, FactbookFiles, FactbookOptions, build_factbook
from openbook.factbook_edition import EditionFiles, build_edition
from openbook.factories import search_device
from openbook.families import IndexOptions
from openbook.generator import Generator, load_generator
from openbook.hardware import accelerator
from openbook.index_store import VectorStore
from openbook.lexical import LexicalIndex, LexicalRetriever, passage_texts
from openbook.module import RagModule
from openbook.negatives import TrainingPassages
from openbook.objectives import READS
from openbook.preflight import passage_dim
from openbook.progress import progress, say
from openbook.ranges import labels_of
from openbook.reader import detokenize
from openbook.recompute import checkpoint_layers
from openbook.refresh import CorpusOptions
from openbook.retriever import Retriever
from openbook.schedule import RefreshSchedule
from openbook.text import special_ids, targets
from openbook.upkeep import IndexUpkeep, RefreshOptions
from openbook.warmup import WarmupOptions, warm_up
from openbook.weights import model_folder


@dataclass(frozen=True)
class Files:
    """The four files of an experiment; validation and test may be None."""

    corpus: Path
    train: Path
    validation: Path | None
    test: Path | None


@dataclass(frozen=True)
class Parts:
    """Data ready to be read: no model among them yet."""

    files: Files
    corpus: Corpus
    question_tokenizer: Any
    passage_tokenizer: Any
    generator_tokenizer: Any


@cache
def factbook(words: FactbookConfig, folder: str) -> FactbookFiles:
    """The embedded data in this size, built into the folder where it is not there yet; asked for and told of once."""
    if words.whole:
        options = replace(WHOLE_BOOK, passage_words=words.passage_words)
    else:
        sections = tuple(name.strip() for name in words.sections.split(",") if name.strip()) or MAIN_SECTIONS
        options = FactbookOptions(words.passage_words, words.field_words, words.field_parts, sections)
    return build_factbook(options, Path(folder), say)


@cache
def edition(words: FactbookConfig, folder: str) -> EditionFiles:
    """The other edition of the embedded data, likewise."""
    return build_edition(factbook(words, folder), progress=say)


def files(config: Config) -> Files:
    """The files that the data keys stand for."""
    paths = {key: named_file(config, key, getattr(config.data, key)) for key in BUILT_IN}
    return Files(**paths)  # type: ignore[arg-type]


def named_file(config: Config, key: str, name: str) -> Path | None:
    """The file that a name stands for as the value of this key of `data`, built where it is not there yet."""
    if name not in BUILT_IN[key]:
        return Path(name) if name else None
    data = config.data
    if name == EMBEDDED:
        book = factbook(data.factbook, data.cache)
        return {"corpus": book.passages, "train": book.train, "validation": book.validation, "test": book.test}[key]
    other = edition(data.factbook, data.cache)
    if key == "corpus":
        return other.passages
    return other.changed_facts if name == CHANGED else other.original_facts


def parts(config: Config) -> Parts:
    """Files, corpus store and tokenizers."""
    named = files(config)
    question_tokenizer = load_tokenizer(config.retriever.question_encoder)
    generator_tokenizer = question_tokenizer if config.objective == "dpr" else load_tokenizer(config.generator.model)
    passage_tokenizer = load_tokenizer(config.retriever.passage_encoder)
    with progress("tokenising the corpus", "passages") as done:
        corpus = build_corpus(named.corpus, {"encoder": passage_tokenizer, "generator": generator_tokenizer},
                              Path(config.data.cache), done)  # fmt: skip
    return Parts(named, corpus, question_tokenizer, passage_tokenizer, generator_tokenizer)


def data(config: Config, ready: Parts) -> QuestionAnswerData:
    """The DataModule."""
    return QuestionAnswerData(
        train=ready.files.train, validation=ready.files.validation, test=ready.files.test,
        question_tokenizer=ready.question_tokenizer, generator_tokenizer=ready.generator_tokenizer,
        batch_size=config.trainer.batch_size, evaluation_batch_size=config.evaluate.batch_size,
        max_question_tokens=config.data.max_question_tokens, max_target_tokens=config.data.max_target_tokens,
        seed=config.seed, num_workers=config.data.workers, strict=config.data.strict_targets,
        cache=config.data.cache,
        limits={"validation": config.evaluate.validation_questions, "test": config.evaluate.test_questions},
    )  # fmt: skip


def reader(config: Config, on: str, autocast: torch.dtype | None) -> Path | None:
    """The folder of the warmed-up reader; None where the experiment wants no warm-up. Rank 0 makes it, others wait."""
    if not config.warmup.steps:
        return None
    wanted = config.warmup
    data = replace(config.data, corpus=wanted.passages, train=wanted.questions, validation=wanted.held_out, test="")
    named = files(replace(config, data=data))
    tokenizer = load_tokenizer(MINILM)
    corpus = build_corpus(named.corpus, {"generator": tokenizer}, Path(config.data.cache))
    options = WarmupOptions(wanted.steps, wanted.batch_size, wanted.lr, config.seed, config.data.max_context_tokens,
                            config.data.max_target_tokens)  # fmt: skip
    device = torch.device("cuda" if on == "gpu" else "cpu")
    return warm_up(model_folder(MINILM), options, corpus, named.train, named.validation, tokenizer,
                   Path(config.data.cache), device, autocast)  # fmt: skip


def module(config: Config, ready: Parts, reader_folder: Path | None) -> RagModule | DprModule:
    """The LightningModule with its models loaded. reader_folder: the warmed-up reader, where there was a warm-up."""
    if config.objective == "dpr":
        return dpr_module(config, ready, None)
    used: Retriever | LexicalRetriever | None = None
    if config.objective != "closed_book":
        used = retriever(config, ready) if config.retriever.kind == "dense" else lexical_retriever(config, ready.corpus)
    generator = load_generator(str(reader_folder or config.generator.model), config.generator.dropout, config.seed)
    if config.trainer.checkpointing:
        checkpoint_layers(cast(nn.Module, generator))
    special = special_ids(ready.generator_tokenizer)
    contexts = ContextBuilder(
        ready.corpus.tokens("generator"), special, config.data.max_context_tokens, tokens_per_pass(config)
    )
    return RagModule(
        used, generator, contexts, answering(config, ready, generator, contexts), config.objective,
        config.retriever.n_docs, config.optim, config.trainer.max_steps, config.trainer.reduction,
        config.generator.label_smoothing, config.seed, config.distill_temperature, config.evaluate.bootstrap,
    )  # fmt: skip


def answering(config: Config, ready: Parts, generator: Generator, contexts: ContextBuilder) -> Answering:
    """How answers are decoded and what is measured of them."""
    wanted, max_tokens = config.evaluate, config.decode.max_tokens or config.data.max_target_tokens
    answers = Answering(
        generator, contexts, ready.corpus,
        lambda texts: targets(ready.generator_tokenizer, texts, config.data.max_target_tokens),
        detokenizer(config, ready),
        READS[config.objective], wanted.n_docs or config.retriever.n_docs,
        replace(config.decode, max_tokens=max_tokens), wanted.task, labels_of(wanted.labels), wanted.regex_answers,
        wanted.utility,
    )  # fmt: skip
    if wanted.task == "labels":
        answers.label_ids  # noqa: B018 - raises now, not after training, where labels cannot be told apart
    return answers


def dpr_module(config: Config, ready: Parts, passages: TrainingPassages | None) -> DprModule:
    """The retriever's warm-up, without a generator. passages: what its questions are trained on."""
    return DprModule(
        retriever(config, ready), ready.corpus, passages, config.optim, config.trainer.max_steps,
        config.evaluate.n_docs or config.retriever.n_docs, config.evaluate.bootstrap, config.evaluate.regex_answers,
        config.seed,
    )  # fmt: skip


def training_passages(config: Config, ready: Parts, questions: QuestionAnswerData) -> TrainingPassages:
    """Positives and hard negatives for the training questions, which are all looked through once."""
    dpr = config.dpr
    passages = TrainingPassages(
        ready.corpus, lexical_index(ready.corpus) if dpr.bm25_negatives else None, dpr.bm25_negatives,
        dpr.index_negatives, dpr.depth, dpr.mask_false_negatives, config.seed,
        config.evaluate.regex_answers,
    )  # fmt: skip
    passages.prepare(questions.questions["train"])
    return passages


def tokens_per_pass(config: Config) -> int:
    """The key's value, or what suits the accelerator."""
    on_cpu = accelerator(config.trainer.accelerator) == "cpu"
    return config.trainer.tokens_per_pass or (4096 if on_cpu else 65536)


def retriever(config: Config, ready: Parts) -> Retriever:
    """Both encoders over the corpus; one encoder for both sides where they are tied."""
    wanted = config.retriever
    encoders = [
        load_encoder(folder, wanted.pooling, wanted.normalize, wanted.dropout)
        for folder in ([wanted.question_encoder] if wanted.tied else [wanted.question_encoder, wanted.passage_encoder])
    ]
    if not wanted.train_word_embeddings:
        for encoder in encoders:
            encoder.freeze_word_embeddings()
    if config.trainer.checkpointing:
        for encoder in encoders:
            checkpoint_layers(encoder)
    return Retriever(
        encoders[0], encoders[-1], ready.corpus.tokens("encoder"), special_ids(ready.passage_tokenizer),
        config.data.max_passage_tokens, wanted.temperature, wanted.train_question_encoder, wanted.train_passage_encoder,
        tokens_per_pass(config), wanted.rerank, wanted.tokens_per_backward,
    )  # fmt: skip


def lexical_index(corpus: Corpus) -> LexicalIndex:
    """BM25 over the corpus, built anew each time: a pure function of it."""
    started = time.perf_counter()
    index = LexicalIndex(passage_texts(corpus))
    say(f"BM25 index of {corpus.n_passages:,} passages built in {time.perf_counter() - started:.1f} s")
    return index


def lexical_retriever(config: Config, corpus: Corpus) -> LexicalRetriever:
    """BM25 scores as the logits of p(z|x)."""
    return LexicalRetriever(lexical_index(corpus), config.retriever.temperature)


def detokenizer(config: Config, ready: Parts) -> Callable[[list[int]], str]:
    """Answer ids to text. WordPiece wants its spaces mended; other tokenizers know their own."""
    tokenizer = ready.generator_tokenizer
    if config.generator.model == MINILM:
        return lambda ids: detokenize(tokenizer, ids)
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def index_refresh(
    config: Config, ready: Parts, questions: QuestionAnswerData | None, autocast: torch.dtype | None
) -> IndexRefresh:
    """The callback that owns the index; without questions it cannot compare one index with the next."""
    index, refresh = config.index, config.refresh
    device = search_device(index.device, index.factory, passage_dim(config))
    family = IndexOptions(index.factory, device, index.nprobe, index.ef_search, index.gpu_temp_memory, config.seed)
    corpus = CorpusOptions(
        ready.corpus.tokens("encoder"), special_ids(ready.passage_tokenizer), config.data.max_passage_tokens,
        ready.corpus.fingerprint, tokens_per_pass(config), autocast or torch.float32, config.seed,
    )  # fmt: skip
    schedule = RefreshSchedule.read(refresh.every, refresh.min_overlap, refresh.floor, refresh.ceiling)
    options = RefreshOptions(schedule, refresh.mode, refresh.spread, refresh.share, refresh.overlap_k,
                             refresh.look_every)  # fmt: skip
    probes = questions.probe_questions(refresh.probes) if questions else None
    store = VectorStore(Path(config.data.cache) / "vectors", index.keep_vectors) if index.keep_vectors else None
    return IndexRefresh(IndexUpkeep(options, family, corpus, probes, store), refresh.fresh_test)
