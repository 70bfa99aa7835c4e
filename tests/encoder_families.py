"""Tiny encoders of every family that is tested, saved as their makers save them: transformers' own classes with random
weights, tokenizers trained here, and the files that sentence-transformers writes beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 24, "intermediate_size": 40}


@dataclass(frozen=True)
class Family:
    """What a folder of the family holds, and the lines of YAML that docs/models.md gives for it.

    model: a class of transformers. tokenizer: another, or a function of texts. pooling: sentence-transformers' word for
    it, None for a folder without its files. yaml: what has to be set under `retriever:`. example: published encoders.
    """

    name: str
    example: str
    model: str
    config: str
    tokenizer: str | Callable[[list[str]], Any]
    sizes: dict[str, Any] = field(default_factory=dict)
    pooling: str | None = None
    normalize: bool = False
    dense: int = 0
    prompts: dict[str, str] = field(default_factory=dict)
    yaml: dict[str, str] = field(default_factory=dict)

    def made(self, folder: Path, texts: list[str], seed: int = 0) -> Path:
        """The folder, with weights that fit a tokenizer trained on these texts."""
        if callable(self.tokenizer):
            tokenizer = self.tokenizer(texts)
        else:
            tokenizer = getattr(transformers, self.tokenizer)().train_new_from_iterator(texts, vocab_size=400)
        tokenizer.save_pretrained(folder)
        torch.manual_seed(seed)
        sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **SIZES, **self.sizes}
        model = getattr(transformers, self.model)(getattr(transformers, self.config)(**sizes)).eval()
        for value in model.parameters():
            if value.ndim > 1:
                torch.nn.init.normal_(value, std=0.2)
        model.save_pretrained(folder)
        if self.pooling:
            return self._modules(folder, int(model.config.hidden_size))
        return folder

    def _modules(self, folder: Path, dim: int) -> Path:
        """By sentence-transformers itself, so that the files are what it writes."""
        library = pytest.importorskip("sentence_transformers")
        kinds = pytest.importorskip("sentence_transformers.models")
        parts = [kinds.Transformer(str(folder), max_seq_length=96), kinds.Pooling(dim, self.pooling)]
        if self.dense:
            parts.append(kinds.Dense(dim, self.dense, bias=True, activation_function=torch.nn.Tanh()))
        if self.normalize:
            parts.append(kinds.Normalize())
        whole = library.SentenceTransformer(modules=parts, prompts=self.prompts, device="cpu")
        whole.save(str(folder), create_model_card=False)
        return folder


def byte_level(start: str, end: str, pad: str, left: bool = False) -> Callable[[list[str]], Any]:
    """A byte-level BPE with a template of its own, as ModernBERT's and Qwen3-Embedding's are."""

    def trained(texts: list[str]) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        special = list(dict.fromkeys([pad, start or pad, end, "<|im_end|>"]))
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        backend.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
        )
        first = f"{start} " if start else ""
        pair = f"{first}$A {end} $B {end}" if start else f"$A $B {end}"
        ids = [(token, backend.token_to_id(token)) for token in special]
        backend.post_processor = processors.TemplateProcessing(single=f"{first}$A {end}", pair=pair, special_tokens=ids)
        names = {"cls_token": start, "sep_token": end} if start else {"eos_token": "<|im_end|>"}
        side = "left" if left else "right"
        return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, padding_side=side, **names)

    return trained


def mpnet(texts: list[str]) -> Any:
    """Positions count from padding's number, which the model takes to be 1 as in the published vocabulary."""
    found = transformers.MPNetTokenizer().train_new_from_iterator(texts, vocab_size=400).get_vocab()
    first = ["<s>", "<pad>", "</s>", "[UNK]"]
    words = [*first, *sorted(set(found) - set(first), key=found.__getitem__)]
    return transformers.MPNetTokenizer(vocab={word: number for number, word in enumerate(words)})


INSTRUCTION = "Instruct: find the passage that answers\nQuery:"
_ROTARY = {"num_key_value_heads": 1, "head_dim": 12, "max_position_embeddings": 256}
_T5 = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3, "dropout_rate": 0.1}

