"""Configurations of the main job on tiny local models and data, shared by the tests that train."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from openbook.config import Config
from openbook.experiment import load_experiment


@dataclass(frozen=True)
class SmallSystem:
    """Folders of a tiny encoder, a tiny generator and a small data set."""

    encoder: Path
    generator: Path
    data: Path

    def words(self, run: Path, *more: str) -> list[str]:
        """`EXPERIMENT key=value ...` of a run of six steps with three refreshes."""
        experiment = run.parent / "small.yaml"
        experiment.write_text("shows: that everything is connected\n", encoding="utf-8")
        files = {"corpus": "passages", "train": "train", "validation": "validation", "test": "test"}
        return [
            str(experiment), *(f"data.{key}={self.data / name}.jsonl" for key, name in files.items()),
            f"data.cache={run.parent / 'cache'}", f"run.dir={run}", f"retriever.question_encoder={self.encoder}",
            f"retriever.passage_encoder={self.encoder}", f"generator.model={self.generator}", "trainer.max_steps=6",
            "trainer.batch_size=4", "trainer.validate_every=3", "trainer.checkpoint_every=2", "refresh.every=2",
            "trainer.precision=fp32", "trainer.accelerator=cpu", "wandb.mode=disabled", "data.max_context_tokens=80",
            "retriever.n_docs=3", "optim.lr_generator=0.01", "optim.lr_question_encoder=0.01",
            "optim.lr_passage_encoder=0.01", "retriever.temperature=1", "optim.warmup_steps=0", *more,
        ]  # fmt: skip

    def config(self, run: Path, *more: str) -> Config:
        words = self.words(run, *more)
        return load_experiment(words[0], words[1:])

    def command(self, command: str, *words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """The command line in a process of its own, as a user would start it; waits for its end."""
        process = self.start(command, *words)
        said, _ = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, said)

    def start(self, command: str, *words: str) -> subprocess.Popen[str]:
        """The same without waiting: one thread per process, and none of the variables that a launcher sets."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        for name in ("OPENBOOK_RUN_DIR", "LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT", "NODE_RANK"):
            environment.pop(name, None)
        return subprocess.Popen([sys.executable, "-m", "openbook", command, *words], env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def column(run: Path, name: str) -> dict[int, float]:
    """{step: value} of one column of metrics.csv, empty cells left out."""
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}
