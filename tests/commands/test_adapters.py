"""Runs that train adapters alone: their checkpoints, their resumption, and the plain models they become."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openbook.commands.api import load_run
from openbook.commands.train import resume, train
from openbook.errors import OpenBookError
from openbook.setup.preflight import check
from openbook.tracking.checkpoint import read_checkpoint
from tests.decoder_only import causal_folder, causal_model
from tests.small_system import SmallSystem, column, on_two_ranks, train_until, whole_and_resumed

pytestmark = pytest.mark.filterwarnings("ignore")
ADAPTERS = ("generator.lora.rank=4", "generator.lora.dropout=0.2", "retriever.lora.rank=2")
SHORT = ("data.max_context_tokens=120", "trainer.validate_every=0", "data.validation=", "evaluate.bootstrap=0")


@pytest.fixture(scope="module")
def causal(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal_folder(tmp_path_factory.mktemp("causal"), small_data, family="smollm")


def test_checkpoints_resumption_and_merged_models(small_system: SmallSystem, causal: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    words = [f"generator.model={causal}", *ADAPTERS, *SHORT, "trainer.max_steps=10", "refresh.mode=amortized"]
    words += ["refresh.every=4", "refresh.spread=3", "evaluate.before_training=false"]
    whole, broken = whole_and_resumed(small_system, tmp_path, words, 7)  # in the middle of a refresh
    nll = list(column(whole, "train/nll").values())
    assert sum(nll[-3:]) < 0.9 * sum(nll[:3])
    assert column(whole, "train/nll") == column(broken, "train/nll")
    contents = [read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, broken)]
    states = [content["state_dict"] for content in contents]
    assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert all(".lora_" in name or name.endswith("base_fingerprint") for name in states[0])
    sides = ("generator.", "retriever.question_encoder.", "retriever.passage_encoder.")
    assert all(any(name.startswith(side) for name in states[0]) for side in sides)
    trained = sorted(tuple(value.shape) for name, value in states[0].items() if ".lora_" in name)
    moments = contents[0]["optimizer_states"][0]["state"].values()
    assert sorted(tuple(one["exp_avg"].shape) for one in moments) == trained
    assert (whole / "predictions.jsonl").read_bytes() == (broken / "predictions.jsonl").read_bytes()

    folder = load_run(whole).save_models(tmp_path / "models")
    assert not any("lora" in name for name in load_file(folder / "generator" / "model.safetensors"))
    plain = tmp_path / "plain" / "run"
    plain.parent.mkdir()
    sides_of = [f"retriever.{side}={folder / side}" for side in ("question_encoder", "passage_encoder")]
    still = [f"optim.lr_{part}=1e-12" for part in ("generator", "question_encoder", "passage_encoder")]
    more = [*still, "trainer.max_steps=1", "evaluate.before_training=false"]
    train(small_system.config(plain, f"generator.model={folder / 'generator'}", *sides_of, *SHORT, *more))
    one, other = ([json.loads(line) for line in (run / "predictions.jsonl").open()] for run in (whole, plain))
    for name in ("id", "prediction", "hits"):
        assert [each[name] for each in one] == [each[name] for each in other]
    for name in ("logprob", "gold_logprob", "closed_book_logprob"):
        assert [each[name] for each in one] == pytest.approx([each[name] for each in other], abs=1e-4)


def test_a_resumed_run_refuses_another_base(small_system: SmallSystem, small_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = causal_folder(tmp_path / "causal", small_data, family="smollm")
    words = [f"generator.model={folder}", *ADAPTERS, *SHORT, "evaluate.before_training=false"]
    train_until(small_system.config(tmp_path / "run", *words), 3)
    model = causal_model("smollm", seed=8)
    model.config.eos_token_id, model.config.pad_token_id = 0, 1
    model.save_pretrained(folder)
    with pytest.raises(OpenBookError, match="the adapters belong to other weights"):
        resume(tmp_path / "run")


def test_two_ranks_train_adapters_as_one_process_does(small_system: SmallSystem, causal: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    words = [f"generator.model={causal}", "generator.lora.rank=4", "retriever.lora.rank=2", *SHORT]
    words += ["trainer.max_steps=3", "refresh.every=2"]
    ranks = ["trainer.devices=2", "trainer.batch_size=2", "evaluate.batch_size=2"]
    on_two_ranks([["train", *small_system.words(tmp_path / "ranks", *words, *ranks)]])
    train(small_system.config(tmp_path / "one", *words))
    for name in ("train/nll", "train/grad_norm"):
        one, two = (column(tmp_path / run, name) for run in ("one", "ranks"))
        assert len(one) == 3 and one == pytest.approx(two, rel=1e-3)


def test_what_is_not_installed(
    small_system: SmallSystem, causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = [f"generator.model={causal}", "generator.lora.rank=4", "generator.quantize=4bit", *SHORT]
    with pytest.raises(OpenBookError) as problem:
        check(small_system.config(tmp_path / "run", *words))
    assert "peft is not installed (generator.lora.rank)" in str(problem.value)
    assert "bitsandbytes is not installed (generator.quantize)" in str(problem.value)
    assert "weights of 4 bits change on a CPU" in str(problem.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generator.lora.rank=4", "generator.model=minilm"], "the small reader has no adapters"),
        (["generator.quantize=8bit"], "quantised weights cannot be trained"),
        (
            [
                "retriever.lora.rank=4",
                "retriever.train_question_encoder=false",
                "retriever.train_passage_encoder=false",
            ],
            "no encoder is trained that could have adapters",
        ),
        (["retriever.lora.rank=4", "objective=closed_book"], "no encoder is trained that could have adapters"),
    ],
)
def test_settings_that_contradict_each_other(
    words: list[str], said: str, small_system: SmallSystem, tmp_path: Path
) -> None:
    with pytest.raises(OpenBookError, match=said):
        small_system.config(tmp_path / "run", *words)
