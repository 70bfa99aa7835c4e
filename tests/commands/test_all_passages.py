"""Runs whose generator reads all passages at once: every teacher and kind of generator, on two ranks too; what cannot
be is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from openbook.commands.evaluate import evaluate
from openbook.commands.exchange.export import export
from openbook.commands.train import train
from openbook.commands.trained.ask import _tested
from openbook.commands.trained.serve import load
from openbook.config.rules.combinations import TEACHERS
from openbook.errors import OpenBookError
from openbook.exchange.settings import read_settings
from openbook.models.small_reader.layers import ReaderConfig
from openbook.models.small_reader.model import MiniLMReader
from openbook.serving.current import Source
from openbook.serving.served import HowToAnswer
from openbook.tracking.checkpoint import read_checkpoint
from openbook.tracking.run_folder import RunFolder
from tests.commands.test_exchange import AS_RAG
from tests.decoder_only import causal_folder
from tests.small_system import SmallSystem, column, on_two_ranks, whole_and_resumed
from tests.training.test_accumulate import same_gradients

pytestmark = pytest.mark.filterwarnings("ignore")
ALL = "generator.reads=all"
SHORT = ("data.max_question_tokens=30", "data.max_context_tokens=64", "evaluate.before_training=false")


@pytest.fixture(scope="module")
def folders(
    generator_folder: Path,
    encoder_folder: Path,
    tokenizer_folder: Path,
    small_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    small = shutil.copytree(encoder_folder, tmp_path_factory.mktemp("small_reader"), dirs_exist_ok=True)
    shutil.copy(tokenizer_folder / "vocab.txt", small)
    MiniLMReader.from_minilm(small, seed=0, config=ReaderConfig((0,), (1,))).save_pretrained(small)
    causal = causal_folder(tmp_path_factory.mktemp("causal"), small_data)
    return {"bart": generator_folder, "small reader": small, "decoder only": causal}


@pytest.mark.parametrize("kind", ["bart", "small reader", "decoder only"])
@pytest.mark.parametrize("objective", TEACHERS)
def test_a_run_learns_is_resumed_and_evaluated(
    small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path, kind: str, objective: str
) -> None:
    if (kind, objective) == ("decoder only", "attention_distillation"):
        pytest.skip("refused, see below")
    words = [ALL, f"objective={objective}", f"generator.model={folders[kind]}", *SHORT]
    whole, broken = whole_and_resumed(small_system, tmp_path, words, 3)
    for name in ("train/nll", "train/loss", "validation/f1", "train/posterior_entropy"):
        assert column(whole, name) == column(broken, name) != {}
    one, other = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
    predictions = [json.loads(line) for line in (whole / "predictions.jsonl").read_text().splitlines()]
    assert all(one["passages"] and one["gold_logprob"] < 0 and one["closed_book_logprob"] < 0 for one in predictions)
    for one in predictions:
        assert sum(passage["posterior"] for passage in one["passages"]) == pytest.approx(1, abs=1e-5)
    again = json.loads(evaluate(whole).read_text())["test"]
    assert again == json.loads((whole / "summary.json").read_text())["test"]


def test_the_generator_alone_learns_beside_frozen_encoders(small_system: SmallSystem, tmp_path: Path) -> None:
    frozen = [f"retriever.train_{side}_encoder=false" for side in ("question", "passage")]
    train(small_system.config(tmp_path / "run", ALL, "objective=generator_only", *frozen, "trainer.max_steps=12"))
    nll = list(column(tmp_path / "run", "train/nll").values())
    assert sum(nll[-3:]) < 0.8 * sum(nll[:3])


def test_a_run_is_asked_drawn_from_and_exported_as_what_it_is(small_system: SmallSystem, tmp_path: Path) -> None:
    """An encoder-decoder and encoders that could be transformers' RAG, but for what the generator reads."""
    words = [ALL, "objective=attention_distillation", *AS_RAG, "decode.sample=true", "trainer.max_steps=1"]
    run = train(small_system.config(tmp_path / "run", *words, "evaluate.before_training=false", "data.validation="))
    out = export(run, tmp_path / "out")
    assert "`rag`: the generator reads all passages at once" in (out / "README.md").read_text()
    assert not (out / "config.json").exists() and (out / "generator/config.json").is_file()
    assert read_settings(out)["generator.reads"] == "all"
    served = load(Source(str(run)))
    drawn = [json.loads(line)["prediction"] for line in (run / "predictions.jsonl").read_text().splitlines()]
    questions = [json.loads(line) for line in (small_system.data / "test.jsonl").read_text().splitlines()]
    asked = served.answer([one["question"] for one in questions], ids=[one["id"] for one in questions])
    assert [one.prediction for one in asked] == drawn
    for objective in ("rag_token", "rag_sequence"):
        with pytest.raises(OpenBookError, match=r"reads all passages at once and has no marginal over them"):
            served.answer(["who ?"], HowToAnswer(objective))  # type: ignore[arg-type]
    assert _tested(RunFolder(run).load_config([], training=False))["objective"] == "all_passages"


