"""Tiny encoder-decoders of every architecture that docs/models.md lists, by transformers' own classes with random
weights, beside a tokenizer that writes texts as the architecture is trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

MARKS = ["<pad>", "<s>", "</s>", "<unk>", "en_XX"]
WORDS = [*MARKS, *(f"w{n}" for n in range(30))]
PAD, BOS, EOS, LANGUAGE = 0, 1, 2, 4

_LAYERS = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
_BART = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64, **_LAYERS}
_T5 = {"d_model": 16, "d_kv": 5, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
_LED = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64, "attention_window": 4}
_BIRD = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}


@dataclass(frozen=True)
class Family:
    """An architecture as it is trained. name, example: of docs/models.md. prefix: of transformers' classes. start: what
    the decoder reads first; template: of a target; first: the token that every answer begins with."""

    name: str
    example: str
    prefix: str
    start: int
    template: str
    sizes: dict[str, Any] = field(default_factory=lambda: _BART)
    first: int | None = None

    def made(self, folder: Path, seed: int = 7, words: Sequence[str] = WORDS) -> Path:
        """words: what it can read and write, MARKS first."""
        torch.manual_seed(seed)
        ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": self.start}
        config = getattr(transformers, f"{self.prefix}Config")(
            vocab_size=len(words), **self.sizes, **ids, forced_eos_token_id=None
        )
        kind = "MTModel" if self.prefix == "Marian" else "ForConditionalGeneration"
        model = getattr(transformers, self.prefix + kind)(config)
        for value in model.parameters():  # far enough from nothing for contexts to decide what is written
            if value.ndim > 1:
                torch.nn.init.normal_(value, std=0.4)
        model.generation_config.forced_bos_token_id = self.first
        model.save_pretrained(folder)
        tokenizer(self.template, words).save_pretrained(folder)
        return folder


FAMILIES = (
    Family("BART", "facebook/bart-base", "Bart", EOS, "<s> $A </s>", first=BOS),
    Family("mBART-50", "facebook/mbart-large-50", "MBart", EOS, "en_XX $A </s>", first=LANGUAGE),
    Family("M2M100, NLLB", "facebook/nllb-200-distilled-600M", "M2M100", EOS, "en_XX $A </s>", first=LANGUAGE),
    Family("Pegasus", "google/pegasus-xsum", "Pegasus", PAD, "$A </s>"),
    Family("BigBird-Pegasus", "google/bigbird-pegasus-large-arxiv", "BigBirdPegasus", EOS, "$A </s>", _BART | _BIRD),
    Family("Marian", "Helsinki-NLP/opus-mt-en-de", "Marian", PAD, "$A </s>"),
    Family("LED", "allenai/led-base-16384", "LED", EOS, "<s> $A </s>", _BART | _LED, BOS),
    Family("PLBart", "uclanlp/plbart-base", "PLBart", EOS, "$A </s>"),
    Family("Blenderbot", "facebook/blenderbot-400M-distill", "Blenderbot", BOS, "$A </s>"),
    Family("T5, FLAN-T5", "google/flan-t5-base", "T5", PAD, "$A </s>", _T5),
    Family("mT5", "google/mt5-base", "MT5", PAD, "$A </s>", _T5),
    Family("UMT5", "google/umt5-base", "UMT5", PAD, "$A </s>", _T5),
)


def tokenizer(template: str, words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """Words between spaces; `template` says what a text stands in."""
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(word, MARKS.index(word)) for word in ("<s>", "</s>", "en_XX")]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["en_XX"],
    )
