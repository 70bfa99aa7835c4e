"""Encoders that are saved are read back with the same embeddings, here and by sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from openbook.config.models import LoraConfig
from openbook.data.encoder_inputs import encoder_format, question_inputs
from openbook.errors import OpenBookError
from openbook.models.encoder_folder import read_folder
from openbook.models.encoders import TextEncoder, load_encoder, load_tokenizer, save_encoder
from openbook.models.lora import add_adapters
from tests.encoder_families import FAMILIES, Family, texts_of

PROMPTS = {"query": "query: ", "document": "passage: "}
QUESTIONS = ["what is the capital of alpha beta ?", "kappa", "who is the Queen of Mu"]

pytestmark = pytest.mark.filterwarnings("ignore")


def embedded(encoder: TextEncoder, folder: Path) -> torch.Tensor:
    tokenizer = load_tokenizer(str(folder))
    style = encoder_format(tokenizer, "joined", PROMPTS["query"])
    with torch.no_grad():
        return encoder.eval()(*question_inputs(style.question_ids(tokenizer, QUESTIONS), style, 96))


@pytest.mark.parametrize(("projection", "dim"), [(0, 0), (7, 0), (0, 5)])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_is_saved_is_read_back(
    family: Family, projection: int, dim: int, tmp_path: Path, small_data: Path
) -> None:
    source, saved = family.made(tmp_path / "source", texts_of(small_data)), tmp_path / "saved"
    tokenizer = load_tokenizer(str(source))
    left = encoder_format(tokenizer, "joined").pads_left
    more = {"dim": dim, "projection": projection, "pads_left": left}
    encoder = load_encoder(str(source), None, None, 0.0, **more)  # type: ignore[arg-type]
    before = embedded(encoder, source)
    save_encoder(encoder, tokenizer, saved, PROMPTS, "pair")

    stated = read_folder(str(saved))
    again = load_encoder(str(saved), None, None, 0.0, dim=stated.truncate, pads_left=left)
    torch.testing.assert_close(embedded(again, saved), before, atol=1e-6, rtol=0)
    assert (stated.pooling, stated.normalize, stated.layout) == (encoder.pooling, encoder.normalize, "pair")
    assert (stated.prompt(("query",)), stated.prompt(("document",))) == ("query: ", "passage: ")
    torch.testing.assert_close(embedded(encoder, source), before, atol=0, rtol=0)  # saving changed nothing


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_sentence_transformers_reads_it_alike(family: Family, tmp_path: Path, small_data: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    source, saved = family.made(tmp_path / "source", texts_of(small_data)), tmp_path / "saved"
    tokenizer = load_tokenizer(str(source))
    encoder = load_encoder(
        str(source), None, None, 0.0, projection=7, pads_left=encoder_format(tokenizer, "joined").pads_left
    )
    save_encoder(encoder, tokenizer, saved, PROMPTS, "joined")
    theirs = library.SentenceTransformer(str(saved), device="cpu").encode_query(QUESTIONS, convert_to_tensor=True)
    torch.testing.assert_close(theirs, embedded(encoder, source), atol=1e-5, rtol=1e-5)


def test_adapters_are_merged(tmp_path: Path, small_data: Path) -> None:
    pytest.importorskip("peft")
    source, saved = FAMILIES[0].made(tmp_path / "source", texts_of(small_data)), tmp_path / "saved"
    encoder = load_encoder(str(source), None, None, 0.0)
    add_adapters(encoder.model, LoraConfig(rank=2, targets="query"), "retriever.lora", 0)
    for name, value in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.5)
    before = embedded(encoder, source)
    save_encoder(encoder, load_tokenizer(str(source)), saved, PROMPTS, "joined")
    again = load_encoder(str(saved), None, None, 0.0)
    torch.testing.assert_close(embedded(again, saved), before, atol=1e-6, rtol=0)


def test_an_encoder_that_is_no_model_of_its_own_is_refused(tmp_path: Path, small_data: Path) -> None:
    source = FAMILIES[0].made(tmp_path / "source", texts_of(small_data))
    sizes = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 400}
    model = transformers.BartModel(transformers.BartConfig(**sizes, **heads)).get_encoder()
    encoder = TextEncoder(model, "mean", True)
    with pytest.raises(OpenBookError, match="cannot be saved as a folder of its own"):
        save_encoder(encoder, load_tokenizer(str(source)), tmp_path / "saved", PROMPTS, "joined")
    assert not (tmp_path / "saved").exists()
