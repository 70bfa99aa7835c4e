"""From a configuration to the warmed-up small reader: on the run's own text, or for embedded data on the book's."""

from dataclasses import replace
from pathlib import Path

import torch

from openbook.config.data import EMBEDDED, QUESTIONS
from openbook.config.models import MINILM
from openbook.config.schema import Config
from openbook.config.training import AUTO
from openbook.data.corpus_build import build_corpus
from openbook.data.spans.files import NoSpansError
from openbook.models.encoders import load_tokenizer
from openbook.models.pretrained import model_folder
from openbook.models.small_reader.model import MiniLMReader
from openbook.setup.inputs.data import files, masked_spans
from openbook.training.reader_warmup import WarmupOptions, warm_up
from openbook.utils.console import say


def warmed_up(config: Config, on: str, autocast: torch.dtype | None) -> MiniLMReader:
    """The small reader as its warm-up leaves it, which one rank of a node makes."""
    warmup, reads = config.warmup, _on_its_data(config)
    named = files(reads)
    masked = masked_spans(reads).paths["train"] if warmup.spans else None
    tokenizer = load_tokenizer(MINILM)
    cache, processes = Path(config.data.cache), config.data.build_processes
    corpus = build_corpus(named.corpus, {"generator": tokenizer}, cache, processes=processes)
    long = config.data.long_questions
    options = WarmupOptions(
        warmup.steps,
        warmup.batch_size,
        warmup.lr,
        config.seed,
        config.data.max_context_tokens,
        config.data.max_target_tokens,
        warmup.spans,
        None if long == "error" else (long, config.data.max_question_tokens),
        config.generator.reads == "all",
        warmup.window or None,
    )
    device = torch.device("cuda" if on == "gpu" else "cpu")
    folder = warm_up(
        model_folder(MINILM),
        options,
        corpus,
        named.train,
        named.validation,
        tokenizer,
        cache,
        device,
        autocast,
        masked,
    )
    return MiniLMReader.from_pretrained(folder)


def without_missing_spans(config: Config) -> Config:
    """The configuration; without a share of masked spans in the warm-up where the corpus gives none, which is said.
    Raises NoSpansError where the warm-up would read nothing else."""
    if not (config.warmup.steps and config.warmup.spans):
        return config
    try:
        masked_spans(_on_its_data(config))
    except NoSpansError:
        if config.warmup.spans == 1:
            raise
        say(
            "warning: no sentence of the corpus has a name, a date or a number that could be masked "
            f"(data.spans.language={config.data.spans.language}): the reader's warm-up reads the questions alone"
        )
        return replace(config, warmup=replace(config.warmup, spans=0.0))
    return config


def _on_its_data(config: Config) -> Config:
    """The configuration with the files that the warm-up reads in the place of the run's."""
    corpus_file, train, held_out = warmup_files(config)
    if corpus_file == QUESTIONS:  # of all the run's questions, those of the test among them
        corpus_file = str(files(config).corpus)
    unmixed = replace(config.data.spans, share=0.0)  # the warm-up has a share of its own
    data = replace(config.data, corpus=corpus_file, train=train, validation=held_out, test="", spans=unmixed)
    return replace(config, data=data)


def warmup_files(config: Config) -> tuple[str, str, str]:
    """What warmup.passages, questions and held_out stand for: the run's own files, or those of the embedded book."""
    data, warmup = config.data, config.warmup
    own = (data.corpus, data.train, data.validation)
    corpus, train, validation = (EMBEDDED,) * 3 if data.is_embedded else own
    return (
        corpus if warmup.passages == AUTO else warmup.passages,
        train if warmup.questions == AUTO else warmup.questions,
        validation if warmup.held_out == AUTO else warmup.held_out,
    )
