"""Contexts and targets of multilingual generators are those that the tokenizers of transformers write."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    M2M100Tokenizer,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
    PLBartConfig,
    PLBartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from openbook.commands.train import train
from openbook.data.inputs import target_start, targets
from openbook.data.languages import languages_of, set_languages
from openbook.errors import OpenBookError
from openbook.setup import models as setup_models
from openbook.setup.inputs import data as setup_data
from openbook.setup.preflight import check
from tests.small_system import SmallSystem, column

TEXTS = ["what is the capital of that country", "the capital is a large town"] * 20
KINDS = {"mbart50": (MBart50Tokenizer, "en_XX", "fr_XX"), "nllb": (NllbTokenizer, "eng_Latn", "fra_Latn")}


@pytest.fixture(params=[*KINDS, "m2m100"])
def multilingual(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, str, str]:
    if request.param == "m2m100":
        return m2m100(tmp_path), "en", "fr"
    kind, source, target = KINDS[request.param]
    return kind().train_new_from_iterator(TEXTS, vocab_size=320), source, target


def m2m100(folder: Path) -> Any:
    """M2M100 has no tokenizer.json: sentencepiece's file, and the numbers of its pieces beside it."""
    pieces = sentencepiece_file(folder / "sentencepiece.bpe.model")
    vocabulary = {one: number for number, one in enumerate(dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *pieces]))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model"))


def sentencepiece_file(path: Path, **ids: int) -> list[str]:
    """A small model of TEXTS at the path, with these numbers of special pieces; its pieces."""
    sentencepiece = pytest.importorskip("sentencepiece")
    words = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2}
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=file, **words, **ids)
    made = sentencepiece.SentencePieceProcessor(str(path))
    return [made.id_to_piece(number) for number in range(made.get_piece_size())]


def test_contexts_and_targets_are_the_tokenizers_own(multilingual: tuple[Any, str, str]) -> None:
    tokenizer, source, target = multilingual
    assert {source, target} <= set(languages_of(tokenizer)) and "<pad>" not in languages_of(tokenizer)
    start = set_languages(tokenizer, source, target)
    assert [start, tokenizer.eos_token_id] == tokenizer("")["input_ids"]
    written = {"en": "__en__", "fr": "__fr__"}  # M2M100's names of languages and their tokens
    assert tokenizer.convert_ids_to_tokens(start) == written.get(source, source)
    for one in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):  # as workers get it
        assert one.convert_ids_to_tokens(target_start(one)) == written.get(target, target)
        labels = targets(one, ["large town"], 20)[0].tolist()
        assert labels == one(text_target="large town")["input_ids"]
    assert tokenizer("")["input_ids"][0] == start  # writing targets leaves the source as it was


def test_a_folders_own_languages_are_followed_and_said(
    multilingual: tuple[Any, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, source, target = multilingual
    tokenizer.tgt_lang = target
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    set_languages(again, "", "")
    assert again.convert_ids_to_tokens(target_start(again)) in (target, f"__{target}__")
    assert f"contexts begin with the language {source}, answers with {target}" in "".join(capsys.readouterr())


def test_what_is_refused(multilingual: tuple[Any, str, str]) -> None:
    tokenizer, source, target = multilingual
    with pytest.raises(OpenBookError, match=r"none is set \(generator\.target_language\).*as_is"):
        set_languages(tokenizer, source, "")
    with pytest.raises(OpenBookError, match=rf"not know this language \(generator\.target_language\).*{target}"):
        set_languages(tokenizer, source, target[:2] + "_ZZ")
    with pytest.raises(OpenBookError, match=r"as_is for both, or for neither"):
        set_languages(tokenizer, "as_is", target)
    assert set_languages(tokenizer, "as_is", "as_is") is None
    with pytest.raises(OpenBookError, match=r"writes no languages \(generator\.source_language\)"):
        set_languages(T5Tokenizer(), "en", "")


def test_languages_behind_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert set_languages(MBartTokenizer(), "", "") is None
    assert "behind its texts" in "".join(capsys.readouterr())
    with pytest.raises(OpenBookError, match=r"behind its texts, which is not supported"):
        set_languages(MBartTokenizer(), "en_XX", "ro_RO")


def test_a_run_reads_and_answers_in_its_languages(small_system: SmallSystem, tmp_path: Path) -> None:
    """Contexts begin with the source; answers are decoded behind the target; without one nothing is built."""
    tokenizer = MBart50Tokenizer().train_new_from_iterator(TEXTS, vocab_size=320)
    folder = tmp_path / "mbart50"
    tokenizer.save_pretrained(folder)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    wide = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 128}
    end = tokenizer.eos_token_id
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": end, "decoder_start_token_id": end}
    torch.manual_seed(0)
    MBartForConditionalGeneration(MBartConfig(vocab_size=len(tokenizer), **sizes, **wide, **ids)).save_pretrained(
        folder
    )
    words = [f"generator.model={folder}", "data.max_context_tokens=120", "data.max_target_tokens=40"]
    with pytest.raises(OpenBookError, match=r"generator\.target_language"):
        setup_data.parts(small_system.config(tmp_path / "run", *words))
    config = small_system.config(tmp_path / "run", *words, "generator.target_language=fr_XX")
    parts = setup_data.parts(config)
    module: Any = setup_models.rag_module(config, parts)
    contexts, _ = module.answering.contexts(((7, 8), (9,)), torch.tensor([[0, 1], [2, -1]]))
    english, french = tokenizer.convert_tokens_to_ids(["en_XX", "fr_XX"])
    assert contexts[:, 0].tolist() == [english] * 4
    assert module.generator.first_token_id == french
    assert module.answering.targets(["large town"])[0, 0] == french


@pytest.mark.parametrize("kind", ["t5", "plbart"])
def test_a_folder_with_sentencepieces_file_alone_trains(
    kind: str, small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "generator"
    folder.mkdir()
    words = ["data.max_context_tokens=200", "data.max_question_tokens=80", "data.max_target_tokens=32"]
    words += ["trainer.max_steps=2", "data.validation=", "refresh.every=0"]
    system = SmallSystem(small_system.encoder, folder, small_system.data)
    torch.manual_seed(0)
    if kind == "t5":
        sentencepiece_file(folder / "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
        sizes = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 3}
        model: Any = T5ForConditionalGeneration(T5Config(vocab_size=200, decoder_start_token_id=0, **sizes))
    else:
        sentencepiece_file(folder / "sentencepiece.bpe.model")
        sizes = {
            "decoder_start_token_id": 2,
            "d_model": 24,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "max_position_embeddings": 256,
        }
        config = PLBartConfig(vocab_size=200, encoder_attention_heads=3, decoder_attention_heads=3, **sizes)
        model = PLBartForConditionalGeneration(config)
        settings = {"tokenizer_class": "PLBartTokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    model.save_pretrained(folder)
    run = train(system.config(tmp_path / "run", *words))
    assert len(column(run, "train/nll")) == 2 and (run / "predictions.jsonl").read_text()
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sentencepiece" else found(name))
    with pytest.raises(OpenBookError, match=r"sentencepiece is not installed \(generator\.model\)"):
        check(system.config(tmp_path / "other", *words))