def test_a_question_without_passages_has_no_likelihood(small_system: SmallSystem, tmp_path: Path) -> None:
    frozen = [f"retriever.train_{side}_encoder=false" for side in ("question", "passage")]
    test = tmp_path / "test.jsonl"
    lines = (small_system.data / "test.jsonl").read_text().splitlines()
    strange = json.loads(lines[0]) | {"id": "strange", "question": "who ?"}
    test.write_text("\n".join([*lines[1:4], json.dumps(strange)]) + "\n")
    words = [ALL, "objective=generator_only", "retriever.kind=bm25", *frozen, f"data.test={test}", "data.validation="]
    run = train(small_system.config(tmp_path / "run", *words, "trainer.max_steps=1", "evaluate.before_training=false"))
    found = {one["id"]: one for one in map(json.loads, (run / "predictions.jsonl").read_text().splitlines())}
    assert found["strange"]["passages"] == [] and found["strange"]["gold_logprob"] is None
    assert all(one["gold_logprob"] < 0 for name, one in found.items() if name != "strange")


def test_two_ranks_train_as_one(small_system: SmallSystem, tmp_path: Path) -> None:
    words = [ALL, "objective=emdr2", "trainer.max_steps=1", "trainer.validate_every=0", "data.validation="]
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    for run in (one, two):
        run.parent.mkdir()
    train(small_system.config(one, *words))
    on_two_ranks([["train", *small_system.words(two, *words, "trainer.batch_size=2", "trainer.devices=2")]])
    for step, value in column(one, "train/nll").items():
        assert column(two, "train/nll")[step] == pytest.approx(value, abs=2e-4)
    same_gradients(one, two)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([ALL, "objective=rag_token"], "has no marginal over them"),
        (["objective=attention_distillation"], "reads all passages at once"),
        ([ALL, "objective=generator_only"], "nothing teaches the encoders"),
        ([ALL, "objective=emdr2", "retriever.n_docs=1"], "no training signal"),
    ],
)
def test_what_cannot_be_is_refused(small_system: SmallSystem, tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(OpenBookError, match=said):
        train(small_system.config(tmp_path / "run", *words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["objective=attention_distillation"], "no cross-attention"),
        (["objective=emdr2", "generator.prompt={title} {question} {passage} = {answer}"], "several passages"),
        (["objective=emdr2", "retriever.n_docs=30"], "so many passages at once"),
    ],
)
def test_what_a_prompt_cannot_hold_is_refused(
    small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path, words: list[str], said: str
) -> None:
    with pytest.raises(OpenBookError, match=said):
        train(small_system.config(tmp_path / "run", ALL, f"generator.model={folders['decoder only']}", *SHORT, *words))
