"""Reading all passages of a question at once.

    a reader of one passage      p(y_t | x, z_k, y_<t)             n_docs distributions, which a marginal mixes
    a reader of all passages     p(y_t | x, z_1 .. z_K, y_<t)      one distribution

An encoder-decoder encodes every context (question and passage) alone, and its decoder attends to the states of all of
them side by side: fusion in the decoder (Izacard & Grave 2021, arXiv:2007.01282, section 3). A decoder-only model has
the passages one behind the other in its prompt, best first. With one passage both are the reader of one passage, bit
for bit. A passage that is missing is not there; where all are missing, the question alone is read.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openbook.batch import IGNORED_LABEL, MISSING_ROW, Batch, to_device
from openbook.data.inputs import decoder_inputs
from openbook.data.length_batches import TOKENS_OF_A_PASS, cheapest_passes
from openbook.models.all_passages.cross_mass import watched
from openbook.models.all_passages.undropped import without_dropout
from openbook.models.contexts import ContextBuilder
from openbook.models.decoder_only.model import DecoderOnlyGenerator
from openbook.models.generator import Generator, each_part
from openbook.models.passes.cast_weights import with_weights_cast

Groups = Sequence[Sequence[int]]  # Numbers of contexts, each group of one question.


class Readings(NamedTuple):
    """Decoder states of a batch's targets: together [batch, 1, target_len, dim], with gradient.

    Without gradient and without dropout: alone [batch, n_docs, target_len, dim], read from each passage by itself;
    without, of the same shape, from all passages but one; attention [batch, n_docs], what cross-attention reads of each
    passage, a mean over heads, layers and target tokens."""

    together: Tensor
    alone: Tensor
    without: Tensor | None
    attention: Tensor | None


class Asked(NamedTuple):
    """What is read of a Batch, where there is none."""

    context_questions: Sequence[Sequence[int]]
    labels: Tensor


def read_together(
    generator: Generator,
    batch: Batch | Asked,
    rows: Tensor,
    contexts: ContextBuilder,
    *,
    leave_one_out: bool = False,
    attention: bool = False,
) -> Readings:
    """rows [batch, n_docs] on the CPU, MISSING_ROW where there is no passage. Every context is encoded once, with
    dropout twice; groups of contexts are gathered without padding and decoded in passes of like length.

    leave_one_out, attention: whether `without` and `attention` are wanted. One passage has no others: `without` then
    reads the passage itself. attention: of generators with cross-attention (models/all_passages/cross_mass.py)."""
    n_docs, together = rows.shape[1], _groups(rows)
    owner = [group for group in together for _ in range(n_docs)]
    without = [[one for one in group if one != number] or [number] for number, group in enumerate(owner)]

    def shaped(states: Tensor) -> Tensor:
        return states.view(len(rows), -1, *states.shape[1:])

    def run() -> Readings:
        read = _reader(generator, batch, rows, contexts)
        states = shaped(read(together))
        with torch.no_grad(), without_dropout(cast(nn.Module, generator)) as dropped:
            read = _reader(generator, batch, rows, contexts) if dropped else read
            return Readings(
                states,
                shaped(read([[number] for number in range(rows.numel())])),
                shaped(read(without)) if leave_one_out else None,
                read.attention(together).view(rows.shape) if attention else None,
            )

    return with_weights_cast(cast(nn.Module, generator), run, but=generator.head_weight)


def read_all(generator: Generator, batch: Batch | Asked, rows: Tensor, contexts: ContextBuilder) -> Tensor:
    """Decoder states [batch, target_len, dim] of the targets read from all passages, as `read_together` has them."""
    return _reader(generator, batch, rows, contexts)(_groups(rows))


def side_by_side(contexts: ContextBuilder, questions: Sequence[Sequence[int]], rows: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask of what a reader of all passages reads to decode, one row for each question, on the CPU: [batch,
    n_docs * context_len] of an encoder-decoder, whose contexts keep their padding, [batch, context_len] of a prompt."""
    if contexts.is_prompt:
        return contexts.together(questions, rows)
    ids, mask = contexts(questions, rows)
    mask = mask.view(*rows.shape, -1)
    mask &= torch.from_numpy(np.stack([present for _, present in _present(rows)]))[:, :, None]
    return ids.view(len(rows), -1), mask.view(len(rows), -1)


class FusedContexts:
    """A generator that has encoded the contexts of `side_by_side`; memory: those of the batch one by one, padded."""

    def __init__(self, generator: Generator, memory: Any, batch: int):
        self._generator = generator
        self._memory = each_part(lambda part: part.reshape(batch, -1, *part.shape[2:]), memory)

    def encode(self, context_ids: Tensor, context_mask: Tensor) -> Any:
        return self._memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)


