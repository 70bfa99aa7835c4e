"""From a configuration to models: encoders, generator, retriever, LightningModule."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from torch import nn

from openbook.config.checks import has_index, longest_answer
from openbook.config.models import MINILM
from openbook.config.rules.combinations import labels_of
from openbook.config.schema import Config
from openbook.config.training import DprConfig
from openbook.data.corpus import Corpus
from openbook.data.datamodule import QuestionAnswerData
from openbook.data.inputs import target_start, targets
from openbook.inference.answering import Answering
from openbook.models.contexts import ContextBuilder
from openbook.models.decoder_only.model import DecoderOnlyGenerator
from openbook.models.generator import Generator
from openbook.models.passes.activation_checkpointing import checkpoint_layers
from openbook.models.probe import freeze_unreached, probe_generator
from openbook.models.seq2seq import load_generator
from openbook.models.small_reader.detokenize import detokenize
from openbook.models.small_reader.model import MiniLMReader
from openbook.objectives.by_name import likelihood_of
from openbook.objectives.marginal import Loss
from openbook.retrieval.base import Retriever
from openbook.retrieval.bm25 import BM25Index, BM25Retriever, passage_texts
from openbook.retrieval.closed_book import ClosedBookRetriever
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.passage_embedder import PassageEmbedder
from openbook.setup.encoders import load_encoders
from openbook.setup.generator import check_reader_of_all, in_bf16
from openbook.setup.inputs.data import Parts
from openbook.training.all_passages import AllPassagesModule
from openbook.training.dpr_module import DprModule
from openbook.training.dpr_negatives import RandomRows, TrainingPassages
from openbook.training.passage_teacher import PassageTeacher
from openbook.training.rag_module import RagModule
from openbook.training.rewarded_module import ChosenPassages, RewardedModule
from openbook.utils.console import say
from openbook.utils.hardware import accelerator


def rag_module(
    config: Config,
    parts: Parts,
    retriever: Retriever[Any] | None = None,
    loss: Loss | None = None,
    teacher: PassageTeacher | None = None,
) -> RagModule:
    """The LightningModule with its models loaded. retriever, loss: the caller's own, instead of those of the
    configuration."""
    retriever = retriever if retriever is not None else retriever_of(config, parts)
    generator = load_generator(config.generator.model, config.generator.dropout, config.seed, config.generator)
    if config.trainer.checkpointing:
        checkpoint_layers(cast(nn.Module, generator))
    if not isinstance(generator, DecoderOnlyGenerator):
        generator.first_token_id = target_start(parts.generator_tokenizer)
    elif parts.prompt is not None:
        generator.follow(parts.prompt)
    if generator.first_token_id is not None:
        first = parts.generator_tokenizer.convert_ids_to_tokens(generator.first_token_id)
        say(f"answers begin with {first}, as the generator's tokenizer writes targets")
    limit, most = longest_answer(config)
    probe_generator(
        generator,
        parts.generator_tokenizer,
        parts.in_context,
        max_context=config.data.max_context_tokens,
        max_target=most,
        limit=limit,
    )
    if config.trainer.world_size > 1:
        freeze_unreached(generator, "generator.model")
    if config.generator.reads == "all":
        check_reader_of_all(config, generator, parts)
        if isinstance(generator, MiniLMReader):
            generator.read_all()
    if config.generator.weights == "bf16":
        in_bf16(generator)
    contexts = ContextBuilder(
        parts.corpus.tokens("generator"),
        parts.in_context,
        config.data.max_context_tokens,
        tokens_per_pass(config),
        one_pass=config.generator.sharded,
    )
    kind = AllPassagesModule if config.generator.reads == "all" else RagModule
    return kind(
        retriever,
        generator,
        contexts,
        answering(config, parts, generator, contexts),
        objective=config.objective,
        n_docs=config.retriever.n_docs,
        optim=config.optim,
        max_steps=config.trainer.max_steps,
        reduction=config.trainer.reduction,
        label_smoothing=config.generator.label_smoothing,
        seed=config.seed,
        distill_temperature=config.distill_temperature,
        resamples=config.evaluate.bootstrap,
        loss=loss,
        teacher=teacher,
    )


def answering(config: Config, parts: Parts, generator: Generator, contexts: ContextBuilder) -> Answering:
    """How answers are decoded and what is measured of them."""
    evaluation, max_tokens = config.evaluate, config.decode.max_tokens or config.data.max_target_tokens
    labelled = targets if parts.prompt is None else parts.prompt.targets
    answers = Answering(
        generator=generator,
        contexts=contexts,
        corpus=parts.corpus,
        targets=lambda texts: labelled(parts.generator_tokenizer, texts, config.data.max_target_tokens),
        detokenize=detokenizer(config, parts),
        likelihood=likelihood_of(config.objective, config.generator.reads),
        n_docs=evaluation.n_docs or config.retriever.n_docs,
        decode=replace(config.decode, max_tokens=max_tokens),
        task=evaluation.task,
        labels=labels_of(evaluation.labels),
        regex=evaluation.regex_answers,
        utility=evaluation.utility,
        seed=config.seed,
    )
    if evaluation.task == "labels":
        answers.label_ids  # noqa: B018 - raises now, not after training, where labels cannot be told apart
    return answers


def dpr_module(config: Config, parts: Parts, passages: TrainingPassages | None) -> DprModule:
    """The retriever's warm-up, without a generator. passages: what its questions are trained on."""
    kind = RewardedModule if config.dpr.loss == "ordered" else DprModule
    module = kind(
        dense_retriever(config, parts),
        parts.corpus,
        passages,
        optim=config.optim,
        max_steps=config.trainer.max_steps,
        n_docs=config.evaluate.n_docs or config.retriever.n_docs,
        resamples=config.evaluate.bootstrap,
        regex_answers=config.evaluate.regex_answers,
        identical_ids=config.evaluate.identical_ids,
        seed=config.seed,
    )
    if isinstance(module, RewardedModule):
        module.baseline = config.dpr.reward_baseline
    return module


