"""What both sides of the training-step benchmark share: one model, real text, and a step of either side over them.

The peer is transformers' RagTokenForGeneration and RagSequenceForGeneration around the very same BART-shaped module.
Retrieval is given to both: the passages, their scores as a leaf with gradient, and to transformers also the finished
contexts; openbook assembles its own from the same token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import (
    AutoModel,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    RagConfig,
    RagSequenceForGeneration,
    RagTokenForGeneration,
)

from benchmarks.training.cost import Stack
from openbook.batch import Batch, Example, Retrieved
from openbook.config.training import OptimConfig
from openbook.data.corpus import PassageTokens
from openbook.data.factbook.text import book_files, find_book, read_country
from openbook.data.inputs import SpecialIds
from openbook.models.attention import implementation
from openbook.models.contexts import ContextBuilder
from openbook.models.encoders import load_tokenizer
from openbook.models.seq2seq import Seq2SeqGenerator
from openbook.retrieval.base import Retriever
from openbook.training.rag_module import RagModule

PEERS = {"rag_token": RagTokenForGeneration, "rag_sequence": RagSequenceForGeneration}
SPECIAL = SpecialIds(start=0, sep=2, end=2, pad=1)  # BART's; the text's own ids begin far above them
SHAPES = {
    "base": (Stack(6, 768, 12), 50265),
    "small": (Stack(3, 256, 4), 30522),
    "tiny": (Stack(1, 32, 4), 30522),
}
"""Layers of either side and the vocabulary: BART-base's, a fifteenth of it, and one for --quick."""

PADDED, WORDS = 300, 100  # tokens that RagRetriever pads a context to; words of a passage, as DPR cuts
TOKENS_PER_PASS = 4096  # what openbook takes at once on a CPU


@dataclass(frozen=True)
class Case:
    """Sizes of one step, and what a process of its own is to measure of it."""

    objective: str = "rag_token"
    questions: int = 4
    n_docs: int = 5
    target_len: int = 32
    model: str = "base"
    checkpointing: bool = False


@dataclass(frozen=True)
class Way:
    """How a side computes: torch's fp32 matmul precision, autocast, attention, and the length of a padded context
    (0: the longest of the batch)."""

    matmul: str
    autocast: torch.dtype | None
    attention: str
    padded: int


@dataclass(frozen=True)
class Asked:
    """One batch for both sides. context_ids, context_mask [questions * n_docs, PADDED]; carried [questions, 1 +
    target_len]: labels as transformers wants them, decoder start first."""

    batch: Batch
    rows: Tensor
    doc_scores: Tensor
    context_ids: Tensor
    context_mask: Tensor
    carried: Tensor

    @property
    def longest(self) -> int:
        return int(self.context_mask.sum(-1).max())


class Given(nn.Module, Retriever[None]):
    """Stands where the retriever stands in RagModule.training_step, and answers what was given beforehand."""

    asked: Asked

    def represent(self, batch: Batch) -> None:
        return None

    def retrieve(self, questions: None, n_docs: int) -> Retrieved:
        return Retrieved(self.asked.rows, self.asked.doc_scores.detach())

    def score(self, questions: None, retrieved: Retrieved) -> Tensor:
        return self.asked.doc_scores


class Padding(Seq2SeqGenerator):
    """Reads contexts padded to PADDED tokens, whatever their lengths."""

    def encode(self, context_ids: Tensor, context_mask: Tensor) -> Tensor:
        more = (0, PADDED - context_ids.shape[1])
        return super().encode(pad(context_ids, more, value=self.pad_token_id), pad(context_mask, more))

    def decode(
        self, decoder_input_ids: Tensor, memory: Tensor, context_mask: Tensor, cache: Any = None
    ) -> tuple[Tensor, Any]:
        return super().decode(decoder_input_ids, memory, pad(context_mask, (0, PADDED - context_mask.shape[1])), cache)


def bart(stack: Stack, vocab: int) -> BartForConditionalGeneration:
    """A BART with random weights, no dropout."""
    torch.manual_seed(0)
    config = BartConfig(
        d_model=stack.dim,
        encoder_layers=stack.layers,
        decoder_layers=stack.layers,
        vocab_size=vocab,
        encoder_attention_heads=stack.heads,
        decoder_attention_heads=stack.heads,
        encoder_ffn_dim=stack.inner,
        decoder_ffn_dim=stack.inner,
        max_position_embeddings=1024,
        bos_token_id=0,
        pad_token_id=SPECIAL.pad,
        eos_token_id=SPECIAL.end,
        decoder_start_token_id=SPECIAL.end,
        forced_eos_token_id=None,
        dropout=0.0,
        attention_dropout=0.0,
        init_std=0.05,
    )
    return cast(BartForConditionalGeneration, BartForConditionalGeneration(config).train())


def peer(model: BartForConditionalGeneration, objective: str, n_docs: int) -> Any:
    """transformers' side over the same model; its question encoder has nothing to do."""
    asking = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=97)
    config = RagConfig.from_question_encoder_generator_configs(asking, model.config, n_docs=n_docs)
    return PEERS[objective](config=config, question_encoder=AutoModel.from_config(asking), generator=model).train()


