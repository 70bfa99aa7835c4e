"""From a configuration to its data: files, corpus store, tokenizers, DataModule."""

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from openbook.config.data import BUILT_IN, CHANGED, EMBEDDED, QUESTIONS, SPANS, FactbookConfig, SpansConfig
from openbook.config.schema import Config
from openbook.data.corpus import Corpus
from openbook.data.corpus_build import build_corpus
from openbook.data.datamodule import QuestionAnswerData
from openbook.data.factbook.build import MAIN_SECTIONS, WHOLE_BOOK, FactbookFiles, FactbookOptions, build_factbook
from openbook.data.factbook.edition import EditionFiles, build_edition
from openbook.data.inputs import token_ids
from openbook.data.masking import SpanOptions
from openbook.data.spans import Limit, SpanFiles, build_spans, mixed
from openbook.models.encoders import load_tokenizer
from openbook.setup.own_files import own_passages, own_questions
from openbook.utils.console import progress, say
from openbook.utils.turns import in_turn


@dataclass(frozen=True)
class Files:
    """The four files of an experiment; validation and test may be None."""

    corpus: Path
    train: Path
    validation: Path | None
    test: Path | None


@dataclass(frozen=True)
class Parts:
    """Data parts to be read: no model among them yet."""

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
    with in_turn(folder, "factbook"):
        return build_factbook(options, Path(folder), say)


@cache
def edition(words: FactbookConfig, folder: str) -> EditionFiles:
    """The other edition of the embedded data, likewise."""
    book = factbook(words, folder)
    with in_turn(folder, "factbook"):
        return build_edition(book, progress=say)


@cache
def spans(passages: Path, options: SpansConfig, folder: str, models: tuple[str, ...], most_tokens: int) -> SpanFiles:
    """Questions made of these passages alone, likewise; of at most so many tokens for the models' tokenizers."""
    asked = SpanOptions(options.per_passage, options.most, options.language)

    def fits(texts: list[str]) -> list[bool]:
        lengths = [map(len, token_ids(load_tokenizer(model), texts)) for model in models]
        return [max(each) <= most_tokens for each in zip(*lengths, strict=True)]

    with progress("masking spans of the corpus", "passages") as done, in_turn(folder, "spans"):
        return build_spans(passages, asked, Path(folder), done, Limit(fits, f"{models} {most_tokens}"))


def files(config: Config) -> Files:
    """The files that the data keys stand for."""
    paths = {key: named_file(config, key, getattr(config.data, key)) for key in BUILT_IN}
    share, train = config.data.spans.share, paths["train"]
    if share and train and config.data.train != SPANS:
        paths["train"] = mixed(train, masked_spans(config).paths["train"], share, Path(config.data.cache))
    return Files(**paths)  # type: ignore[arg-type]


def named_file(config: Config, key: str, name: str) -> Path | None:
    """The file that a name stands for as the value of this key of `data`, built or converted where it is not there."""
    if name == QUESTIONS and key == "corpus":
        return own_passages(config, name)
    if name not in BUILT_IN[key]:
        return None if not name else own_passages(config, name) if key == "corpus" else own_questions(config, key, name)
    data = config.data
    if name == SPANS:
        return masked_spans(config).paths[key]
    if name == EMBEDDED:
        book = factbook(data.factbook, data.cache)
        return {"corpus": book.passages, "train": book.train, "validation": book.validation, "test": book.test}[key]
    other = edition(data.factbook, data.cache)
    if key == "corpus":
        return other.passages
    return other.changed_facts if name == CHANGED else other.original_facts


def masked_spans(config: Config) -> SpanFiles:
    """Questions made of the configuration's corpus alone."""
    data = config.data
    passages = named_file(config, "corpus", data.corpus)
    assert passages is not None
    models = (config.retriever.question_encoder,) + ((config.generator.model,) if config.objective != "dpr" else ())
    return spans(passages, data.spans, data.cache, models, data.max_question_tokens)


def parts(config: Config) -> Parts:
    """Files, corpus store and tokenizers."""
    named = files(config)
    question_tokenizer = load_tokenizer(config.retriever.question_encoder)
    generator_tokenizer = question_tokenizer if config.objective == "dpr" else load_tokenizer(config.generator.model)
    passage_tokenizer = load_tokenizer(config.retriever.passage_encoder)
    with progress("tokenising the corpus", "passages") as done, corpus_turn(config, named.corpus):
        corpus = build_corpus(
            named.corpus,
            {"encoder": passage_tokenizer, "generator": generator_tokenizer},
            Path(config.data.cache),
            done,
        )
    return Parts(named, corpus, question_tokenizer, passage_tokenizer, generator_tokenizer)


def corpus_turn(config: Config, passages: Path) -> AbstractContextManager[None]:
    """Of several ranks on a node one builds the store of these passages."""
    return in_turn(config.data.cache, f"corpus-{hashlib.sha256(str(passages.resolve()).encode()).hexdigest()[:12]}")


def data(config: Config, parts: Parts) -> QuestionAnswerData:
    """The DataModule."""
    return QuestionAnswerData(
        train=parts.files.train,
        validation=parts.files.validation,
        test=parts.files.test,
        question_tokenizer=parts.question_tokenizer,
        generator_tokenizer=parts.generator_tokenizer,
        batch_size=config.trainer.batch_size,
        evaluation_batch_size=config.evaluate.batch_size,
        max_question_tokens=config.data.max_question_tokens,
        max_target_tokens=config.data.max_target_tokens,
        seed=config.seed,
        num_workers=config.data.workers,
        strict=config.data.strict_targets,
        long_questions=config.data.long_questions,
        unanswered=config.objective == "dpr",
        cache=config.data.cache,
        limits={"validation": config.evaluate.validation_questions, "test": config.evaluate.test_questions},
    )
