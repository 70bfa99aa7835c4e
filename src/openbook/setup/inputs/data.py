"""From a configuration to its data: files, corpus store, tokenizers, DataModule."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from openbook.config.checks import has_index
from openbook.config.data import BUILT_IN, CHANGED, EMBEDDED, QUESTIONS, SPANS, TRIOS, FactbookConfig, SpansConfig
from openbook.config.schema import Config
from openbook.data.corpus import Corpus
from openbook.data.corpus_build import build_corpus
from openbook.data.datamodule import QuestionAnswerData
from openbook.data.encoder_inputs import EncoderFormat, encoder_format
from openbook.data.factbook.build import MAIN_SECTIONS, WHOLE_BOOK, FactbookFiles, FactbookOptions, build_factbook
from openbook.data.factbook.edition import EditionFiles, build_edition
from openbook.data.factbook.trios import TrioFiles, build_trios
from openbook.data.inputs import SpecialIds, token_ids
from openbook.data.languages import set_languages
from openbook.data.prompts import Prompt
from openbook.data.readers.duplicates import with_kept_ids
from openbook.data.spans.files import Limit, SpanFiles, build_spans, mixed
from openbook.data.spans.masking import SpanOptions
from openbook.models.encoders import load_tokenizer
from openbook.setup.encoders import follow_folders, sides
from openbook.setup.inputs.context import prompt_for, special_of
from openbook.setup.inputs.own_files import (
    own_passages,
    own_questions,
    unique_passages,
    was_cut,
    with_documents,
    with_texts,
)
from openbook.utils.console import progress, say
from openbook.utils.files.file_sums import forget
from openbook.utils.hardware import accelerator
from openbook.utils.turns import in_turn

SPLITS = ("train", "validation", "test")

# Questions answered in one pass, and on a GPU, which waits for its kernels to be launched, passages read in one.
QUESTIONS_AT_ONCE, GPU_CONTEXTS = 16, 512


@dataclass(frozen=True)
class Files:
    """The four files of an experiment; validation and test may be None."""

    corpus: Path
    train: Path
    validation: Path | None
    test: Path | None


@dataclass(frozen=True)
class Parts:
    """Data parts to be read: no model among them yet. prompt: of a decoder-only generator, or a template of an
    encoder-decoder's. language: the token that contexts of a multilingual one begin with."""

    files: Files
    corpus: Corpus
    question_tokenizer: Any
    passage_tokenizer: Any
    generator_tokenizer: Any
    question_format: EncoderFormat
    passage_format: EncoderFormat
    prompt: Prompt | None = None
    language: int | None = None

    @property
    def in_context(self) -> SpecialIds | Prompt:
        """What stands in the generator's contexts beside question and passage."""
        if self.prompt is not None:
            return self.prompt
        return special_of(self.generator_tokenizer, self.language)


@cache
def factbook(words: FactbookConfig, folder: str) -> FactbookFiles:
    """The embedded data in this size, built into the folder where it is not there yet; asked for and told of once."""
    if words.whole:
        options = replace(WHOLE_BOOK, passage_words=words.passage_words, varied=words.varied)
    else:
        sections = tuple(name.strip() for name in words.sections.split(",") if name.strip()) or MAIN_SECTIONS
        options = FactbookOptions(
            words.passage_words, words.field_words, words.field_parts, sections, varied=words.varied
        )
    with in_turn(folder, "factbook"):
        return build_factbook(options, Path(folder), say)


@cache
def edition(words: FactbookConfig, folder: str) -> EditionFiles:
    """The other edition of the embedded data, likewise."""
    book = factbook(words, folder)
    with in_turn(folder, "factbook"):
        return build_edition(book, progress=say)


@cache
def trios(words: FactbookConfig, folder: str) -> TrioFiles:
    """Questions about three countries of the embedded data, likewise."""
    book = factbook(words, folder)
    with in_turn(folder, "factbook"):
        return build_trios(book, say)


@cache
def spans(
    passages: Path, options: SpansConfig, folder: str, models: tuple[str, ...], most_tokens: int, prefix: str
) -> SpanFiles:
    """Questions made of these passages alone, likewise; of at most so many tokens for the models' tokenizers, for the
    first of them with the prefix."""
    asked = SpanOptions(options.per_passage, options.most, options.language)

    def fits(texts: list[str]) -> list[bool]:
        prefixed = [[start + text for text in texts] for start in (prefix, *[""] * (len(models) - 1))]
        lengths = [map(len, token_ids(load_tokenizer(model), all)) for model, all in zip(models, prefixed, strict=True)]
        return [max(each) <= most_tokens for each in zip(*lengths, strict=True)]

    limit = Limit(fits, f"{models} {most_tokens}" + (f" {prefix!r}" if prefix else ""))
    with progress("masking spans of the corpus", "passages") as done, in_turn(folder, "spans"):
        return build_spans(passages, asked, Path(folder), done, limit)


