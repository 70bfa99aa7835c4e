"""Models that would train wrongly, or crash in the middle, are refused when they have been loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    LEDConfig,
    LEDForConditionalGeneration,
    LongT5Config,
    LongT5ForConditionalGeneration,
    ProphetNetConfig,
    ProphetNetForConditionalGeneration,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    T5GemmaModuleConfig,
)

from openbook.data.encoder_inputs import encoder_format
from openbook.data.inputs import special_ids
from openbook.errors import OpenBookError
from openbook.models.encoders import load_encoder, load_tokenizer
from openbook.models.probe import freeze_unreached, probe_encoder, probe_generator
from openbook.models.seq2seq import Seq2SeqGenerator, load_generator
from openbook.setup.preflight import check
from tests.small_system import SmallSystem

IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}


def probed(folder: Path, max_context: int = 40, max_target: int = 8) -> Seq2SeqGenerator:
    tokenizer, generator = load_tokenizer(str(folder)), load_generator(str(folder), 0.0, 0)
    probe_generator(generator, tokenizer, special_ids(tokenizer), max_context=max_context, max_target=max_target)
    assert isinstance(generator, Seq2SeqGenerator)
    return generator


def edited(folder: Path, name: str, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def copy(generator_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(generator_folder, tmp_path / "copy")


def test_a_sound_generator_is_left_as_it_was(generator_folder: Path) -> None:
    before = torch.random.get_rng_state()
    generator = probed(generator_folder)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(value.grad is None for value in generator.parameters())


def test_tokens_without_an_embedding(copy: Path) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(copy)
    tokenizer.add_tokens(["quercus"])
    tokenizer.save_pretrained(copy)
    with pytest.raises(OpenBookError, match=r"no embedding for .*'quercus'"):
        probed(copy)


def test_another_end_of_answers(copy: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        edited(copy, name, lambda content: content.update(eos_token_id=[3, 4]))
    assert probed(copy).eos_token_id == 3
    for name in ("config.json", "generation_config.json"):
        edited(copy, name, lambda content: content.update(eos_token_id=4))
    with pytest.raises(OpenBookError, match=r"ends an answer with another token .*got token 3 .*expected 4"):
        probed(copy)


def test_weights_that_are_missing(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.decoder.layers.0.fc1.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(OpenBookError, match=r"weights are missing .*fc1\.weight"):
        probed(copy)


def test_contexts_and_answers_beyond_the_positions(generator_folder: Path) -> None:
    with pytest.raises(OpenBookError, match=r"cannot read contexts of 200 tokens \(data\.max_context_tokens\)"):
        probed(generator_folder, max_context=200)
    with pytest.raises(OpenBookError, match=r"cannot write answers of 200 tokens \(data\.max_target_tokens\)"):
        probed(generator_folder, max_target=200)


def test_a_model_that_cannot_read_a_mask_of_bools(tokenizer_folder: Path, tmp_path: Path) -> None:
    config = LongT5Config(
        vocab_size=120,
        d_model=16,
        d_kv=5,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        local_radius=7,
        encoder_attention_type="transient-global",
        **{**IDS, "decoder_start_token_id": 0},
    )
    LongT5ForConditionalGeneration(config).save_pretrained(tmp_path)
    BertTokenizerFast.from_pretrained(tokenizer_folder).save_pretrained(tmp_path)
    with pytest.raises(OpenBookError, match=r"the model cannot run as it is used here \(generator\.model\)"):
        probed(tmp_path)


def test_logits_that_are_no_linear_head(generator_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model with a soft cap on its logits has them."""
    forward = BartForConditionalGeneration.forward

    def capped(self, *args, **named):  # type: ignore[no-untyped-def]
        output = forward(self, *args, **named)
        output.logits = 2 * torch.tanh(output.logits / 2)
        return output

    monkeypatch.setattr(BartForConditionalGeneration, "forward", capped)
    with pytest.raises(OpenBookError, match=r"its logits are not a linear head's"):
        probed(generator_folder)