FAMILIES = (
    Family(
        *("BERT, cls", "Snowflake/snowflake-arctic-embed-m", "BertModel", "BertConfig", "BertTokenizer"),
        pooling="cls",
        normalize=True,
        prompts={"query": "represent this sentence for searching : "},
    ),
    Family(
        *("BERT, prefixes", "intfloat/e5-base-v2", "BertModel", "BertConfig", "BertTokenizer"),
        pooling="mean",
        normalize=True,
        yaml={"question_prefix": "query: ", "passage_prefix": "passage: "},
    ),
    Family(
        *("RoBERTa", "sentence-transformers/all-distilroberta-v1", "RobertaModel", "RobertaConfig", "RobertaTokenizer"),
        sizes={"max_position_embeddings": 134},
        pooling="mean",
        normalize=True,
    ),
    Family(
        *("XLM-R", "intfloat/multilingual-e5-base", "XLMRobertaModel", "XLMRobertaConfig", "XLMRobertaTokenizer"),
        sizes={"max_position_embeddings": 134},
        pooling="mean",
        normalize=True,
        yaml={"question_prefix": "query: ", "passage_prefix": "passage: "},
    ),
    Family(
        *("MPNet", "sentence-transformers/multi-qa-mpnet-base-dot-v1", "MPNetModel", "MPNetConfig"),
        mpnet,
        sizes={"max_position_embeddings": 134},
        pooling="cls",
    ),
    Family(
        *("ModernBERT", "Alibaba-NLP/gte-modernbert-base", "ModernBertModel", "ModernBertConfig"),
        byte_level("[CLS]", "[SEP]", "[PAD]"),
        sizes={
            "local_attention": 8,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "global_attn_every_n_layers": 2,
        },
        pooling="cls",
        normalize=True,
    ),
    Family(
        *("DeBERTa", "microsoft/deberta-v3-base", "DebertaV2Model", "DebertaV2Config", "DebertaV2Tokenizer"),
        sizes={"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
        yaml={"pooling": "mean"},
    ),
    Family(
        *("T5, Dense", "sentence-transformers/gtr-t5-base", "T5EncoderModel", "T5Config", "T5Tokenizer"),
        sizes=_T5,
        pooling="mean",
        normalize=True,
        dense=16,
    ),
    Family(
        *("Qwen3", "Qwen/Qwen3-Embedding-0.6B", "Qwen3Model", "Qwen3Config"),
        byte_level("", "<|endoftext|>", "<|endoftext|>", left=True),
        sizes=_ROTARY,
        pooling="lasttoken",
        normalize=True,
        prompts={"query": INSTRUCTION, "document": ""},
    ),
    Family(
        *("Gemma3", "google/embeddinggemma-300m", "Gemma3TextModel", "Gemma3TextConfig"),
        byte_level("<bos>", "<eos>", "<pad>"),
        sizes={**_ROTARY, "sliding_window": 8, "use_bidirectional_attention": True, "query_pre_attn_scalar": 12},
        pooling="mean",
        normalize=True,
        dense=20,
        prompts={"query": "search query: ", "passage": "passage: "},
    ),
    Family(
        *("Llama", "a decoder without sentence-transformers' files", "LlamaModel", "LlamaConfig"),
        byte_level("", "<|endoftext|>", "<|endoftext|>"),
        sizes=_ROTARY,
        yaml={"question_prefix": INSTRUCTION},
    ),
    Family(
        *("DPR", "facebook/dpr-question_encoder-single-nq-base", "DPRQuestionEncoder", "DPRConfig", "BertTokenizer"),
        yaml={"passage_encoder": "facebook/dpr-ctx_encoder-single-nq-base"},
    ),
    Family(
        *("DPR, projection", "a DPR trained with projection_dim", "DPRContextEncoder", "DPRConfig", "BertTokenizer"),
        sizes={"projection_dim": 14},
    ),
)


def passages_of(data: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (data / "passages.jsonl").read_text(encoding="utf-8").splitlines()]


def texts_of(data: Path) -> list[str]:
    """What the tokenizers are trained on."""
    questions = [
        json.loads(line)["question"] for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    prefixes = ["query: passage: represent this sentence for searching : Instruct: find the passage that answers"]
    return [f"{one['title']} {one['text']}" for one in passages_of(data)] + questions + prefixes
