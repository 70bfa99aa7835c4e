"""The small generator: an encoder-decoder made of packaged MiniLM weights that copies short answers out of a passage.

Five things make it learn within minutes on a CPU, where random cross-attention learns next to nothing:

1. Encoder and decoder layers, their self-attention and feed-forward parts, start as MiniLM's; the values and outputs
   of cross-attention start as the identity, its queries and keys as the self-attention's.
2. A *run* is how many of the tokens just written stand, in order, right before a place of the passage. Attention
   scores get a learned bonus per run length, so the place where the answer goes on is found from the first step: an
   induction head (Olsson et al. 2022, "In-context Learning and Induction Heads"), built instead of learnt.
3. Each passage token is told whether, and how nearly, the question says it too.
4. The last attention reads token embeddings, and the head scores against the same embeddings, frozen: to look at a
   token is to write it.
5. Of passages read at once, each token is told whether another one says it too.

The output stays one softmax over the vocabulary, logits = hidden @ head_weight.T + head_bias, with no mixture of
probabilities: a fused loss may rely on it. Axes: n contexts, context_len, target_len, heads, dim, vocab (see batch.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from openbook.errors import OpenBookError
from openbook.models.passes.activation_checkpointing import recomputed
from openbook.models.small_reader import layers as parts
from openbook.models.small_reader.layers import Cache, Layer, Memory, ReaderConfig


class MiniLMReader(nn.Module):
    """See the module's text. Word embeddings and the head are buffers: they are frozen and get no gradient.

    checkpointing: while gradients are recorded, keep only the layers' inputs (see models/passes).
    """

    word_embeddings: Tensor
    head: Tensor

    def __init__(self, config: ReaderConfig):
        super().__init__()
        self.config = config
        self.first_token_id: int | None = None
        self.checkpointing = self.reads_all = False
        self.decoder_start_token_id, self.eos_token_id = config.start_id, config.end_id
        self.pad_token_id = config.pad_id
        self.register_buffer("word_embeddings", torch.zeros(config.vocab, config.dim))
        self.register_buffer("head", torch.zeros(config.vocab, config.dim))
        self.positions = nn.Embedding(config.max_positions, config.dim)
        self.segments = nn.Embedding(2, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.encoder = nn.ModuleList(Layer(config, decoder=False) for _ in config.encoder_layers)
        self.decoder = nn.ModuleList(Layer(config, decoder=True) for _ in config.decoder_layers)
        self.question_match = nn.Parameter(torch.zeros(2, config.dim))
        self.copy_query, self.copy_key = nn.Linear(config.dim, config.dim), nn.Linear(config.dim, config.dim)
        self.copy_bonus, self.start_weight = nn.Parameter(torch.tensor(parts.RUN_BONUS)), nn.Parameter(torch.ones(()))
        self.elsewhere = nn.Parameter(torch.zeros(config.dim), requires_grad=False)
        self.register_load_state_dict_pre_hook(parts.without_elsewhere)
        self.own_words = nn.Linear(config.dim, config.dim, bias=False)  # writes without copying
        self.bias = nn.Parameter(torch.zeros(config.vocab))

    def read_all(self, whether: bool = True) -> None:
        """Passages are read together: tokens are told what is said elsewhere, and that is learnt."""
        self.reads_all = whether
        self.elsewhere.requires_grad_(whether)

    @property
    def head_weight(self) -> Tensor:
        """[vocab, dim], frozen."""
        return self.head

    @property
    def head_bias(self) -> Tensor:
        """[vocab]."""
        return self.bias

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., dim] -> [..., vocab] = hidden @ head_weight.T + head_bias."""
        return F.linear(hidden, self.head_weight, self.head_bias)

    def encode(self, context_ids: Tensor, context_mask: Tensor) -> Memory:
        """context_ids [n, context_len], `start question end passage end`; context_mask True at tokens, False at
        padding. Raises OpenBookError on other shapes and on contexts longer than max_positions."""
        if context_ids.dim() != 2 or context_ids.shape != context_mask.shape:
            raise OpenBookError(
                "wrong shapes of contexts",
                expected="both [n, context_len]",
                got=f"context_ids {list(context_ids.shape)}, context_mask {list(context_mask.shape)}",
            )
        starts, ends = context_ids == self.config.start_id, context_ids == self.config.end_id
        in_passage = (ends.cumsum(1) - ends.long() > 0) & context_mask.bool()  # right of the first end
        alike = parts.likeness(context_ids, self.head, context_mask.bool() & ~in_passage & ~starts & ~ends, in_passage)
        states = self._embed(context_ids, in_passage.long(), 0, "a context", alike @ self.question_match)
        bias = parts.padding_bias(context_mask)[:, None, None]
        for layer in cast("Iterable[Layer]", self.encoder):
            states = self._run(layer.encode, states, bias)
        return Memory(states, context_ids, in_passage)

    def decode(
        self, decoder_input_ids: Tensor, memory: Memory, context_mask: Tensor, cache: Cache | None = None
    ) -> tuple[Tensor, Cache]:
        """The hidden states that `logits` turns into the next tokens' scores.

        decoder_input_ids [n * beams, target_len], from decoder_start_token_id on; with a cache only the new positions.
        Row i reads context i // beams; the beams of a context stand side by side where they attend to it. Returns
        hidden [n * beams, target_len, dim] and the cache for the positions to come."""
        rows, target_len = decoder_input_ids.shape
        n, context_len = memory.ids.shape
        if memory.ids.shape != context_mask.shape or rows % max(n, 1) or rows < n:
            raise OpenBookError(
                "decoder input and contexts do not fit",
                expected="the same number of rows for every context",
                got=f"decoder_input_ids {[rows, target_len]}, context_mask {list(context_mask.shape)}, "
                f"encoded contexts {list(memory.ids.shape)}",
            )
        beams = rows // max(n, 1)
        ids, in_passage, mask = (
            part if beams == 1 else part.repeat_interleave(beams, 0)
            for part in (memory.ids, memory.in_passage, context_mask)
        )
        past = 0 if cache is None else cache.length
        before = torch.zeros_like(ids) if cache is None else cache.run
        run = parts.runs_after(decoder_input_ids, ids, in_passage, before)
        clamped = run.clamp(max=len(parts.RUN_BONUS) - 1)
        padding = parts.padding_bias(mask)[:, None]  # [rows, 1, context_len]
        states = self._embed(decoder_input_ids, torch.zeros_like(decoder_input_ids), past, "an answer")
        written = torch.arange(past, past + target_len, device=run.device)[:, None]  # answer tokens at each position
        causal = parts.HIDDEN * (torch.arange(past + target_len, device=run.device) > written)
        kept = list[tuple[Tensor, Tensor, tuple[Tensor, Tensor]]]()
        for number, layer in enumerate(cast("Iterable[Layer]", self.decoder)):
            keys, values = layer.attention.remember(states)
            if cache is None:
                cross = layer.cross.remember(memory.states)
            else:
                old_keys, old_values, cross = cache.layers[number]
                keys = torch.cat([old_keys, keys], 2)
                values = torch.cat([old_values, values], 2)
            states = self._run(layer.decode, states, keys, values, causal, *cross, clamped, padding)
            kept.append((keys, values, cross))

        copy_keys = self.copy_key(memory.states) if cache is None else cache.copy_keys
        if cache is None and self.reads_all:
            told = parts.said_elsewhere(memory, context_mask, self.config)[..., None] * self.elsewhere
            copy_keys = copy_keys + told.to(copy_keys.dtype)
        query = self.copy_query(states).view(n, -1, self.config.dim)
        scores = (query @ copy_keys.transpose(1, 2)).float().view_as(run) * self.config.dim**-0.5
        start = scores[:, 0] if cache is None else cache.start
        # Where all so far was copied from one place, that place's score as a start still counts.
        origin = torch.arange(run.shape[2], device=run.device) - written
        from_start = (run == written) & (written > 0)
        # embedding and gather, not indexing, whose gradient adds up in another order at every run
        scores = scores + F.embedding(clamped, self.copy_bonus[:, None])[..., 0] + padding
        carried = start[:, None].expand_as(scores).gather(2, origin.clamp(min=0).expand_as(scores))
        scores = scores + self.start_weight * carried * from_start
        looked = scores.softmax(-1).to(self.head.dtype).view(n, -1, context_len)
        copied = (looked @ F.embedding(memory.ids, self.head)).view_as(states)
        hidden = self.config.copy_scale * copied + self.own_words(states)
        return hidden, Cache(past + target_len, run[:, -1], start, copy_keys, tuple(kept))

    def reorder(self, cache: Cache, rows: Tensor) -> Cache:
        """Row i of the new cache continues row rows[i] of the old one; rows stay with their context."""
        return cache._replace(
            run=cache.run[rows],
            start=cache.start[rows],
            layers=tuple((keys[rows], values[rows], cross) for keys, values, cross in cache.layers),
        )

    def _run(self, layer: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return recomputed(layer, *inputs) if self.checkpointing and torch.is_grad_enabled() else layer(*inputs)

    def _embed(self, ids: Tensor, segments: Tensor, first: int, what: str, extra: Tensor | float = 0.0) -> Tensor:
        last = first + ids.shape[1]
        if last > self.config.max_positions:
            raise OpenBookError(
                f"{what} is too long for the reader",
                got=f"{last} tokens",
                expected=f"at most {self.config.max_positions}",
            )
        words = F.embedding(ids, self.word_embeddings)
        return self.norm(words + self.positions.weight[first:last] + self.segments(segments) + extra)

    @classmethod
    def from_minilm(cls, folder: str | Path, seed: int, config: ReaderConfig | None = None) -> MiniLMReader:
        """Warm start from a folder of BERT weights (config.json, vocab.txt, model.safetensors): nothing is trained yet.

        seed draws the two new projections of the last attention. `config` chooses layers and copy_scale; the other
        fields are read from the folder."""
        source, weights = parts.read_folder(Path(folder), ("config.json", "vocab.txt", "model.safetensors"))
        vocab = (Path(folder) / "vocab.txt").read_text(encoding="utf-8").split("\n")
        reader = cls(
            replace(
                config or ReaderConfig(),
                vocab=source["vocab_size"],
                dim=source["hidden_size"],
                heads=source["num_attention_heads"],
                inner_dim=source["intermediate_size"],
                max_positions=source["max_position_embeddings"],
                layer_norm_eps=source["layer_norm_eps"],
                pad_id=vocab.index("[PAD]"),
                start_id=vocab.index("[CLS]"),
                end_id=vocab.index("[SEP]"),
            )
        )
        reader._warm_start(weights, torch.Generator().manual_seed(seed))
        return reader

    @torch.no_grad()
    def _warm_start(self, weights: dict[str, Tensor], generator: torch.Generator) -> None:
        words = weights["embeddings.word_embeddings.weight"]
        self.word_embeddings.copy_(words)
        self.head.copy_(parts.whitened(words))
        self.positions.weight.copy_(weights["embeddings.position_embeddings.weight"])
        self.segments.weight.copy_(weights["embeddings.token_type_embeddings.weight"])
        parts.copy_part(self.norm, weights, "embeddings.LayerNorm")
        numbers = self.config.encoder_layers + self.config.decoder_layers
        for layer, number in zip((*self.encoder, *self.decoder), numbers, strict=True):
            layer.warm_start(weights, number)
        for part in (self.copy_query, self.copy_key):
            nn.init.normal_(part.weight, std=0.02, generator=generator)
            nn.init.zeros_(part.bias)
        nn.init.zeros_(self.own_words.weight)

    def save_pretrained(self, folder: str | Path) -> None:
        """config.json and model.safetensors."""
        (path := Path(folder)).mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(asdict(self.config), indent=1) + "\n", encoding="utf-8")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, path / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MiniLMReader:
        """The reader that `save_pretrained` wrote."""
        fields, weights = parts.read_folder(Path(folder), ("config.json", "model.safetensors"))
        if fields.get("model_type") != ReaderConfig.model_type:
            raise OpenBookError("not a folder of the small reader", where=folder, got=fields.get("model_type"))
        reader = cls(
            ReaderConfig(**fields | {side: tuple(fields[side]) for side in ("encoder_layers", "decoder_layers")})
        )
        try:
            reader.load_state_dict(weights)
        except RuntimeError as error:
            got = str(error).splitlines()[1].strip()
            raise OpenBookError("the reader's weights do not fit its config.json", where=folder, got=got) from error
        return reader
