"""What answers begin with: each model's own convention, with transformers' likelihood of the same labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5ForConditionalGeneration,
)

from openbook.data.inputs import decoder_inputs, special_ids, target_start, targets
from openbook.errors import OpenBookError
from openbook.inference.likelihood import target_logprobs
from openbook.inference.rag_token import greedy, rag_token_beams
from openbook.models.probe import probe_generator
from openbook.models.seq2seq import Seq2SeqGenerator, load_generator
from tests.tiny_models import t5_config

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "en_XX", *(f"w{n}" for n in range(30))]
LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
SIZES = {"vocab_size": len(WORDS), "d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, **LAYERS}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": None, "init_std": 0.4}


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Words between spaces; `template` says what a text stands in."""
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(word, WORDS.index(word)) for word in ("<s>", "</s>", "en_XX")]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["en_XX"],
    )


def made(kind: str) -> tuple[Any, str]:
    """(model, template) of an architecture as it is trained."""
    torch.manual_seed(4)
    start = {"decoder_start_token_id": 2}
    if kind == "bart":
        config = BartConfig(**SIZES, **IDS, **start, max_position_embeddings=64)
        return BartForConditionalGeneration(config), "<s> $A </s>"
    if kind == "mbart":  # mBART-50
        config = MBartConfig(**SIZES, **IDS, **start, max_position_embeddings=64)
        return MBartForConditionalGeneration(config), "en_XX $A </s>"
    if kind == "m2m100":
        config = M2M100Config(**SIZES, **IDS, **start, max_position_embeddings=64)
        return M2M100ForConditionalGeneration(config), "en_XX $A </s>"
    pad_start = {"decoder_start_token_id": 0}
    if kind == "pegasus":
        config = PegasusConfig(**SIZES, **IDS, **pad_start, max_position_embeddings=64)
        return PegasusForConditionalGeneration(config), "$A </s>"
    if kind == "marian":
        config = MarianConfig(**SIZES, **IDS, **pad_start, max_position_embeddings=64)
        return MarianMTModel(config), "$A </s>"
    config = t5_config(len(WORDS), layers=1, d_kv=5, pad_token_id=0, eos_token_id=2)
    return T5ForConditionalGeneration(config), "$A </s>"


def loaded(kind: str, folder: Path) -> tuple[Seq2SeqGenerator, Any]:
    model, template = made(kind)
    model.generation_config.forced_bos_token_id = {"bart": 1, "mbart": 4}.get(kind)
    model.save_pretrained(folder)
    tok = tokenizer(template)
    generator = load_generator(str(folder), 0.0, 0)
    assert isinstance(generator, Seq2SeqGenerator)
    generator.first_token_id = target_start(tok)  # type: ignore[arg-type]
    return generator.eval(), tok


FIRST = {"bart": 1, "mbart": 4, "m2m100": 4, "t5": None, "pegasus": None, "marian": None}


@pytest.mark.parametrize("kind", FIRST)
def test_the_likelihood_is_transformers_loss_on_its_own_labels(kind: str, tmp_path: Path) -> None:
    generator, tok = loaded(kind, tmp_path)
    assert target_start(tok) == FIRST[kind]
    special = special_ids(tok)
    probe_generator(generator, tok, special, max_context=12, max_target=8)
    answers = ["w3 w7 w9", "w4"]
    labels = targets(tok, answers, 10)
    theirs = [tok(text_target=answer)["input_ids"] for answer in answers]
    assert [[token for token in row if token >= 0] for row in labels.tolist()] == theirs
    context = tok(["w1 w2 w5 w6", "w8 w9 w1 w3"], return_tensors="pt")
    ids, mask = context["input_ids"], context["attention_mask"].bool()
    with torch.no_grad():
        ours = target_logprobs(generator, generator.encode(ids, mask), mask, labels[:, None])[:, 0, 0]
        loss = generator.model(input_ids=ids, attention_mask=mask.long(), labels=labels).loss
    assert float(-ours.sum() / (labels >= 0).sum()) == pytest.approx(float(loss), abs=1e-5)
    shifted = decoder_inputs(labels, generator.decoder_start_token_id, generator.pad_token_id)
    assert shifted[:, 0].tolist() == [generator.decoder_start_token_id] * 2


@pytest.mark.parametrize("kind", ["bart", "mbart"])
def test_answers_are_decoded_behind_their_first_token(kind: str, tmp_path: Path) -> None:
    """As transformers' generate does with forced_bos_token_id, greedily and with beams."""
    generator, tok = loaded(kind, tmp_path)
    context = tok(["w1 w2 w5 w6", "w8 w9 w1 w3"], return_tensors="pt")
    ids, mask = context["input_ids"], context["attention_mask"].bool()
    prior = torch.zeros(2, 1)
    for beams in (1, 3):
        theirs = generator.model.generate(
            input_ids=ids, attention_mask=mask.long(), num_beams=beams, max_new_tokens=6, do_sample=False
        )[:, 1:]
        found = [one[0].token_ids for one in rag_token_beams(generator, ids, mask, prior, beams, 6, 0, 1.0)]
        for row, own in zip(theirs.tolist(), found, strict=True):
            assert own[0] == FIRST[kind]
            assert tuple(row)[: len(own)] == own
    greedily = greedy(generator, ids, mask, prior, "rag_token", 6).token_ids
    assert greedily[:, 0].tolist() == [FIRST[kind]] * 2


def test_a_forced_token_that_the_tokenizer_does_not_write_is_refused(tmp_path: Path) -> None:
    generator, _ = loaded("mbart", tmp_path)
    plain = tokenizer("$A </s>")
    generator.first_token_id = target_start(plain)  # type: ignore[arg-type]
    with pytest.raises(OpenBookError, match=r"forces its answers .*got none, expected 4 \('en_XX'\)"):
        probe_generator(generator, plain, special_ids(plain), max_context=12, max_target=8)
