"""Tiny decoder-only models of transformers' own classes with random weights, and byte-level BPE for them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 331
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
}
GQA = SIZES | {"num_key_value_heads": 2}
SMALL_WINDOW = ["sliding_attention", "full_attention"]
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**GQA),
    "smollm": lambda: LlamaConfig(**GQA, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**GQA),
    "qwen3": lambda: Qwen3Config(**GQA, head_dim=8, tie_word_embeddings=True),
    "qwen3_windowed": lambda: Qwen3Config(
        **GQA, head_dim=8, use_sliding_window=True, sliding_window=5, layer_types=SMALL_WINDOW
    ),
    "mistral": lambda: MistralConfig(**GQA, head_dim=6, sliding_window=5),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3, n_inner=40
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES),
    "phi": lambda: PhiConfig(**GQA),
    "phi3": lambda: Phi3Config(**GQA, pad_token_id=0),
    "gemma": lambda: GemmaConfig(**GQA, head_dim=6),
    "gemma3": lambda: Gemma3TextConfig(**GQA, head_dim=6, sliding_window=5, layer_types=SMALL_WINDOW),
}


def causal_model(family: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]())
    for value in model.parameters():  # norms and biases that start as 1 or 0 would hide mistakes
        if value.ndim == 1:
            value.data += 0.2 * torch.randn_like(value)
    return model.eval()


def bpe_tokenizer(texts: Iterable[str], vocab: int = VOCAB, chat: bool = False, pad: bool = True) -> Any:
    """Byte-level BPE, trained on the texts; the end-of-sequence is <|im_end|> where there is a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>" if chat else "<|endoftext|>",
        pad_token="<|pad|>" if pad else None,
        chat_template=CHATML if chat else None,
    )


def causal_folder(folder: Path, data: Path, family: str = "llama", chat: bool = False, pad: bool = True) -> Path:
    """A model with its tokenizer, trained on the passages and questions of a folder of data."""
    texts = [line for file in sorted(data.glob("*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines()]
    tokenizer = bpe_tokenizer(texts, chat=chat, pad=pad)
    model = causal_model(family)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
