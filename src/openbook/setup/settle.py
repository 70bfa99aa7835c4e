"""Settings that a configuration leaves to the data, and the reason for what is chosen."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from openbook.config.checks import has_index, longest_answer, problems_of, value_of
from openbook.config.data import SPANS
from openbook.config.models import MINILM
from openbook.config.rules.combinations import monitored
from openbook.config.schema import Config
from openbook.config.training import AUTO
from openbook.data.corpus import Corpus
from openbook.errors import OpenBookError, raise_all
from openbook.models.decoder_only.known_by import is_decoder_only
from openbook.models.pretrained import positions_of
from openbook.setup.encoders import scores_are_cosines, sides
from openbook.utils.console import say
from openbook.utils.hardware import accelerator

EPOCHS = 3  # of training on a GPU
MOST_EPOCHS = 8  # beyond them a small set is learned by heart
FEWEST_STEPS = 30

# On a CPU, where time is what is short: tokens that the generator reads in joint training and in its warm-up, and the
# steps that these are bounded to.
CPU_TOKENS, CPU_STEPS = 600_000, (60, 90)
WARMUP_TOKENS, WARMUP_STEPS = 1_000_000, (150, 300)
WINDOWED_TOKENS, WINDOWED_STEPS = 2_000_000, (250, 500)  # of whole passages, of which most steps read a part
READ_AT_ONCE = 3  # passages of a question, in the warm-up of a reader of all passages: the positive one and two others
SPANS_SHARE = 0.5

ENCODER_LR, SMALL_READER_LR, GENERATOR_LR, ADAPTER_LR = 1e-4, 3e-4, 3e-5, 2e-4

# Passages that are encoded without a gradient in the time that one is encoded, read and learned from.
ENCODED_PER_TRAINED = 12


class Choice(NamedTuple):
    key: str
    value: Any
    reason: str


def settle(config: Config, corpus: Corpus, n_questions: int, n_prompt: int = 0) -> Config:
    """The configuration without an open value: what is 0, -1 or `auto` and means "from the data" is chosen by rule, and
    said. n_questions: of training; 0 where nothing is trained, and what only training needs stays open. n_prompt:
    tokens of a generator's prompt."""
    chosen: list[Choice] = []
    rules = (_training, _refreshing, _warm_up) if n_questions else ()
    for rule in (partial(_lengths, n_prompt), *rules, _the_rest):
        for choice in rule(config, corpus, n_questions):
            if value_of(config, choice.key) != choice.value:
                config = _with(config, choice.key, choice.value)
                chosen.append(choice)
    raise_all(problems_of(config, training=bool(n_questions)))  # a run's file is read again, and checked
    if chosen:
        lines = [f"{key} = {value}{f': {reason}' if reason else ''}" for key, value, reason in chosen]
        questions = f"{n_questions:,} questions and " if n_questions else ""
        say("\n  ".join([f"chosen for {questions}{corpus.n_passages:,} passages:", *lines]))
    return config


def _with(config: Config, key: str, value: Any) -> Config:
    section, _, name = key.partition(".")
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


def _lengths(n_prompt: int, config: Config, corpus: Corpus, n_questions: int) -> Iterator[Choice]:
    """Passages as long as nearly all are, as far as the models read."""
    data = config.data
    if not data.max_passage_tokens:
        most = positions_of(config.retriever.passage_encoder) if has_index(config) else None
        needed = _room(corpus, "encoder")
        value = min(needed, most or needed)
        reason = "99 % of the passages" + _cut(needed, value)
        stated = sides(config)[1].folder.max_tokens if has_index(config) else None
        if stated and value > stated:
            reason += f"; more than the {stated} tokens that the encoder's folder states"
        yield Choice("data.max_passage_tokens", value, reason)
    if not data.max_context_tokens:
        needed = _room(corpus, "generator") + data.max_question_tokens + n_prompt
        positions = positions_of(config.generator.model)
        if n_prompt and positions and is_decoder_only(config.generator.model):  # the answer stands behind the context
            positions -= longest_answer(config)[1]
        value = min(needed, positions or needed)
        yield Choice("data.max_context_tokens", value, "99 % of the passages beside a question" + _cut(needed, value))


def _room(corpus: Corpus, role: str) -> int:
    """Tokens that hold 99 of 100 passages with their special tokens, in steps of 32, at least 128."""
    longest = float(np.quantile(corpus.tokens(role).lengths, 0.99)) if corpus.n_passages else 0.0
    return max(128, 32 * ceil((longest + 3) / 32))


def _cut(needed: int, value: int) -> str:
    return f" would need {needed}; the model reads no more" if value < needed else ""


