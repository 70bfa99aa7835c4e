"""Every kind of generator under both likelihoods, in one process and on two ranks: trained, evaluated, resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.commands.evaluate import evaluate
from openbook.commands.train import train
from openbook.models.small_reader.layers import ReaderConfig
from openbook.models.small_reader.model import MiniLMReader
from openbook.tracking.checkpoint import read_checkpoint
from tests.decoder_only import causal_folder
from tests.small_system import SmallSystem, column, on_two_ranks, whole_and_resumed

pytestmark = pytest.mark.filterwarnings("ignore")
OBJECTIVES = ("rag_token", "rag_sequence")
SHORT = (
    "trainer.max_steps=3",
    "trainer.validate_every=0",
    "data.validation=",
    "refresh.every=2",
    "evaluate.bootstrap=0",
)


@pytest.fixture(scope="module")
def causal(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal_folder(tmp_path_factory.mktemp("causal"), small_data)


@pytest.fixture(scope="module")
def chat(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal_folder(tmp_path_factory.mktemp("chat"), small_data, family="qwen3", chat=True)


def test_a_decoder_only_generator_learns_and_resumes_bitwise(
    small_system: SmallSystem, chat: Path, tmp_path: Path
) -> None:
    words = [
        *(f"generator.model={chat}", "data.max_context_tokens=120", "trainer.max_steps=12", "refresh.every=4"),
        *("trainer.checkpoint_every=2", "trainer.validate_every=6", "evaluate.before_training=false"),
    ]
    whole, broken = whole_and_resumed(small_system, tmp_path, words, 7)
    nll = list(column(whole, "train/nll").values())
    assert sum(nll[-3:]) < 0.7 * sum(nll[:3])
    for name in ("train/nll", "validation/f1", "train/grad_norm"):
        assert column(whole, name) == column(broken, name) != {}
    one, other = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (whole, broken))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert (whole / "predictions.jsonl").read_bytes() == (broken / "predictions.jsonl").read_bytes()
    first = json.loads((whole / "predictions.jsonl").read_text().splitlines()[0])
    assert first["passages"] and first["gold_logprob"] < 0 and first["closed_book_logprob"] < 0
    again = json.loads(evaluate(whole).read_text())["test"]
    assert again == json.loads((whole / "summary.json").read_text())["test"]


# The matrix


@pytest.fixture(scope="module")
def small_reader(encoder_folder: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(encoder_folder, tmp_path_factory.mktemp("small_reader"), dirs_exist_ok=True)
    shutil.copy(tokenizer_folder / "vocab.txt", folder)
    layers = ReaderConfig(encoder_layers=(0,), decoder_layers=(1,))
    MiniLMReader.from_minilm(folder, seed=0, config=layers).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def on_ranks(
    small_system: SmallSystem, small_reader: Path, causal: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], tuple[SmallSystem, Path, list[str]]]:
    """Every generator under both objectives, trained on two ranks one after another in the same two processes."""
    generators = {"small": small_reader, "seq2seq": small_system.generator, "decoder_only": causal}
    runs, commands = {}, []
    for kind, generator in generators.items():
        for objective in OBJECTIVES:
            folder, system = tmp_path_factory.mktemp("matrix"), replace(small_system, generator=generator)
            words = [*SHORT, f"objective={objective}", "data.max_context_tokens=120"]
            ranks = ["trainer.devices=2", "trainer.batch_size=2", "evaluate.batch_size=2"]
            commands.append(["train", *system.words(folder / "ranks", *words, *ranks)])
            runs[kind, objective] = (system, folder, words)
    on_two_ranks(commands)
    return runs


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", ["small", "seq2seq", "decoder_only"])
def test_two_ranks_train_as_one_process_does(kind: str, objective: str, on_ranks: dict[Any, Any]) -> None:
    system, folder, words = on_ranks[kind, objective]
    train(system.config(folder / "one", *words))
    for name in ("train/nll", "train/grad_norm"):
        one, two = (column(folder / run, name) for run in ("one", "ranks"))
        assert len(one) == 3
        assert one == pytest.approx(two, rel=1e-3)
        assert one[min(one)] == pytest.approx(two[min(two)], rel=1e-5)  # before AdamW has divided by small numbers
    one, two = (json.loads((folder / run / "summary.json").read_text())["test"] for run in ("one", "ranks"))
    assert one["n_questions"] == two["n_questions"] == 7
    answers = [
        [json.loads(line)["prediction"] for line in (folder / run / "predictions.jsonl").read_text().splitlines()]
        for run in ("one", "ranks")
    ]
    assert answers[0] == answers[1]


# Drawn answers


def test_two_ranks_draw_the_answers_of_one_process(small_system: SmallSystem, tmp_path: Path) -> None:
    drawn = {}
    for name, more in (("one", []), ("ranks", ["trainer.devices=2", "trainer.batch_size=2", "evaluate.batch_size=3"])):
        rates = [f"optim.lr_{part}=1e-12" for part in ("generator", "question_encoder", "passage_encoder")]
        words = small_system.words(tmp_path / name, *SHORT, *rates, "decode.sample=true", "trainer.max_steps=1", *more)
        on_two_ranks([["train", *words]]) if more else train(small_system.config(tmp_path / name, *words[1:]))
        lines = (tmp_path / name / "predictions.jsonl").read_text().splitlines()
        drawn[name] = [(one["id"], one["prediction"]) for one in map(json.loads, lines)]
    assert drawn["one"] == drawn["ranks"] and len(drawn["one"]) == 7
    assert len({answer for _, answer in drawn["one"]}) > 4
