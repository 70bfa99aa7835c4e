"""Bad input gets one clear error through the front door, before any model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from openbook.__main__ import main
from openbook.errors import OpenBookError, raise_all
from openbook.tracking.checkpoint import read_checkpoint
from tests.small_system import SmallSystem


@pytest.fixture
def refused(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs `train` with overrides, sees to it that no model is loaded and no run folder is left, gives the error."""
    monkeypatch.setenv("OPENBOOK_RUN_DIR", "")

    def no_models(*args: object) -> None:
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr("openbook.setup.models.rag_module", no_models)
    monkeypatch.setattr("openbook.setup.prepare.warmed_up", no_models)

    def run(*overrides: str) -> str:
        words = small_system.words(tmp_path / "run", *overrides)
        assert main(["train", *words]) == 2
        assert not (tmp_path / "run").exists()
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        return said

    return run


def lines(path: Path, *contents: object) -> Path:
    path.write_text("".join((c if isinstance(c, str) else json.dumps(c)) + "\n" for c in contents), encoding="utf-8")
    return path


GOOD = {"question": "what is the capital of beta alpha ?", "answers": ["delta"]}


def test_an_unknown_key(refused: Callable[..., str]) -> None:
    assert "Did you mean trainer.max_steps?" in refused("trainer.maxsteps=3")


def test_a_file_that_is_not_there(refused: Callable[..., str]) -> None:
    said = refused("data.train=nowhere.jsonl", "data.corpus=nothing.jsonl")
    assert "2 problems" in said
    assert "no such file (data.train): got nothing at nowhere.jsonl" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ((GOOD, '{"question": "broken'), r"train.jsonl:2"),
        ((GOOD, {"question": "no answers ?"}), r"train.jsonl:2"),
        ((GOOD, {"question": "empty ?", "answers": []}), r"train.jsonl:2"),
        ((), r"empty"),
    ],
)
def test_malformed_questions_are_named_by_line(
    content: tuple[object, ...], said: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    assert said in refused(f"data.train={lines(tmp_path / 'train.jsonl', *content)}")


def test_duplicate_passage_ids(refused: Callable[..., str], tmp_path: Path) -> None:
    passage = {"id": "same", "title": "t", "text": "x"}
    said = refused(f"data.corpus={lines(tmp_path / 'p.jsonl', passage, passage)}")
    assert "same" in said
    assert "p.jsonl" in said


def test_an_empty_corpus(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "empty" in refused(f"data.corpus={lines(tmp_path / 'p.jsonl')}")


def test_more_docs_than_passages(refused: Callable[..., str]) -> None:
    said = refused("retriever.n_docs=38")
    assert "n_docs is larger than the corpus (retriever.n_docs): got 38, expected at most 37" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_that_are_not_there(refused: Callable[..., str]) -> None:
    assert "a GPU was asked for and there is none (trainer.accelerator)" in refused("trainer.accelerator=gpu")
    assert "a GPU index was asked for and there is no GPU (index.device)" in refused("index.device=gpu")


def test_missing_weights(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = refused(f"retriever.question_encoder={tmp_path / 'empty'}", "generator.model=./nowhere")
    assert "not a model folder (retriever.question_encoder)" in said
    assert "no such model folder (generator.model): got ./nowhere" in said
    (tmp_path / "empty" / "config.json").write_text("{}")
    (tmp_path / "empty" / "pytorch_model.bin").write_text("")
    said = refused(f"retriever.passage_encoder={tmp_path / 'empty'}")
    assert "pickled weights are not loaded" in said


def test_a_folder_without_a_tokenizer(refused: Callable[..., str], tmp_path: Path, encoder_folder: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((encoder_folder / name).read_bytes())
    said = refused(f"retriever.question_encoder={bare}")
    assert "the tokenizer is missing (retriever.question_encoder)" in said


def test_limits_beyond_the_models_positions(refused: Callable[..., str]) -> None:
    said = refused("data.max_context_tokens=200", "data.max_passage_tokens=200")
    assert "longer than the model reads (data.max_context_tokens): got 200, expected at most 128" in said
    assert "(data.max_passage_tokens)" in said
    said = refused("decode.max_tokens=200")
    assert "longer than the model reads (decode.max_tokens): got 200, expected at most" in said


def test_warm_up_files_are_looked_at_too(refused: Callable[..., str]) -> None:
    assert "no such file (warmup.questions)" in refused(
        "warmup.steps=3", "warmup.questions=nowhere.jsonl", "generator.model=minilm"
    )


def test_a_family_too_large_for_the_corpus(refused: Callable[..., str]) -> None:
    assert "the corpus is too small for the index family (index.factory)" in refused("index.factory=IVF64,Flat")


def test_a_factory_string(refused: Callable[..., str]) -> None:
    assert "not a FAISS factory string (index.factory): got 'Flatt'" in refused("index.factory=Flatt")


def test_a_question_longer_than_the_limit(refused: Callable[..., str]) -> None:
    assert "a question is longer than the limit" in refused("data.max_question_tokens=4")


def test_a_warm_up_for_a_generator_of_ones_own(refused: Callable[..., str]) -> None:
    assert "the warm-up is for the small reader (warmup.steps)" in refused("warmup.steps=3")


def test_commands_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "`train` needs an experiment" in capsys.readouterr().err
    assert main(["resume", "runs/nothing"]) == 2
    assert "not a run folder (runs/nothing)" in capsys.readouterr().err


def test_a_missing_and_a_damaged_checkpoint_name_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"global_step": 3}, tmp_path / "best.ckpt")
    with pytest.raises(OpenBookError, match=r"no such checkpoint.*Newest others there: best\.ckpt"):
        read_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "best.ckpt").read_bytes()[:100])
    with pytest.raises(OpenBookError, match=r"damaged.*Newest others there: best\.ckpt"):
        read_checkpoint(tmp_path / "last.ckpt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(OpenBookError, match="could execute code"):
        read_checkpoint(tmp_path / "best.ckpt")


def test_an_error_is_one_sentence_of_what_where_got_expected_and_next() -> None:
    error = OpenBookError("bad thing", where="file:3", got="x", expected="y", action="Do z.")
    assert str(error) == "bad thing (file:3): got x, expected y. Do z."
    assert str(OpenBookError("bad thing")) == "bad thing."
    raise_all([])
    with pytest.raises(OpenBookError, match=r"2 problems\n  1\. bad thing.*\n  2\. bad thing"):
        raise_all([error, error])