@dataclass(frozen=True)
class Text:
    """Passages of WORDS words of the packaged factbook's introductions, which are prose, and a question for each."""

    tokens: PassageTokens
    questions: list[tuple[int, ...]]

    @classmethod
    def read(cls, n: int) -> Text:
        tokenizer = load_tokenizer("minilm")

        def ids(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

        found = [(ids(title), ids(f"{title} {text}")) for title, text in islice(_passages(), n)]
        lengths = [len(passage) for _, passage in found]
        flat = np.fromiter((i for _, passage in found for i in passage), np.uint16, count=sum(lengths))
        titles = np.array([len(title) for title, _ in found], dtype=np.int32)
        words = ids("who was the first president of")
        questions = [(*words, *title, *ids("?")) for title, _ in found]
        return cls(PassageTokens(flat, np.concatenate([[0], np.cumsum(lengths)]), titles), questions)

    def ask(self, case: Case, seed: int, device: torch.device) -> Asked:
        """Random passages, a target of exactly target_len tokens (end included) cut from the text, random scores."""
        random = np.random.default_rng(seed)
        rows = random.choice(len(self.questions), (case.questions, case.n_docs), replace=False)
        contexts = ContextBuilder(self.tokens, SPECIAL, PADDED)
        questions = tuple(self.questions[row] for row in rows[:, 0])
        ids, mask = contexts(questions, torch.from_numpy(rows))
        more = (0, PADDED - ids.shape[1])
        starts = random.integers(0, len(self.tokens.flat) - case.target_len, case.questions)
        labels = torch.from_numpy(
            np.stack([self.tokens.flat[s : s + case.target_len] for s in starts]).astype(np.int64)
        )
        labels[:, -1] = SPECIAL.end
        nothing = labels[:, :0]
        batch = Batch(
            nothing, nothing.bool(), questions, labels, torch.ones(len(labels)), (Example("", "", ("",)),) * len(labels)
        ).to(device)
        scores = torch.from_numpy(random.normal(size=rows.shape).astype(np.float32)).to(device).requires_grad_()
        carried = torch.cat([labels.new_full((len(labels), 1), SPECIAL.end), labels], 1)
        return Asked(
            batch,
            torch.from_numpy(rows),
            scores,
            pad(ids, more, value=SPECIAL.pad).to(device),
            pad(mask, more).long().to(device),
            carried.to(device),
        )


def _passages() -> Iterator[tuple[str, str]]:
    """(title, text), the book's countries in their order."""
    for path in book_files(find_book()):
        country = read_country(path)
        words = " ".join(unit.text for unit in country.units if unit.section == "Introduction").split()
        for start in range(0, len(words) - WORDS, WORDS):
            yield country.title, " ".join(words[start : start + WORDS])


Step = Callable[[Asked], Tensor]
"""Forward and backward of one batch; the loss."""


class Sides:
    """Both sides over one model, each with its own optimizer, at learning rate 0: all the work, and the same weights
    for whoever comes next."""

    def __init__(self, case: Case, text: Text, device: torch.device):
        self.case, self.device = case, device
        self.model = bart(*SHAPES[case.model]).to(device)
        self.theirs = peer(self.model, case.objective, case.n_docs).to(device)
        contexts = ContextBuilder(text.tokens, SPECIAL, PADDED, TOKENS_PER_PASS if device.type == "cpu" else 65536)
        self.given = Given()
        self.modules = {
            padded: RagModule(
                cast(Any, self.given),
                kind(self.model),
                contexts,
                cast(Any, None),
                objective=case.objective,
                n_docs=case.n_docs,
                optim=OptimConfig(),
                max_steps=10**6,
            )
            for padded, kind in ((0, Seq2SeqGenerator), (PADDED, Padding))
        }
        made: Any = self.modules[0].configure_optimizers()
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "ours": made["optimizer"],
            "theirs": torch.optim.AdamW(self.model.parameters()),
        }
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = 0.0

    def use(self, way: Way) -> None:
        torch.set_float32_matmul_precision(way.matmul)
        self.model.set_attn_implementation(way.attention)

    def gradients(self, side: str, way: Way, asked: Asked) -> Tensor:
        """Forward and backward; the loss, a mean over the questions."""
        with torch.autocast(self.device.type, way.autocast or torch.bfloat16, enabled=way.autocast is not None):
            loss = self._ours(way, asked) if side == "ours" else self._theirs(way, asked)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def step(self, side: str, way: Way, asked: Asked) -> None:
        """One optimizer step as a training loop has it."""
        self.gradients(side, way, asked)
        optimizer = self.optimizers[side]
        optimizer.step()
        optimizer.zero_grad()
        asked.doc_scores.grad = None

    def _ours(self, way: Way, asked: Asked) -> Tensor:
        self.given.asked = asked
        return self.modules[way.padded].training_step(asked.batch, 0)["loss"]

    def _theirs(self, way: Way, asked: Asked) -> Tensor:
        length = way.padded or asked.longest
        output = self.theirs(
            context_input_ids=asked.context_ids[:, :length],
            context_attention_mask=asked.context_mask[:, :length],
            doc_scores=asked.doc_scores,
            labels=asked.carried,
            reduce_loss=True,
        )
        return output.loss / self.case.questions


def ways(chosen: str, autocast: torch.dtype | None) -> dict[str, tuple[str, Way]]:
    """side and way by name. chosen: the fp32 matmul precision that openbook trains with."""
    return {
        "ours": ("ours", Way(chosen, autocast, implementation(), 0)),
        "theirs": ("theirs", Way("highest", None, "sdpa", PADDED)),
        "ours_same_precision": ("ours", Way(chosen, None, implementation(), 0)),
        "theirs_same_precision": ("theirs", Way(chosen, None, "sdpa", PADDED)),
        "ours_same_padding": ("ours", Way(chosen, None, implementation(), PADDED)),
    }