class _Reader:
    """The contexts of a batch, read in groups: hidden [n_groups, target_len, dim] of each group's question's target."""

    def __init__(self, generator: Generator, batch: Batch | Asked, rows: Tensor, contexts: ContextBuilder):
        self.generator, self.contexts, self.n_docs = generator, contexts, rows.shape[1]
        self.device = batch.labels.device
        self.inputs = decoder_inputs(batch.labels, generator.decoder_start_token_id, generator.pad_token_id)
        self.targets = batch.labels != IGNORED_LABEL

    def _passes(self, lengths: np.ndarray) -> list[np.ndarray]:
        return cheapest_passes(lengths, self.contexts.tokens_per_pass, TOKENS_OF_A_PASS.get(self.device.type, 0))

    def _in_passes(self, groups: Groups, lengths: np.ndarray, run: Callable[[np.ndarray, Tensor], Tensor]) -> Tensor:
        """run(places of groups in one pass, their questions) -> [in the pass, ...], of all groups in their order."""
        questions = torch.tensor([group[0] // self.n_docs for group in groups])
        passes = self._passes(lengths)
        parts = [run(places, to_device(questions[torch.from_numpy(places)], self.device)) for places in passes]
        return torch.cat(parts)[to_device(torch.from_numpy(np.argsort(np.concatenate(passes))), self.device)]


class _Fused(_Reader):
    """Of an encoder-decoder. The states of all contexts lie one behind the other, without padding."""

    def __init__(self, generator: Generator, batch: Batch | Asked, rows: Tensor, contexts: ContextBuilder):
        super().__init__(generator, batch, rows, contexts)
        ids, mask = contexts(batch.context_questions, rows)
        self.lengths = mask.sum(-1).numpy()
        passes, encoded = self._passes(self.lengths), []
        for places in passes:
            some, length = torch.from_numpy(places), int(self.lengths[places[0]])
            here = mask[some, :length]
            memory = generator.encode(to_device(ids[some, :length], self.device), to_device(here, self.device))
            tokens = to_device(here.flatten().nonzero()[:, 0], self.device)
            encoded.append(each_part(lambda part, at=tokens: _take(part.flatten(0, 1), at), memory))
        self.memory = each_part(lambda *parts: torch.cat(parts), *encoded)
        order = np.concatenate(passes)
        self.owner = np.repeat(order, self.lengths[order])  # the context of each token
        self.starts = np.empty_like(self.lengths)
        self.starts[order] = np.cumsum(self.lengths[order]) - self.lengths[order]

    def __call__(self, groups: Groups) -> Tensor:
        return self._in_passes(groups, self._lengths(groups), lambda places, of: self._decode(groups, places, of)[0])

    def attention(self, groups: Groups) -> Tensor:
        """[batch * n_docs], 0 of contexts that are in no group."""
        found = torch.zeros(len(self.lengths), device=self.device)

        def add(places: np.ndarray, questions: Tensor) -> Tensor:
            _, tokens, mask = self._decode(groups, places, questions)
            targets = self.targets[questions].float()
            share = (watch.take() * targets[:, :, None]).sum(1) / targets.sum(1, keepdim=True).clamp(min=1)
            owner = to_device(torch.from_numpy(self.owner[tokens]), self.device)
            found.index_add_(0, owner[mask], share[mask].to(found.dtype))
            return share[:, :1]

        with watched(cast(nn.Module, self.generator)) as watch:
            self._in_passes(groups, self._lengths(groups), add)
        return found

    def _lengths(self, groups: Groups) -> np.ndarray:
        return np.array([self.lengths[list(group)].sum() for group in groups])

    def _decode(self, groups: Groups, places: np.ndarray, questions: Tensor) -> tuple[Tensor, np.ndarray, Tensor]:
        """hidden of the groups at these places, and which token of all contexts each of them reads [n, length], with
        its mask."""
        spans = [
            np.concatenate([self.starts[one] + np.arange(int(self.lengths[one])) for one in groups[place]])
            for place in places
        ]
        lengths = np.array([len(span) for span in spans])
        here = np.arange(lengths.max()) < lengths[:, None]
        tokens = np.zeros(here.shape, dtype=np.int64)
        tokens[here] = np.concatenate(spans)
        mask = to_device(torch.from_numpy(here), self.device)
        at = to_device(torch.from_numpy(tokens), self.device)
        memory = each_part(lambda part: _take(part, at), self.memory)
        return self.generator.decode(self.inputs[questions], memory, mask)[0], tokens, mask


class _Joined(_Reader):
    """Of a decoder-only model: every group is a prompt of its own."""

    def __init__(self, generator: Generator, batch: Batch | Asked, rows: Tensor, contexts: ContextBuilder):
        super().__init__(generator, batch, rows, contexts)
        self.questions, self.rows = batch.context_questions, rows.flatten()

    def __call__(self, groups: Groups) -> Tensor:
        rows = torch.full((len(groups), max(map(len, groups))), MISSING_ROW)
        for place, group in enumerate(groups):
            rows[place, : len(group)] = self.rows[list(group)]
        ids, mask = self.contexts.together([self.questions[group[0] // self.n_docs] for group in groups], rows)
        lengths = mask.sum(-1).numpy()

        def run(places: np.ndarray, questions: Tensor) -> Tensor:
            some, length = torch.from_numpy(places), int(lengths[places[0]])
            here = to_device(mask[some, :length], self.device)
            memory = self.generator.encode(to_device(ids[some, :length], self.device), here)
            return self.generator.decode(self.inputs[questions], memory, here)[0]

        return self._in_passes(groups, lengths, run)

    def attention(self, groups: Groups) -> Tensor:
        raise NotImplementedError  # no cross-attention


def _reader(generator: Generator, *read: Any) -> _Fused | _Joined:
    return (_Joined if isinstance(generator, DecoderOnlyGenerator) else _Fused)(generator, *read)


def _groups(rows: Tensor) -> list[list[int]]:
    """Of each question the numbers of the contexts that are read together."""
    return [[int(number) for number in own[present]] for own, present in _present(rows)]


def _present(rows: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each question (numbers of its contexts [n_docs], which of them are read [n_docs] bool): those that are not
    missing; where all are, the first, which is the question alone."""
    present = rows != MISSING_ROW
    present[:, 0] |= ~present.any(1)
    return list(zip(np.arange(rows.numel()).reshape(rows.shape), present.numpy(), strict=True))


def _take(part: Tensor, at: Tensor) -> Tensor:
    """part [tokens, ...] at [...]; states by embedding, whose gradient adds up in the same order at every run."""
    return F.embedding(at, part) if part.dim() == 2 else part[at]