def test_weights_in_half_precision_are_loaded_in_full(
    generator_folder: Path, encoder_folder: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    for name, kind, source in (("g", BartForConditionalGeneration, generator_folder), ("e", BertModel, encoder_folder)):
        kind.from_pretrained(source).to(torch.bfloat16).save_pretrained(tmp_path / name)
        BertTokenizerFast.from_pretrained(tokenizer_folder).save_pretrained(tmp_path / name)
    generator = load_generator(str(tmp_path / "g"), 0.0, 0)
    encoder = load_encoder(str(tmp_path / "e"), "mean", True, 0.0)
    for module in (generator, encoder):
        assert {value.dtype for value in module.parameters()} == {torch.float32}  # type: ignore[union-attr]


def test_weights_that_no_answer_depends_on_are_frozen(tokenizer_folder: Path, tmp_path: Path) -> None:
    """LED's global attention; two ranks would wait for its gradient."""
    sizes = {"vocab_size": 120, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "attention_window": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    LEDForConditionalGeneration(LEDConfig(**sizes, **heads, **IDS)).save_pretrained(tmp_path)
    BertTokenizerFast.from_pretrained(tokenizer_folder).save_pretrained(tmp_path)
    generator = load_generator(str(tmp_path), 0.0, 0)
    freeze_unreached(generator, "generator.model")
    frozen = [name for name, value in generator.named_parameters() if not value.requires_grad]  # type: ignore[union-attr]
    assert frozen and all("global" in name for name in frozen)


# Encoders


def roberta(folder: Path, tokenizer_folder: Path) -> Path:
    config = RobertaConfig(
        vocab_size=120,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=32,
        max_position_embeddings=40,
        type_vocab_size=1,
        **{name: IDS[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    )
    RobertaModel(config).save_pretrained(folder)
    BertTokenizerFast.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return folder


def test_positions_that_begin_behind_the_padding(
    small_system: SmallSystem, tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = roberta(tmp_path / "roberta", tokenizer_folder)
    words = [f"retriever.question_encoder={folder}", f"retriever.passage_encoder={folder}"]
    config = small_system.config(tmp_path / "run", *words, "data.max_passage_tokens=40", "data.max_question_tokens=37")
    longer = r"longer than the model reads \(data\.max_passage_tokens\): got 40, expected at most 39"
    with pytest.raises(OpenBookError, match=longer):
        check(config)
    check(small_system.config(tmp_path / "run", *words, "data.max_passage_tokens=39", "data.max_question_tokens=37"))
    tokenizer = load_tokenizer(str(folder))
    encoder = load_encoder(str(folder), "mean", True, 0.0)
    probe = partial(
        probe_encoder, encoder, tokenizer, encoder_format(tokenizer), "retriever.passage_encoder", limit="key"
    )
    probe(longest=39)
    with pytest.raises(OpenBookError, match=r"cannot read 40 tokens \(key\)"):
        probe(longest=40)


def test_weights_in_0_transformer(encoder_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder_folder, tmp_path / "0_Transformer")
    assert load_encoder(str(tmp_path), "mean", True, 0.0).dim == 24


# Folders that transformers cannot read


def test_a_tokenizer_that_cannot_be_read(copy: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (copy / name).unlink(missing_ok=True)
    (copy / "spiece.model").write_bytes(b"no sentencepiece model")
    with pytest.raises(OpenBookError, match=r"the tokenizer cannot be loaded"):
        load_tokenizer(str(copy))


def test_weights_that_are_damaged(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(OpenBookError, match=r"the generator cannot be loaded \(generator\.model\)"):
        load_generator(str(copy), 0.0, 0)
    with pytest.raises(OpenBookError, match=r"the encoder cannot be loaded \(retriever\)"):
        load_encoder(str(copy), "mean", True, 0.0)


# Architectures whose outputs are computed otherwise than they are trained here


def unusual(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "prophetnet":
        parts = {"layers": 1, "attention_heads": 2}
        sides = {f"num_{side}_{part}": n for side in ("encoder", "decoder") for part, n in parts.items()}
        config = ProphetNetConfig(
            vocab_size=120, hidden_size=16, encoder_ffn_dim=24, decoder_ffn_dim=24, **sides, **IDS
        )
        return ProphetNetForConditionalGeneration(config)
    if kind == "t5gemma":  # a soft cap on its logits
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        side = T5GemmaModuleConfig(vocab_size=120, num_key_value_heads=1, head_dim=8, **sizes)
        config = T5GemmaConfig(encoder=side, decoder=side, vocab_size=120)
        for name, value in IDS.items():
            setattr(config, name, value)
        model = T5GemmaForConditionalGeneration(config)
        for value in model.parameters():
            if value.ndim > 1:
                torch.nn.init.normal_(value, std=0.3)
        return model
    bert = BertConfig(vocab_size=120, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=32)
    model = EncoderDecoderModel(config=EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert))
    for name, value in IDS.items():
        setattr(model.config, name, value)
    return model


@pytest.mark.parametrize("kind", ["prophetnet", "t5gemma", "encoder_decoder"])
def test_architectures_that_are_not_known_here_are_refused(kind: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    unusual(kind).save_pretrained(tmp_path)  # type: ignore[operator]
    BertTokenizerFast.from_pretrained(tokenizer_folder).save_pretrained(tmp_path)
    with pytest.raises(OpenBookError, match=r"the model cannot (run as it is|be) used.* \(generator\.model\)"):
        probed(tmp_path)


def test_the_encoder_of_a_sequence_to_sequence_folder(tokenizer_folder: Path, tmp_path: Path) -> None:
    sizes = {"vocab_size": 120, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(**sizes, pad_token_id=0, eos_token_id=3)).save_pretrained(tmp_path)
    BertTokenizerFast.from_pretrained(tokenizer_folder).save_pretrained(tmp_path)
    encoder, tokenizer = load_encoder(str(tmp_path), "mean", True, 0.0), load_tokenizer(str(tmp_path))
    assert encoder.dim == 16
    probe_encoder(encoder, tokenizer, encoder_format(tokenizer), "retriever.passage_encoder", limit="key", longest=40)
