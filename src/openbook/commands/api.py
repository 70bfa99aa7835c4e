"""The Python API: train, resume, evaluate and ask from a program, with parts of one's own."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L

from openbook.commands import evaluate as evaluating
from openbook.commands import train as training
from openbook.config.schema import Config
from openbook.data.corpus import Corpus
from openbook.errors import OpenBookError
from openbook.exchange.models import encoder_sides, write_encoder, write_generator
from openbook.metrics.prediction import Prediction
from openbook.objectives.marginal import Loss
from openbook.retrieval.base import Retriever
from openbook.retrieval.dense import DenseRetriever
from openbook.serving.served import HowToAnswer, Served
from openbook.setup.prepare import NOTHING_OWN, OwnParts, Prepared
from openbook.setup.trainer import quiet
from openbook.tracking.added_passages import answering_overrides
from openbook.tracking.run_contents import read_run
from openbook.tracking.run_folder import RunFolder

OwnRetriever = Retriever[Any] | Callable[[Corpus], Retriever[Any]]


class Run(os.PathLike[str]):
    """A run folder: what it says of itself, and its trained model."""

    def __init__(self, folder: str | Path, own: OwnParts = NOTHING_OWN):
        self._folder, self._own = RunFolder.existing(str(folder)), own

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({self.path})"

    @property
    def path(self) -> Path:
        return self._folder.path

    @cached_property
    def config(self) -> Config:
        """The configuration that it was trained with."""
        return self._folder.load_config([], training=False)

    @property
    def summary(self) -> dict[str, Any]:
        """The contents of summary.json: status, steps, seconds, and the test's metrics, rates from 0 to 1."""
        return self._folder.read_summary()

    @property
    def predictions(self) -> list[Prediction]:
        """The answers to the test questions, with their passages."""
        return read_run(self.path).predictions

    def answer(self, questions: Sequence[str], n_docs: int = 0) -> list[Prediction]:
        """Answers of the trained model from its corpus, in the order of the questions; n_docs passages are read for
        each (0: as at the test), with p(z|x) before and p(z|x,y) after the answer.

        The first call loads the model and builds the index. Raises OpenBookError for a run without a generator, for a
        question that is too long, and where the run has no checkpoint.
        """
        served, _ = self._loaded
        return served.answer(questions, HowToAnswer(n_docs=n_docs), [str(number) for number in range(len(questions))])

    def save_models(self, folder: str | Path) -> Path:
        """The trained models as transformers' folders, adapters merged into the weights: generator, question_encoder
        and passage_encoder, each with its tokenizer, as far as the run has them; returns `folder`. Encoders come with
        sentence-transformers' files for pooling, linear layers, normalisation and prompts. Raises OpenBookError for an
        encoder that cannot be written so that it is read as it was trained."""
        served, prepared = self._loaded
        module, parts, folder = served.module, prepared.parts, Path(folder)
        if isinstance(module.retriever, DenseRetriever):
            for name, encoder, tokenizer in encoder_sides(module.retriever, parts):
                write_encoder(encoder, tokenizer, folder / name, parts.question_format, parts.passage_format)
        write_generator(module.generator, parts.generator_tokenizer, folder / "generator")
        return folder

    @cached_property
    def _loaded(self) -> tuple[Served, Prepared]:
        quiet()
        if self.config.objective == "dpr":
            raise OpenBookError("the run trained no generator", where=self.path, got="objective dpr")
        config = self._folder.load_config(answering_overrides(self.path), training=False)
        return evaluating.load_served(self._folder, config, self._own)


def train(
    config: Config,
    *,
    objective: Loss | None = None,
    retriever: OwnRetriever | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> Run:
    """Train an experiment (`load_experiment`), evaluate it before and after, and write its run folder.

    objective: minimised instead of the configuration's, (token_logprobs [batch, n_docs, target_len], doc_scores [batch,
    n_docs], target_mask [batch, target_len]) -> loss per question [batch], each from its own rows alone; answers are
    decoded by config.objective. retriever: instead of the configuration's, an openbook.Retriever or a function that
    makes one from the Corpus; its parameters are trained with optim.lr and saved. callbacks: Lightning's, run after the
    index has been refreshed and before a checkpoint is written. Raises OpenBookError on bad input, before anything
    expensive starts.
    """
    quiet()
    own = OwnParts(objective, retriever, callbacks)
    return Run(training.train(config, own), own)


def resume(
    run: str | Path | Run,
    overrides: Sequence[str] = (),
    *,
    objective: Loss | None = None,
    retriever: OwnRetriever | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> Run:
    """Continue an interrupted run, step for step as if it had not stopped; parts of one's own are passed again."""
    quiet()
    own = OwnParts(objective, retriever, callbacks)
    return Run(training.resume(os.fspath(run), overrides, own), own)


def evaluate(
    run: str | Path | Run, overrides: Sequence[str] = (), *, retriever: OwnRetriever | None = None
) -> dict[str, Any]:
    """Answer the test questions with a trained run, perhaps from another corpus (overrides=["data.corpus=FILE"]);
    returns the contents of the result's summary.json."""
    quiet()
    own = OwnParts(retriever=retriever)
    return RunFolder(evaluating.evaluate(os.fspath(run), overrides, own).parent).read_summary()


def load_run(folder: str | Path | Run, *, retriever: OwnRetriever | None = None) -> Run:
    """A run by its folder, or by its experiment's name for the newest run; the model is loaded when it is asked.

    Raises OpenBookError where there is no such run.
    """
    return Run(os.fspath(folder), OwnParts(retriever=retriever))