@cache
def _forget_sums(folder: str) -> None:
    """Once per process: what is hashed in it is true from then on."""
    forget(folder)


def files(config: Config) -> Files:
    """The files that the data keys stand for."""
    if config.data.verify:
        _forget_sums(config.data.cache)
    paths = {key: named_file(config, key, getattr(config.data, key)) for key in BUILT_IN}
    share, train = config.data.spans.share, paths["train"]
    if share and train and config.data.train != SPANS:
        paths["train"] = mixed(train, masked_spans(config).paths["train"], share, Path(config.data.cache))
    corpus, regex = paths["corpus"], config.evaluate.regex_answers
    for split in SPLITS if corpus and was_cut(corpus) else ():
        if corpus and (path := paths[split]):
            paths[split] = with_documents(config, split, path, corpus)
    if regex and config.objective != "dpr" and corpus and (path := paths["train"]):
        paths["train"] = with_texts(config, path, corpus)
    if config.data.duplicates != "keep" and paths["corpus"]:
        paths["corpus"], dropped = unique_passages(config, paths["corpus"])
        for split in SPLITS if dropped else ():
            path = paths[split]
            paths[split] = path and with_kept_ids(path, dropped, Path(config.data.cache))
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
    if name == TRIOS:
        three = trios(data.factbook, data.cache)
        return {"train": three.train, "validation": three.validation, "test": three.test}[key]
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
    prefix = follow_folders(config).retriever.question_prefix
    return spans(passages, data.spans, data.cache, models, data.max_question_tokens, prefix)


def parts(config: Config) -> Parts:
    """Files, corpus store and tokenizers."""
    named, retriever = files(config), follow_folders(config).retriever
    before = [side.as_before for side in sides(config)] if has_index(config) else [False, False]
    question_tokenizer = load_tokenizer(config.retriever.question_encoder, not before[0])
    generator_tokenizer = question_tokenizer if config.objective == "dpr" else load_tokenizer(config.generator.model)
    passage_tokenizer = load_tokenizer(config.retriever.passage_encoder, not before[1])
    language = None
    if config.objective != "dpr":
        language = set_languages(
            generator_tokenizer, config.generator.source_language, config.generator.target_language
        )
    prompt = prompt_for(config, generator_tokenizer, language)
    layout: Any = retriever.passage_layout
    question_layout: Any = "separated" if layout == "separated" else "joined"
    question_format = encoder_format(question_tokenizer, question_layout, retriever.question_prefix)
    passage_format = encoder_format(passage_tokenizer, layout, retriever.passage_prefix)
    corpus = build_corpus(
        named.corpus,
        {"encoder": passage_tokenizer, "generator": generator_tokenizer},
        Path(config.data.cache),
        {"encoder": passage_format, **({"generator": prompt} if prompt else {})},
        config.data.build_processes,
    )
    tokenizers = (question_tokenizer, passage_tokenizer, generator_tokenizer)
    return Parts(named, corpus, *tokenizers, question_format, passage_format, prompt, language)


def answered_at_once(config: Config) -> int:
    """Questions in one pass of an evaluation."""
    on_gpu = accelerator(config.trainer.accelerator) == "gpu"
    n_docs = config.evaluate.n_docs or config.retriever.n_docs
    return config.evaluate.batch_size or max(QUESTIONS_AT_ONCE, GPU_CONTEXTS // n_docs if on_gpu else 0)


def data(config: Config, parts: Parts) -> QuestionAnswerData:
    """The DataModule."""
    retriever = config.retriever
    learns = has_index(config) and retriever.train_question_encoder
    paraphrased = learns and config.objective != "dpr" and config.generator.reads == "one"
    return QuestionAnswerData(
        train=parts.files.train,
        validation=parts.files.validation,
        test=parts.files.test,
        question_tokenizer=parts.question_tokenizer,
        question_format=parts.question_format,
        generator_tokenizer=parts.generator_tokenizer,
        batch_size=config.trainer.batch_size,
        evaluation_batch_size=answered_at_once(config),
        max_question_tokens=config.data.max_question_tokens,
        max_target_tokens=config.data.max_target_tokens,
        seed=config.seed,
        num_workers=config.data.workers,
        strict=config.data.strict_targets,
        long_questions=config.data.long_questions,
        unanswered=config.objective == "dpr",
        cache=config.data.cache,
        prompt=parts.prompt,
        global_batch_size=config.trainer.global_batch_size,
        decoded_questions=config.generator.question == "decoded",
        paraphrases=retriever.paraphrases if paraphrased else 0,
        limits={"validation": config.evaluate.validation_questions, "test": config.evaluate.test_questions},
    )
