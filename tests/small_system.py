"""Configurations of the main job on tiny local models and data, shared by the tests that train; and encoders and
corpora that are smaller still and never on disk, for tests of the index alone."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from benchmarks.common.processes import ends_of, start_ranks
from openbook.callbacks import Throughput
from openbook.commands.train import resume, train
from openbook.config.load import load_experiment
from openbook.config.schema import Config
from openbook.data.corpus import PassageTokens
from openbook.data.encoder_inputs import separated
from openbook.data.inputs import SpecialIds
from openbook.models.encoders import TextEncoder
from openbook.retrieval.corpus_encoder import CorpusOptions
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.passage_embedder import PassageEmbedder
from openbook.setup.prepare import OwnParts

DIM = 12


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
            str(experiment),
            *(f"data.{key}={self.data / name}.jsonl" for key, name in files.items()),
            f"data.cache={run.parent / 'cache'}",
            f"run.dir={run}",
            f"retriever.question_encoder={self.encoder}",
            f"retriever.passage_encoder={self.encoder}",
            f"generator.model={self.generator}",
            "trainer.max_steps=6",
            "trainer.batch_size=4",
            "trainer.validate_every=3",
            "trainer.checkpoint_every=2",
            "refresh.every=2",
            "trainer.precision=fp32",
            "trainer.accelerator=cpu",
            "wandb.mode=disabled",
            "data.max_passage_tokens=128",
            "data.max_context_tokens=80",
            "retriever.n_docs=3",
            "optim.lr_generator=0.01",
            "optim.lr_question_encoder=0.01",
            "optim.lr_passage_encoder=0.01",
            "retriever.temperature=1",
            "retriever.teacher=generator",
            "optim.warmup_steps=0",
            "evaluate.checkpoint=last",
            *more,
        ]

    def config(self, run: Path, *more: str) -> Config:
        words = self.words(run, *more)
        return load_experiment(words[0], words[1:])

    def command(self, command: str, *words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """The command line in a process of its own, as a user would start it; waits for its end."""
        process = self.start(command, *words)
        said, _ = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, said)

    def start(self, command: str, *words: str) -> subprocess.Popen[str]:
        """The same without waiting."""
        return self._start(["-m", "openbook", command, *words])

    def start_python(self, script: str, cwd: Path | None = None, threads: int = 0) -> subprocess.Popen[str]:
        """A program in a process of its own, with as many threads as this one: sums are split among them."""
        return self._start(["-c", script], cwd, threads or torch.get_num_threads())

    @staticmethod
    def _start(words: list[str], cwd: Path | None = None, threads: int = 1) -> subprocess.Popen[str]:
        """One thread per process unless told otherwise, and none of the variables that a launcher sets."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        for name in ("OPENBOOK_RUN_DIR", "LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT", "NODE_RANK"):
            environment.pop(name, None)
        return subprocess.Popen(
            [sys.executable, *words],
            env=environment,
            cwd=cwd,
            text=True,
            start_new_session=True,  # so that it can be killed with the ranks that it has started
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


# Runs


class StoppedError(Exception):
    pass


def train_until(config: Config, steps: int, **own: Any) -> None:
    """A run that dies at the start of the step after these, as if the machine had."""

    def stop(self: Throughput, trainer, module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        if trainer.global_step == steps:
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_start", stop)
        with pytest.raises(StoppedError):
            train(config, OwnParts(**own))


def whole_and_resumed(system: SmallSystem, folder: Path, words: Sequence[str], steps: int) -> tuple[Path, Path]:
    """The folders of two runs of the same settings: one trained without a stop, one that died after `steps` steps and
    was resumed."""
    whole, broken = folder / "whole" / "run", folder / "broken" / "run"
    for run in (whole, broken):
        run.parent.mkdir()
    train(system.config(whole, *words))
    train_until(system.config(broken, *words), steps)
    resume(broken)
    return whole, broken


def on_two_ranks(commands: Sequence[Sequence[str]], timeout: float = 240) -> None:
    """`openbook` commands one after another in the same two gloo processes: most of what two processes cost is their
    start. Raises AssertionError with what they said where one fails."""
    script = (
        "import os\nfrom openbook.__main__ import main\n"
        f"for words in {[list(words) for words in commands]!r}:\n"
        "    os.environ['OPENBOOK_RUN_DIR'] = ''\n    assert main(words) == 0, words\n"
    )
    ends = ends_of(start_ranks(script, 2), timeout)
    assert [code for code, _ in ends] == [0, 0], "\n".join(said[-3000:] for _, said in ends)


def column(run: Path, name: str) -> dict[int, float]:
    """{step: value} of one column of metrics.csv, empty cells left out."""
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


# An index without a run


def tiny_encoder(seed: int = 0, dropout: float = 0.0) -> TextEncoder:
    """A BERT of 1 layer over 61 ids, random weights; in training mode where it has dropout."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=61,
        hidden_size=DIM,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        initializer_range=0.4,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return TextEncoder(BertModel(config), "mean", normalize=True).train(dropout > 0)


def tiny_tokens(n: int, seed: int = 0) -> PassageTokens:
    """n passages of 3 to 13 random ids, two of them the title."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 14, n)
    return PassageTokens(
        random.integers(4, 61, lengths.sum()).astype(np.uint16),
        np.concatenate([[0], lengths.cumsum()]),
        np.full(n, 2, dtype=np.int32),
    )


def tiny_corpus(n: int = 41, tokens_per_pass: int = 64, seed: int = 0) -> CorpusOptions:
    return CorpusOptions(
        tiny_tokens(n), separated(SpecialIds(1, 2, 3, 0)), 17, f"corpus of {n}", tokens_per_pass, seed=seed
    )


def tiny_retriever(corpus: CorpusOptions, dropout: float = 0.0, rerank: int = 0) -> DenseRetriever:
    passages = PassageEmbedder(tiny_encoder(2, dropout), corpus.tokens, corpus.style, corpus.max_length)
    return DenseRetriever(tiny_encoder(1), passages, temperature=0.5, rerank=rerank)


def nudge(retriever: DenseRetriever, seed: int, by: float = 0.1) -> None:
    """What an optimizer step does to the passage encoder, as far as an index is concerned."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in retriever.passage_encoder.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=draw))
    retriever.passages.cache.outdate()


def tiny_probes(n: int = 11, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask [n, 7] of questions."""
    ids = torch.randint(4, 61, (n, 7), generator=torch.Generator().manual_seed(seed))
    return ids, torch.ones_like(ids, dtype=torch.bool)