def _training(config: Config, corpus: Corpus, n_questions: int) -> Iterator[Choice]:
    settings, optim = config.trainer, config.optim
    per_step = settings.questions_per_pass * settings.accumulate
    epoch = ceil(n_questions / per_step)  # its last step is smaller
    if settings.max_epochs:
        steps = max(1, round(settings.max_epochs * epoch))
        yield Choice("trainer.max_steps", steps, f"{settings.max_epochs:g} epochs of {epoch} steps")
    elif not settings.max_steps:
        if accelerator(settings.accelerator) == "gpu":
            wanted = max(EPOCHS * epoch, CPU_STEPS[1])
        else:
            wanted = _steps(config, corpus, CPU_TOKENS, per_step * config.retriever.n_docs, CPU_STEPS)
        steps = max(FEWEST_STEPS, min(wanted, MOST_EPOCHS * epoch))
        yield Choice("trainer.max_steps", steps, f"{steps / epoch:.2g} epochs of {epoch} steps")
    if not optim.lr:
        yield Choice("optim.lr", ENCODER_LR, "encoders that come trained")
        if not optim.lr_generator and config.objective != "dpr":
            lr, reason = GENERATOR_LR, "a pretrained generator"
            if config.generator.model == MINILM:
                lr, reason = SMALL_READER_LR, "the small reader is young"
            elif config.generator.lora.rank:
                lr, reason = ADAPTER_LR, "adapters start from nothing"
            yield Choice("optim.lr_generator", lr, reason)


def _steps(config: Config, corpus: Corpus, tokens: int, contexts: int, bounds: tuple[int, int]) -> int:
    """Steps of so many contexts in which the generator reads about so many tokens, in tens, within the bounds."""
    lengths = np.minimum(corpus.tokens("generator").lengths, config.data.max_context_tokens)
    context = float(lengths.mean()) + config.data.max_question_tokens / 4  # a question is some 16 tokens
    return min(max(10 * round(tokens / (contexts * context) / 10), bounds[0]), bounds[1])


def _refreshing(config: Config, corpus: Corpus, n_questions: int) -> Iterator[Choice]:
    """A refresh costs about as much as n_passages / (ENCODED_PER_TRAINED * passages of a step) steps; it shall take at
    most a third of the time, unless there would then be none within the run."""
    refresh, trainer = config.refresh, config.trainer
    half = ceil(trainer.max_steps / 2)
    if refresh.every == AUTO:
        per_step = trainer.questions_per_pass * trainer.accumulate * config.retriever.n_docs
        cost = corpus.n_passages / (ENCODED_PER_TRAINED * per_step)
        rare = max(30, ceil(2 * cost))
        every = max(1, min(rare, half))
        if refresh.mode == "amortized":  # it takes so many steps itself
            every = max(every, refresh.spread)
            if every + refresh.spread > trainer.max_steps:
                raise OpenBookError(
                    "an amortized refresh would not end within the run",
                    where="refresh.spread",
                    got=f"{refresh.spread} of {trainer.max_steps} steps",
                    expected=f"at most {trainer.max_steps // 2}",
                    action="Or leave refresh.mode as it is by default.",
                )
        reason = f"a refresh costs about as much as {max(cost, 1):.0f} steps"
        if every < 2 * cost:
            reason += f"; that is more than a third of the time, which one every {rare} would be: 0 does without"
        yield Choice("refresh.every", str(every), reason)
    elif refresh.every.isdigit() and int(refresh.every):
        every = int(refresh.every)
    else:
        every = half
    if not trainer.checkpoint_every:
        yield Choice("trainer.checkpoint_every", every, "")
    if not trainer.validate_every:
        yield Choice("trainer.validate_every", every, "")


def _warm_up(config: Config, corpus: Corpus, n_questions: int) -> Iterator[Choice]:
    warmup, own = config.warmup, not config.data.is_embedded
    steps = warmup.steps
    if steps < 0:
        reads = config.objective != "dpr" and config.generator.model == MINILM
        on_gpu = accelerator(config.trainer.accelerator) == "gpu"
        together = config.generator.reads == "all"
        tokens, bounds = (WINDOWED_TOKENS, WINDOWED_STEPS) if warmup.window else (WARMUP_TOKENS, WARMUP_STEPS)
        contexts = warmup.batch_size * (READ_AT_ONCE if together else 1)
        steps = _steps(config, corpus, 10 * tokens if on_gpu else tokens, contexts, bounds) if reads else 0
        trained = "no generator" if config.objective == "dpr" else "this generator comes trained"
        yield Choice("warmup.steps", steps, "the small reader learns to read first" if reads else trained)
    if warmup.spans < 0:
        masked = own and steps and config.data.train != SPANS and config.objective != "closed_book"
        share = SPANS_SHARE if masked else 0.0
        yield Choice("warmup.spans", share, "masked spans of the corpus among its questions" if share else "")


def _the_rest(config: Config, corpus: Corpus, n_questions: int) -> Iterator[Choice]:
    retriever = config.retriever
    if not retriever.temperature:
        cosine = scores_are_cosines(config)
        yield Choice("retriever.temperature", 0.05 if cosine else 1.0, "cosine scores" if cosine else "")
    if retriever.teacher == AUTO:
        learns = has_index(config) and retriever.trains and config.objective != "dpr"
        # Labels stand in passages by chance: without positive_ids any passage that says "yes" would be right.
        both = learns and not config.data.is_embedded and config.evaluate.task != "labels"
        reason = "positive passages teach the encoders too, and the generator as far as it agrees with them"
        yield Choice("retriever.teacher", "both" if both else "generator", reason if both else "")
    if config.evaluate.checkpoint == AUTO:
        best = bool(monitored(config)) and config.refresh.fresh_test
        reason = f"the best {monitored(config)} of all validations, the start among them" if best else ""
        yield Choice("evaluate.checkpoint", "best" if best else "last", reason)
