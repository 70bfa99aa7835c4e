"""Everything that can be found wrong before anything expensive starts, said at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from openbook.config import EMBEDDED, MINILM, Config
from openbook.corpus import Corpus
from openbook.errors import OpenBookError, raise_all
from openbook.hardware import accelerator
from openbook.mips import check_factory, search_device
from openbook.weights import check_model_folder


def check(config: Config) -> None:
    """Files, weights, devices and the factory string; no model is loaded. Raises one error that lists all problems."""
    problems: list[OpenBookError] = []

    def attempt(look: Callable[[], object]) -> None:
        try:
            look()
        except OpenBookError as problem:
            problems.append(problem)

    for key in ("corpus", "train", "validation", "test"):
        attempt(lambda key=key: _check_file(f"data.{key}", getattr(config.data, key)))  # type: ignore[misc]
    attempt(lambda: accelerator(config.trainer.accelerator))
    if config.objective != "closed_book":
        attempt(lambda: search_device(config.index.device))
        attempt(lambda: check_factory(config.index.factory))
        attempt(lambda: check_model_folder(config.retriever.question_encoder, "retriever.question_encoder"))
        if config.retriever.passage_encoder != config.retriever.question_encoder:
            attempt(lambda: check_model_folder(config.retriever.passage_encoder, "retriever.passage_encoder"))
    if config.generator.model != MINILM or config.objective == "closed_book":
        attempt(lambda: check_model_folder(config.generator.model, "generator.model"))
    raise_all(problems)


def check_corpus(config: Config, corpus: Corpus) -> None:
    """n_docs and the validation depths against the passages there are."""
    if config.objective != "closed_book" and config.retriever.n_docs > corpus.n_passages:
        raise OpenBookError(
            "n_docs is larger than the corpus", where="retriever.n_docs", got=config.retriever.n_docs,
            expected=f"at most {corpus.n_passages}, the number of passages", action="Lower retriever.n_docs.",
        )  # fmt: skip


def _check_file(key: str, name: str) -> None:
    if name in (EMBEDDED, ""):
        return
    path = Path(name)
    if not path.is_file():
        there = "a folder" if path.is_dir() else "nothing"
        raise OpenBookError("no such file", where=key, got=f"{there} at {name}", expected="a file")
