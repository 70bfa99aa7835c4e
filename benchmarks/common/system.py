"""The main job's parts as the scripts measure them: the embedded corpus, its models, an index, a timed training run."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import lightning as L
import torch

from openbook.config.load import load_experiment
from openbook.config.schema import Config
from openbook.data.datamodule import QuestionAnswerData
from openbook.index.faiss_factory import use_threads
from openbook.refresh.manager import RefreshManager
from openbook.refresh.rebuild import Rebuild
from openbook.retrieval.dense import DenseRetriever
from openbook.setup import models as setup_models
from openbook.setup.inputs import data as setup_data
from openbook.setup.prepare import prepare
from openbook.setup.trainer import make_trainer, quiet
from openbook.training.rag_module import RagModule
from openbook.utils.hardware import set_threads

Mode = Literal["blocking", "amortized"]


@dataclass(frozen=True)
class System:
    """Everything a run trains with; the reader is not warmed up, which changes no time."""

    config: Config
    parts: setup_data.Parts
    questions: QuestionAnswerData
    module: RagModule
    manager: RefreshManager
    autocast: torch.dtype | None

    @property
    def retriever(self) -> DenseRetriever:
        assert self.module.retriever is not None
        return self.module.retriever


def system(quick: bool, *overrides: str) -> System:
    """experiments/rag_token, its small sibling `tiny` for a quick look, with overrides; nothing is indexed yet."""
    never = "trainer.validate_every=1000000"
    config = load_experiment("tiny" if quick else "rag_token", [never, "index.keep_vectors=0", *overrides])
    quiet()
    prepared = prepare(config)
    module = setup_models.rag_module(config, prepared.parts)
    return System(config, prepared.parts, prepared.questions, module, prepared.refresh().manager, prepared.autocast)


def prepare_machine() -> None:
    """Threads as `train` sets them for one rank, and no advice that does not apply."""
    quiet()
    use_threads(set_threads(1))


@dataclass(frozen=True)
class Step:
    """Seconds of one optimizer step: everything since the last step's manager (loading data included) until the weights
    are changed; the manager after it; and of that the encoding of a slice, 0 where there was none."""

    number: int
    mode: Mode
    training: float
    manager: float
    slice: float

    @property
    def pause(self) -> float:
        """The step and its manager without the slice's own cost."""
        return self.training + self.manager - self.slice


def train(on: System, steps: int, mode_of: Callable[[int], Mode] = lambda step: "blocking") -> list[Step]:
    """Train with Lightning as `openbook train` does, the index kept in the mode that a step number asks for; the mode
    may change only while no amortized refresh is under way."""
    clock = _Clock(on.manager, mode_of)
    with seconds_of(Rebuild, "advance") as clock.advance:
        fit(on, steps, clock)
    return clock.steps


def fit(on: System, steps: int, clock: Keeper) -> None:
    """The training itself, the index kept by `clock`."""
    trainer = make_trainer(replace(on.config, trainer=replace(on.config.trainer, max_steps=steps)), [clock], [])
    trainer.limit_val_batches = 0
    if trainer.progress_bar_callback is not None:
        trainer.progress_bar_callback.disable()
    trainer.fit(on.module, on.questions)


class Keeper(L.Callback):
    """Stands where IndexRefresh stands in a run and keeps the same state; who times it fills in the three moments."""

    def __init__(self, manager: RefreshManager, mode_of: Callable[[int], Mode]):
        self.manager, self.mode_of = manager, mode_of

    def started(self) -> None:
        """The first step may begin."""

    def trained(self) -> None:
        """A step's weights are changed; its manager has not been called."""

    def kept(self, step: int, mode: Mode) -> None:
        """The manager has done its work after this step."""

    def state_dict(self) -> dict[str, Any]:
        return self.manager.state_dict()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.manager.prepare(pl_module.retriever, 0)  # type: ignore[arg-type]
        self.started()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trained()
        step = trainer.global_step
        mode = self.mode_of(step)
        self.manager.options = replace(self.manager.options, mode=mode)
        self.manager.after_step(pl_module.retriever, step)  # type: ignore[arg-type]
        self.kept(step, mode)


class _Clock(Keeper):
    """Waits for the device at every moment. advance: seconds of all slices so far, filled from outside."""

    def __init__(self, manager: RefreshManager, mode_of: Callable[[int], Mode]):
        super().__init__(manager, mode_of)
        self.advance: list[float] = []
        self.steps: list[Step] = []
        self.last = self.changed = 0.0
        self.slices = 0

    def started(self) -> None:
        self.last = now()

    def trained(self) -> None:
        self.changed, self.slices = now(), len(self.advance)

    def kept(self, step: int, mode: Mode) -> None:
        done, encoding = now(), sum(self.advance[self.slices :])
        self.steps.append(Step(step, mode, self.changed - self.last, done - self.changed, encoding))
        self.last = now()


@contextmanager
def seconds_of(kind: type, method: str) -> Any:
    """A list to which every call of kind.method adds its seconds, inside the block."""
    plain, seconds = getattr(kind, method), []

    def timed(*arguments: Any, **named: Any) -> Any:
        started = now()
        result = plain(*arguments, **named)
        seconds.append(now() - started)
        return result

    setattr(kind, method, timed)
    try:
        yield seconds
    finally:
        setattr(kind, method, plain)


def now() -> float:
    """Seconds, once a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
