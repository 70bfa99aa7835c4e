"""Train retrieval-augmented generation end to end (Lewis et al. 2020, arXiv:2005.11401).

    from openbook import load_experiment, train
    run = train(load_experiment("tiny"))
    print(run.summary["test"], run.answer(["What is the capital of Iceland?"]))

Nothing heavy is imported before one of the names below is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "IndexRefresh": "openbook.callbacks",
    "Run": "openbook.commands.api",
    "evaluate": "openbook.commands.api",
    "load_run": "openbook.commands.api",
    "resume": "openbook.commands.api",
    "train": "openbook.commands.api",
    "load_experiment": "openbook.config.load",
    "QuestionAnswerData": "openbook.data.datamodule",
    "OpenBookError": "openbook.errors",
    "Snapshot": "openbook.index.snapshot",
    "BM25Retriever": "openbook.retrieval.bm25",
    "DenseRetriever": "openbook.retrieval.dense",
    "Retriever": "openbook.retrieval.base",
    "RagModule": "openbook.training.rag_module",
    "objectives": "openbook.objectives",
}

__all__ = [
    "BM25Retriever",
    "DenseRetriever",
    "IndexRefresh",
    "OpenBookError",
    "QuestionAnswerData",
    "RagModule",
    "Retriever",
    "Run",
    "Snapshot",
    "evaluate",
    "load_experiment",
    "load_run",
    "objectives",
    "resume",
    "train",
]

if TYPE_CHECKING:
    from openbook import objectives
    from openbook.callbacks import IndexRefresh
    from openbook.commands.api import Run, evaluate, load_run, resume, train
    from openbook.config.load import load_experiment
    from openbook.data.datamodule import QuestionAnswerData
    from openbook.errors import OpenBookError
    from openbook.index.snapshot import Snapshot
    from openbook.retrieval.base import Retriever
    from openbook.retrieval.bm25 import BM25Retriever
    from openbook.retrieval.dense import DenseRetriever
    from openbook.training.rag_module import RagModule


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'openbook' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    return home if name == "objectives" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