def passage_teacher(config: Config, parts: Parts, questions: QuestionAnswerData | None) -> PassageTeacher | None:
    """What the encoders learn from besides the generator, where they do; without questions a stand-in for a plan."""
    if config.retriever.teacher != "both" or not (has_index(config) and config.retriever.trains):
        return None
    # The index's passages are its negatives: BM25 is built only for questions that name no passage.
    return PassageTeacher(training_passages(config, parts, questions, DprConfig(bm25_negatives=0)))


def training_passages(
    config: Config, parts: Parts, questions: QuestionAnswerData | None, options: DprConfig
) -> TrainingPassages:
    """Positives and hard negatives for the training questions, which are all looked through once; without questions,
    stand-ins of BM25's passages for a plan."""
    regex, bm25 = config.evaluate.regex_answers, None
    kind = ChosenPassages if options.loss == "ordered" else TrainingPassages
    if questions is None:
        stand_in = RandomRows(parts.corpus.n_passages, config.seed)
        return kind(parts.corpus, stand_in, options, seed=config.seed, regex=regex)
    if options.bm25_negatives and not all(example.negative_ids for example in questions.questions["train"]):
        bm25 = bm25_index(parts.corpus)
    passages = kind(parts.corpus, bm25, options, seed=config.seed, regex=regex)
    passages.prepare(questions.questions["train"])
    return passages


def tokens_per_pass(config: Config) -> int:
    """The key's value, or what suits the accelerator."""
    on_cpu = accelerator(config.trainer.accelerator) == "cpu"
    return config.trainer.tokens_per_pass or (4096 if on_cpu else 65536)


def retriever_of(config: Config, parts: Parts) -> Retriever[Any]:
    """The retriever that the configuration names."""
    if config.objective == "closed_book":
        return ClosedBookRetriever()
    if config.retriever.kind == "bm25":
        return BM25Retriever(bm25_index(parts.corpus), parts.corpus.n_passages, config.retriever.temperature)
    return dense_retriever(config, parts)


def dense_retriever(config: Config, parts: Parts) -> DenseRetriever:
    """Both encoders over the corpus; one encoder for both sides where they are tied."""
    settings = config.retriever
    tokenizers = (parts.question_tokenizer, parts.passage_tokenizer)
    encoders = load_encoders(config, tokenizers, (parts.question_format, parts.passage_format))
    passages = PassageEmbedder(
        encoders[-1],
        parts.corpus.tokens("encoder"),
        parts.passage_format,
        config.data.max_passage_tokens,
        tokens_per_pass=tokens_per_pass(config),
        tokens_per_backward=settings.tokens_per_backward,
    )
    return DenseRetriever(
        encoders[0],
        passages,
        temperature=settings.temperature,
        train_question_encoder=settings.train_question_encoder,
        train_passage_encoder=settings.train_passage_encoder,
        rerank=settings.rerank,
    )


def bm25_index(corpus: Corpus) -> BM25Index:
    """BM25 over the corpus, rebuilt each time: a pure function of it."""
    say(f"building a BM25 index of {corpus.n_passages:,} passages")
    started = time.perf_counter()
    index = BM25Index(passage_texts(corpus))
    say(f"BM25 index of {corpus.n_passages:,} passages built in {time.perf_counter() - started:.1f} s")
    return index


def detokenizer(config: Config, parts: Parts) -> Callable[[list[int]], str]:
    """Answer ids to text. WordPiece needs its spaces repaired; other tokenizers decode exactly."""
    tokenizer = parts.generator_tokenizer
    if config.generator.model == MINILM:
        return lambda ids: detokenize(tokenizer, ids)
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
