"""Parts of the small generator: its configuration, BERT's layers, and how they start from BERT's weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from openbook.errors import OpenBookError

# Attention scores of a run of 0, 1, ... tokens at the start of training; the last one also serves longer runs.
RUN_BONUS = (0.0, 6.0, 8.0, 9.0, 10.0)

# Added to the scores of padding; finite, so that a context of padding alone gives numbers that can be masked later.
HIDDEN = -1e4


class Memory(NamedTuple):
    """An encoded context: states [n, context_len, dim], ids and in_passage [n, context_len]."""

    states: Tensor
    ids: Tensor
    in_passage: Tensor


class Cache(NamedTuple):
    """What decoding keeps between positions. Per row of n * beams: run, start [rows, context_len], the runs after the
    newest token and the scores of where an answer starts. Per context: copy_keys [n, context_len, dim]. Per decoder
    layer: keys and values [rows, heads, length, dim per head] of the answers, then those of the contexts [n, ...]."""

    length: int
    run: Tensor
    start: Tensor
    copy_keys: Tensor
    layers: tuple[tuple[Tensor, Tensor, tuple[Tensor, Tensor]], ...]


@dataclass(frozen=True)
class ReaderConfig:
    """Shapes and special tokens. encoder_layers, decoder_layers: MiniLM's layers, by number, that each side starts as.

    copy_scale: the logit of a token that has the whole attention of the last layer, next to about 0 for others.
    """

    encoder_layers: tuple[int, ...] = (0, 1, 2)
    decoder_layers: tuple[int, ...] = (0,)
    vocab: int = 30522
    dim: int = 384
    heads: int = 12
    inner_dim: int = 1536
    max_positions: int = 512
    layer_norm_eps: float = 1e-12
    copy_scale: float = 20.0
    pad_id: int = 0
    start_id: int = 101
    end_id: int = 102
    model_type: str = "minilm_reader"


class Attention(nn.Module):
    """BERT's attention with residual and LayerNorm after it; queries and memory may be different sequences."""

    def __init__(self, config: ReaderConfig):
        super().__init__()
        self.heads = config.heads
        self.query, self.key, self.value, self.output = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def remember(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """[n, length, dim] -> keys and values [n, heads, length, dim per head]."""
        return self._split(self.key(states)), self._split(self.value(states))

    def forward(self, states: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """states [n, t, dim]; bias, added to the scores, broadcasts to [n, heads, t, length]."""
        read = self.scores(states, keys, bias).softmax(-1).to(values.dtype) @ values
        return self.norm(states + self.output(read.transpose(1, 2).flatten(2)))

    def scores(self, states: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
        """[n, heads, t, length], before the softmax."""
        query = self._split(self.query(states))
        scores = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
        return scores + bias.to(scores.dtype)  # a bias in fp32 would make the whole attention fp32 under autocast


class FeedForward(nn.Module):
    """BERT's two-layer perceptron with residual and LayerNorm after it."""

    def __init__(self, config: ReaderConfig):
        super().__init__()
        self.inner = nn.Linear(config.dim, config.inner_dim)
        self.outer = nn.Linear(config.inner_dim, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(states + self.outer(F.gelu(self.inner(states))))


class Layer(nn.Module):
    """One layer of either side; only a decoder's has `cross`, whose first half of heads follows runs to begin with."""

    cross: Attention
    run_bonus: Tensor

    def __init__(self, config: ReaderConfig, decoder: bool):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        if decoder:
            self.cross = Attention(config)
            self.run_bonus = nn.Parameter(torch.zeros(len(RUN_BONUS), config.heads))

    def encode(self, states: Tensor, bias: Tensor) -> Tensor:
        """states [n, length, dim] read by themselves; bias as in Attention."""
        return self.feed_forward(self.attention(states, *self.attention.remember(states), bias))

    def decode(
        self,
        states: Tensor,
        keys: Tensor,
        values: Tensor,
        causal: Tensor,
        cross_keys: Tensor,
        cross_values: Tensor,
        run: Tensor,
        padding: Tensor,
    ) -> Tensor:
        """states [rows, target_len, dim] of answers, rows = n * beams; keys and values of their own positions, then of
        the n contexts. run [rows, target_len, context_len], within RUN_BONUS; padding [rows, 1, context_len]."""
        states = self.attention(states, keys, values, causal)
        n, context_len = len(cross_keys), cross_keys.shape[2]
        bonus = F.embedding(run, self.run_bonus) + padding[..., None]  # [rows, target_len, context_len, heads]
        bonus = bonus.view(n, -1, context_len, bonus.shape[3]).permute(0, 3, 1, 2)
        read = self.cross(states.view(n, -1, states.shape[2]), cross_keys, cross_values, bonus)
        return self.feed_forward(read.view_as(states))

    @torch.no_grad()
    def warm_start(self, weights: dict[str, Tensor], number: int) -> None:
        """Become BERT's layer `number`; cross-attention looks where its self-attention would, and reads as it is."""
        for part, name in _BERT_NAMES.items():
            copy_part(self.get_submodule(part), weights, f"encoder.layer.{number}.{name}")
        if hasattr(self, "cross"):
            self.cross.query.load_state_dict(self.attention.query.state_dict())
            self.cross.key.load_state_dict(self.attention.key.state_dict())
            for linear in (self.cross.value, self.cross.output):
                nn.init.eye_(linear.weight)
                nn.init.zeros_(linear.bias)
            self.run_bonus[:, : self.cross.heads // 2] = torch.tensor(RUN_BONUS)[:, None]


# The parts of a layer here, and what BERT's weights call them.
_BERT_NAMES = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "feed_forward.inner": "intermediate.dense",
    "feed_forward.outer": "output.dense",
    "feed_forward.norm": "output.LayerNorm",
}


def copy_part(part: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    part.load_state_dict({kind: weights[f"{name}.{kind}"] for kind in ("weight", "bias")})


def whitened(words: Tensor) -> Tensor:
    """[vocab, dim] with unit rows and decorrelated columns (ZCA): the head scores a token against near relatives
    (numbers, parts of names) with a cosine well below 1."""
    centred = words - words.mean(0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    return F.normalize(centred @ axes @ torch.diag(variances.clamp(min=1e-6).rsqrt()) @ axes.T, dim=1)


def padding_bias(mask: Tensor) -> Tensor:
    """0 at tokens, HIDDEN at padding: what is added to attention scores."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask.bool(), HIDDEN)


def said_elsewhere(memory: Memory, mask: Tensor, config: ReaderConfig) -> Tensor:
    """[n, context_len] bool: tokens of a passage that another passage of the same row holds too. memory and mask
    [n, context_len] are of one or more contexts side by side, each with a start token of its own."""
    ids = memory.ids
    counts = memory.in_passage.bool() & mask.bool() & (ids != config.end_id)
    passage = (ids == config.start_id).cumsum(1)
    none = ids.shape[1] + 1
    words = ids.new_zeros(len(ids), config.vocab)
    first = (words + none).scatter_reduce(1, ids, torch.where(counts, passage, none), "amin")
    last = words.scatter_reduce(1, ids, torch.where(counts, passage, 0), "amax")
    return counts & (first.gather(1, ids) < last.gather(1, ids))


def runs_after(written: Tensor, ids: Tensor, in_passage: Tensor, run: Tensor) -> Tensor:
    """[n, target_len, context_len]: at [t, j], how many of the tokens written up to t stand right before place j.

    written [n, target_len]; ids and in_passage [n, context_len], runs live in the passage only; run [n, context_len],
    the same for the token before the first one written.
    """
    before = F.pad(ids, (1, 0), value=-1)[:, :-1]
    allowed = F.pad(in_passage, (1, 0))[:, :-1] & in_passage
    runs = []
    for newest in written.unbind(1):
        run = (F.pad(run, (1, 0))[:, :-1] + 1) * ((newest[:, None] == before) & allowed)
        runs.append(run)
    return torch.stack(runs, 1)


def likeness(ids: Tensor, words: Tensor, in_question: Tensor, in_passage: Tensor) -> Tensor:
    """[n, context_len, 2]: for each passage token 1 where the question has the same token, and the largest cosine to
    a token of the question; 0 elsewhere (Chen et al. 2017, "Reading Wikipedia to Answer Open-Domain Questions",
    section 3.2, has both kinds as features). words: [vocab, dim], rows of length 1."""
    embedded = F.embedding(ids, words)
    cosine = (embedded @ embedded.transpose(1, 2)).masked_fill(~in_question[:, None], 0.0).amax(-1)
    same = ((ids[:, :, None] == ids[:, None]) & in_question[:, None]).any(-1)
    return torch.stack([same.to(cosine.dtype), cosine], -1) * in_passage[..., None]


def read_folder(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise OpenBookError(
            "not a folder the small reader can start from",
            where=folder,
            got=f"no {' and no '.join(missing)}",
            expected=", ".join(names),
        )
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")), load_file(folder / "model.safetensors")
    except (SafetensorError, json.JSONDecodeError) as error:
        raise OpenBookError(
            "damaged reader files", where=folder, got=error, action="Copy the folder again from where it came."
        ) from error


def without_elsewhere(reader: nn.Module, weights: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Readers saved before there was `elsewhere` are told nothing by it."""
    weights.setdefault(f"{prefix}elsewhere", torch.zeros_like(cast("Tensor", reader.elsewhere)))
