"""From a configuration to parts: the only place, with `train`, where settings become arguments."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from openbook.config.checks import labels_of
from openbook.config.models import MINILM
from openbook.config.schema import Config
from openbook.data.corpus import Corpus
from openbook.data.corpus_build import build_corpus
from openbook.data.datamodule import QuestionAnswerData
from openbook.data.inputs import special_ids, targets
from openbook.inference.answering import Answering
from openbook.models.activation_checkpointing import checkpoint_layers
from openbook.models.contexts import ContextBuilder
from openbook.models.encoders import load_encoder, load_tokenizer
from openbook.models.generator import Generator
from openbook.models.pretrained import model_folder
from openbook.models.seq2seq import load_generator
from openbook.models.small_reader.detokenize import detokenize
from openbook.objectives.by_name import LIKELIHOOD_OF
from openbook.retrieval.bm25 import BM25Index, BM25Retriever, passage_texts
from openbook.retrieval.dense import Retriever
from openbook.setup.data import Parts, files
from openbook.training.dpr_module import DprModule
from openbook.training.dpr_negatives import TrainingPassages
from openbook.training.rag_module import RagModule
from openbook.training.reader_warmup import WarmupOptions, warm_up
from openbook.utils.console import say
from openbook.utils.hardware import accelerator


def reader(config: Config, on: str, autocast: torch.dtype | None) -> Path | None:
    """The folder of the warmed-up reader; None where the experiment wants no warm-up. Rank 0 makes it, others wait."""
    if not config.warmup.steps:
        return None
    wanted = config.warmup
    data = replace(config.data, corpus=wanted.passages, train=wanted.questions, validation=wanted.held_out, test="")
    named = files(replace(config, data=data))
    tokenizer = load_tokenizer(MINILM)
    corpus = build_corpus(named.corpus, {"generator": tokenizer}, Path(config.data.cache))
    options = WarmupOptions(
        wanted.steps,
        wanted.batch_size,
        wanted.lr,
        config.seed,
        config.data.max_context_tokens,
        config.data.max_target_tokens,
    )
    device = torch.device("cuda" if on == "gpu" else "cpu")
    return warm_up(
        model_folder(MINILM),
        options,
        corpus,
        named.train,
        named.validation,
        tokenizer,
        Path(config.data.cache),
        device,
        autocast,
    )


def module(config: Config, parts: Parts, reader_folder: Path | None) -> RagModule | DprModule:
    """The LightningModule with its models loaded. reader_folder: the warmed-up reader, where there was a warm-up."""
    if config.objective == "dpr":
        return dpr_module(config, parts, None)
    used: Retriever | BM25Retriever | None = None
    if config.objective != "closed_book":
        used = retriever(config, parts) if config.retriever.kind == "dense" else bm25_retriever(config, parts.corpus)
    generator = load_generator(str(reader_folder or config.generator.model), config.generator.dropout, config.seed)
    if config.trainer.checkpointing:
        checkpoint_layers(cast(nn.Module, generator))
    special = special_ids(parts.generator_tokenizer)
    contexts = ContextBuilder(
        parts.corpus.tokens("generator"), special, config.data.max_context_tokens, tokens_per_pass(config)
    )
    return RagModule(
        used,
        generator,
        contexts,
        answering(config, parts, generator, contexts),
        config.objective,
        config.retriever.n_docs,
        config.optim,
        config.trainer.max_steps,
        config.trainer.reduction,
        config.generator.label_smoothing,
        config.seed,
        config.distill_temperature,
        config.evaluate.bootstrap,
    )


def answering(config: Config, parts: Parts, generator: Generator, contexts: ContextBuilder) -> Answering:
    """How answers are decoded and what is measured of them."""
    wanted, max_tokens = config.evaluate, config.decode.max_tokens or config.data.max_target_tokens
    answers = Answering(
        generator,
        contexts,
        parts.corpus,
        lambda texts: targets(parts.generator_tokenizer, texts, config.data.max_target_tokens),
        detokenizer(config, parts),
        LIKELIHOOD_OF[config.objective],
        wanted.n_docs or config.retriever.n_docs,
        replace(config.decode, max_tokens=max_tokens),
        wanted.task,
        labels_of(wanted.labels),
        wanted.regex_answers,
        wanted.utility,
    )
    if wanted.task == "labels":
        answers.label_ids  # noqa: B018 - raises now, not after training, where labels cannot be told apart
    return answers


def dpr_module(config: Config, parts: Parts, passages: TrainingPassages | None) -> DprModule:
    """The retriever's warm-up, without a generator. passages: what its questions are trained on."""
    return DprModule(
        retriever(config, parts),
        parts.corpus,
        passages,
        config.optim,
        config.trainer.max_steps,
        config.evaluate.n_docs or config.retriever.n_docs,
        config.evaluate.bootstrap,
        config.evaluate.regex_answers,
        config.seed,
    )


def training_passages(config: Config, parts: Parts, questions: QuestionAnswerData) -> TrainingPassages:
    """Positives and hard negatives for the training questions, which are all looked through once."""
    dpr = config.dpr
    passages = TrainingPassages(
        parts.corpus,
        bm25_index(parts.corpus) if dpr.bm25_negatives else None,
        dpr.bm25_negatives,
        dpr.index_negatives,
        dpr.depth,
        dpr.mask_false_negatives,
        config.seed,
        config.evaluate.regex_answers,
    )
    passages.prepare(questions.questions["train"])
    return passages


def tokens_per_pass(config: Config) -> int:
    """The key's value, or what suits the accelerator."""
    on_cpu = accelerator(config.trainer.accelerator) == "cpu"
    return config.trainer.tokens_per_pass or (4096 if on_cpu else 65536)


def retriever(config: Config, parts: Parts) -> Retriever:
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
        encoders[0],
        encoders[-1],
        parts.corpus.tokens("encoder"),
        special_ids(parts.passage_tokenizer),
        config.data.max_passage_tokens,
        wanted.temperature,
        wanted.train_question_encoder,
        wanted.train_passage_encoder,
        tokens_per_pass(config),
        wanted.rerank,
        wanted.tokens_per_backward,
    )


def bm25_index(corpus: Corpus) -> BM25Index:
    """BM25 over the corpus, built anew each time: a pure function of it."""
    started = time.perf_counter()
    index = BM25Index(passage_texts(corpus))
    say(f"BM25 index of {corpus.n_passages:,} passages built in {time.perf_counter() - started:.1f} s")
    return index


def bm25_retriever(config: Config, corpus: Corpus) -> BM25Retriever:
    """BM25 scores as the logits of p(z|x)."""
    return BM25Retriever(bm25_index(corpus), config.retriever.temperature)


def detokenizer(config: Config, parts: Parts) -> Callable[[list[int]], str]:
    """Answer ids to text. WordPiece wants its spaces mended; other tokenizers know their own."""
    tokenizer = parts.generator_tokenizer
    if config.generator.model == MINILM:
        return lambda ids: detokenize(tokenizer, ids)
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
