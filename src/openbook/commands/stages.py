"""Test, train, test: the stages of a run whose parts are ready, and the summary.json that is complete after each."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L

from openbook.callbacks import Checkpointing, IndexRefresh, Throughput
from openbook.config.schema import Config
from openbook.metrics.paired import improvements, per_question
from openbook.metrics.ranking import lines_of
from openbook.reporting.report import write_report
from openbook.reporting.results_table import result_line, results_table
from openbook.reporting.verdict import verdict
from openbook.setup.prepare import Prepared
from openbook.setup.trainer import wandb_run
from openbook.tracking.checkpoint import damage, read_checkpoint
from openbook.tracking.resuming import measured_otherwise
from openbook.tracking.run_folder import RunFolder, read_json
from openbook.tracking.trec import write_trec
from openbook.training.dpr_module import DprModule
from openbook.training.rag_module import RagModule
from openbook.training.ranks.strategy import OnceConnected
from openbook.utils.atomic import write_json
from openbook.utils.console import console, say, say_result
from openbook.utils.distributed import from_rank_zero, leave_together, now_in
from openbook.utils.rank_failure import solo
from openbook.utils.signals import Stopped

WARMED_UP = "Before joint training the small reader was warmed up for {steps} steps on {what}."
NO_GOLD = "Joint training itself saw no gold passage."
TAUGHT = (
    "In joint training the encoders also learned from passages that the training questions name as positive, or that "
    "BM25 found with an answer in them."
)
GOLD_PASSAGES = "The encoders were trained on gold passages of training questions; no generator took part."
STARTED_FROM = "The encoders started from {run}."
GENERATOR_FROM = "The generator started from {run}."
HELD_OUT_APART = (
    "The headline metrics count questions in phrasings of the training templates, about entries never trained on; "
    "questions in unseen phrasings are reported separately."
)


@dataclass
class Clock:
    """Seconds per stage, for summary.json. Refreshing is a stage of its own, taken out of the one it happened in.

    warmup: of the small reader, a part of the set-up.
    """

    refresh: IndexRefresh | None = None
    throughput: Throughput = field(default_factory=Throughput)
    warmup: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: {"setup": 0.0, "train": 0.0, "evaluate": 0.0})
    started: float = field(default_factory=time.perf_counter)

    @property
    def refreshing(self) -> float:
        return self.refresh.manager.seconds if self.refresh else 0.0

    def lap(self, stage: str) -> None:
        """Everything since the last lap belongs to this stage."""
        passed = time.perf_counter() - self.started - self.refreshing - sum(self.seconds.values())
        self.seconds[stage] += passed

    def rounded(self) -> dict[str, float]:
        total = {"total": time.perf_counter() - self.started}
        return {name: round(value, 2) for name, value in (total | self.seconds | {"refresh": self.refreshing}).items()}

    def stages(self) -> dict[str, float]:
        """The same seconds in the order of a run, told apart further: each second is in one stage."""
        index = self.refresh.manager.first_seconds if self.refresh else 0.0
        validation = self.throughput.validation_seconds
        seconds = {
            "build": self.seconds["setup"] - self.warmup,
            "warmup": self.warmup,
            "index": index,
            "train": self.seconds["train"] - validation,
            "refresh": self.refreshing - index,
            "validation": validation,
            "test": self.seconds["evaluate"],
        }
        return {name: round(max(value, 0.0), 2) for name, value in seconds.items()}


@dataclass
class Stages:
    """Test, train, test; summary.json is complete after each."""

    run: RunFolder
    prepared: Prepared
    module: RagModule | DprModule
    trainer: L.Trainer
    clock: Clock
    checkpointing: Checkpointing
    connected: OnceConnected
    left_open: list[str] | None  # None: not known
    done: int = 0
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    improved: dict[str, Any] = field(default_factory=dict)
    tested_step: int | None = None
    resumed: bool = False

    def __call__(self, resumed: bool) -> Path:
        run, trainer, config, self.resumed = self.run, self.trainer, self.prepared.config, resumed
        tracked = wandb_run([trainer])
        if resumed:
            self.before = run.read_summary().get("before_training", {})
            if self.before and (other := measured_otherwise(run.load_config([], training=False), config)):
                say(f"warning: the test before training was by {other}: it is not compared with the one after")
                self.before = {}
            # A rank that starts late still reads the run as it was, and must see as the others do that it is to go on.
            self.connected.then = self._go_on
        else:
            if config.data.test and config.evaluate.before_training:
                self.before = self._test("test split before training")
                with solo("writing what the test found"):
                    if trainer.is_global_zero:
                        write_json(run.before, per_question(self.module.predictions))
            self._write_summary("running")
        if tracked:
            tracked.tested("baseline", self.before)

        trainer.fit(self.module, self.prepared.questions, ckpt_path=run.newest if resumed else None, weights_only=True)
        self.clock.lap("train")
        if from_rank_zero(self.checkpointing.received is not None):
            self._write_summary("interrupted")
            leave_together()
            if trainer.is_global_zero:  # another rank that ends with a code would have this one killed
                raise Stopped(self.checkpointing.received or 15)
            return run.path

        if config.data.test:
            self._load_best()
            self.after = self._test("test split after training")
            with solo("writing what the test found"):
                if trainer.is_global_zero:
                    run.write_predictions(run.path, [prediction.to_json() for prediction in self.module.predictions])
                    write_trec(run.path, self.module.predictions)
                    before, after = read_json(run.before) if self.before else {}, per_question(self.module.predictions)
                    self.improved = improvements(before, after, config.evaluate.bootstrap, config.seed)
            if tracked:
                tracked.tested("test", self.after)
                tracked.predictions(self.module.predictions, trainer.global_step)
        self._write_summary("finished")
        with solo("the report"):
            if trainer.is_global_zero:
                _close(run)
                if tracked:
                    tracked.report(run.path / "report.html")
        leave_together()
        return run.path

    def _go_on(self) -> None:
        """From here on the run is changed, and no longer finished."""
        with solo("setting a damaged summary.json aside"):
            if self.trainer.is_global_zero and self.run.summary.is_file() and not self.run.read_summary():
                os.replace(self.run.summary, self.run.summary.with_name("summary.json.damaged"))
        self._write_summary("running")  # first: a run that is finished would not go on after a kill in between
        with solo("writing config.yaml"):
            if self.trainer.is_global_zero:
                self.run.create(self.prepared.config)

    def _load_best(self) -> None:
        """The weights of the best validation, where the test shall use them."""
        if self.prepared.config.evaluate.checkpoint == "best" and from_rank_zero(self.run.best.is_file()):
            if found := damage(self.run.best):
                say(f"warning: {self.run.best} is damaged ({found}): the last weights are tested")
                return
            content = read_checkpoint(self.run.best)
            self.module.load_state_dict(content["state_dict"])
            self.module.retriever.weights_changed()
            self.tested_step = content["global_step"]
            say(f"testing the weights of the best validation, step {self.tested_step}")

    def _test(self, what: str) -> dict[str, Any]:
        now_in(what)
        started = time.perf_counter()
        self.trainer.test(self.module, self.prepared.questions, verbose=False, weights_only=True)
        self.clock.lap("evaluate")
        say_result(result_line(what, self.module.summary, time.perf_counter() - started))
        for line in lines_of(self.module.summary.get("retrieval", {})):
            say_result(line)
        return dict(self.module.summary)

    def _write_summary(self, status: str) -> None:
        with solo("writing summary.json"):
            if self.trainer.is_global_zero:
                write_json(self.run.summary, self._summary(status))

    def _summary(self, status: str) -> dict[str, Any]:
        config, best, teacher = self.prepared.config, self.checkpointing, getattr(self.module, "teacher", None)
        own, start = self.prepared.own.names, config.retriever.start_from
        told = {
            WARMED_UP.format(steps=config.warmup.steps, what=_read_first(config)): config.warmup.steps > 0,
            NO_GOLD: config.warmup.steps > 0 and teacher is None,
            TAUGHT: teacher is not None,
            GOLD_PASSAGES: config.objective == "dpr",
            STARTED_FROM.format(run=start): start and self.prepared.is_dense,
            GENERATOR_FROM.format(run=config.generator.start_from): config.generator.start_from,
            HELD_OUT_APART: "held_out" in self.after.get("by_phrasing", {}),
        }
        summary = {
            "experiment": config.experiment,
            "status": status,
            "steps": max(self.trainer.global_step, self.done),  # before the checkpoint is read it is at 0
            "tested_step": self.trainer.global_step if self.tested_step is None else self.tested_step,
            "best": {"metric": best.monitor, "value": best.best, "step": best.best_step} if best.monitor else {},
            "seed": config.seed,
            "left_open": self.left_open,
            "n_docs": config.evaluate.n_docs or config.retriever.n_docs,
            "seconds": self.clock.rounded(),
            "stages": self.clock.stages(),
            "resumed": self.resumed,
            "test": self.after,
            "before_training": self.before,
            "improved": self.improved,
            "questions": {split: len(file) for split, file in self.prepared.questions.questions.items()},
            "agreement": teacher.agreement if teacher is not None and teacher.counted else None,
            "data": self.prepared.fingerprints,
            "index": self.module.retriever.index_facts(),
            "disclosures": [text for text, holds in told.items() if holds],
        }
        return summary | ({"own_parts": own} if own else {})


def _read_first(config: Config) -> str:
    """What the warm-up read."""
    spans = config.warmup.spans
    kinds = [f"gold passages of training questions{f' ({1 - spans:.0%})' if spans else ''}"] if spans < 1 else []
    return " and ".join(kinds + ([f"masked spans of the corpus ({spans:.0%})"] if spans else []))


def _close(run: RunFolder) -> None:
    """The last thing on the terminal: the table, and the files that matter."""
    summary = run.read_summary()
    if summary["test"]:
        console.print(results_table(summary))
    also = [path for path in (run.predictions, run.metrics, run.best) if path.exists()]
    for label, path in (("report", write_report(run.path)), ("metrics", run.summary), ("checkpoint", run.last)):
        if path.exists():
            say_result(f"{label:>12}  {path}")
    say_result(f"{'also':>12}  {', '.join(str(path.relative_to(run.path)) for path in also)}")
    if told := verdict(summary):
        say_result(told)
