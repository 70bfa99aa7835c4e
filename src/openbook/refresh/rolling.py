"""Refreshing in place (rolling, hot): after every step some passages are encoded again and replaced; ages differ."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openbook.batch import MISSING_ROW
from openbook.config.retrieval import RefreshMode
from openbook.data.length_batches import by_length
from openbook.index.calibration import Calibration
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.models.encoders import TextEncoder
from openbook.retrieval.corpus_encoder import CorpusOptions, PassageCoder, encode_passes
from openbook.retrieval.dense import DenseRetriever
from openbook.utils.console import progress
from openbook.utils.distributed import (
    gather_objects,
    gather_rows,
    raise_on_all_ranks,
    rank,
    shards_on_rank_zero,
    sum_over_ranks,
    world_size,
)

WINDOW = 20  # Steps whose questions say which passages are hot.

# Share of the budget of `hot` that goes to the oldest passages, asked for or not.
BACKGROUND = 0.25


class RollingRefresh:
    """Replaces passages of this rank's shard between steps; a search never meets a half-written one.

    `rolling` encodes the oldest passages, group by group of one length: little is encoded at a time. `hot` encodes, of
    the passages that the questions of the last steps retrieved or nearly retrieved, those with the most hits times age,
    and with the rest of its budget the oldest. Both take at no further cost what a step has encoded anyway
    (`write_back`).

    The order follows from the ages and the hits alone, so a run continues on any number of ranks.
    """

    def __init__(self, corpus: CorpusOptions, snapshot: Snapshot, coder: PassageCoder, mode: RefreshMode):
        self.corpus, self.coder, self.mode = corpus, coder, mode
        self.index: ShardIndex = snapshot.index
        self.rows = corpus.my_rows()
        self.groups = coder.passes(self.rows, corpus.tokens_per_pass, corpus.seed, full=False)
        self._in_groups = np.concatenate([*self.groups, self.rows[:0]]).astype(np.int64) - self.rows.start
        self._group_sizes = np.array([len(rows) for rows in self.groups])
        self.made_at = np.zeros(len(self.rows), dtype=np.int32)
        """[shard] optimizer steps after which the weights were those of the stored vector."""
        self.asked: deque[np.ndarray] = deque(maxlen=WINDOW)
        self.credit = 0.0  # passages of this rank that may be encoded
        self.calibration = Calibration(self.index.dim)
        self.step = 0  # that the ages are counted from
        self.encoded = 0  # passages encoded for the index so far, on all ranks; write-back is not counted
        self._begun_at = 0  # the step of the passes that the coder has not finished

    @classmethod
    def restored(
        cls,
        *,
        retriever: DenseRetriever,
        corpus: CorpusOptions,
        options: IndexOptions,
        mode: RefreshMode,
        state: dict[str, Any],
    ) -> RollingRefresh:
        """The index that the checkpoint's run searched, from the vectors in its state; it becomes the retriever's."""
        index = ShardIndex(retriever.passage_encoder.dim, len(corpus.my_rows()), options).finish()
        snapshot = Snapshot(index, 0, "", corpus.fingerprint, corpus.n_passages, corpus.my_rows().start)
        rolling = cls(corpus, snapshot, corpus.coder(retriever.passage_encoder), mode)
        rolling.load_state_dict(state)
        retriever.snapshot = rolling.snapshot(snapshot)
        return rolling

    def after_step(self, retriever: DenseRetriever, step: int, n: float) -> dict[str, float]:
        """Write back what optimizer step `step` encoded, and encode about n more passages of the corpus; returns what
        was measured, by the name it is logged under."""
        assert retriever.snapshot is not None
        self.note(retriever.take_candidates())
        self.write_back(*retriever.passages.cache.take(), step)
        if n:
            self.advance(retriever.passage_encoder, n, step)
        retriever.snapshot = self.snapshot(retriever.snapshot)
        return {"refresh/mean_age": self.mean_age(step), "refresh/encoded_passages": float(self.encoded)}

    def refresh(self, retriever: DenseRetriever, step: int) -> None:
        """Encode everything in place, with the weights after optimizer step `step`; the snapshot is then of one age."""
        assert retriever.snapshot is not None
        encoder = retriever.passage_encoder
        with raise_on_all_ranks(), progress("encoding the corpus", "passages") as done:
            self._store(self.coder.finished())
            self.coder.take(encoder)
            for number, (rows, embeddings) in enumerate(encode_passes(self.coder, self.groups), 1):
                self._write(rows - self.rows.start, embeddings.numpy(), step)
                done(len(self.rows) * number // len(self.groups), len(self.rows))
        self.encoded += self.corpus.n_passages
        snapshot = self.snapshot(retriever.snapshot)
        retriever.snapshot = replace(snapshot, encoder_fingerprint=encoder.fingerprint(), calibrate=None)

    @property
    def generation(self) -> int:
        """One for every corpus' worth of passages encoded."""
        return self.encoded // max(self.corpus.n_passages, 1)

    def mean_age(self, step: int) -> float:
        """Optimizer steps, over the passages of all ranks."""
        total = sum_over_ranks(torch.tensor(float((step - self.made_at).sum()), dtype=torch.float64))
        return float(total) / max(self.corpus.n_passages, 1)

    def note(self, candidates: Tensor) -> None:
        """candidates [n]: rows that this rank's questions retrieved or nearly retrieved, MISSING_ROW where there was
        none."""
        self.asked.append(gather_rows(candidates[candidates != MISSING_ROW])[0].numpy())

    def write_back(self, rows: Tensor, embeddings: Tensor, step: int) -> None:
        """Store what this rank's step encoded of any shard: rows [n], embeddings [n, dim] fp32, from the weights
        before optimizer step `step`."""
        self.step, width = step, self.index.dim
        # Each passage once, in order: the same on any number of ranks.
        all_rows, first = np.unique(gather_rows(rows)[0].cpu().numpy(), return_index=True)
        vectors = gather_rows(embeddings.reshape(len(rows), width))[0].cpu().numpy()[first]
        then = np.zeros((len(all_rows), width + 1))  # the vectors they replace, and when those were made
        mine = (all_rows >= self.rows.start) & (all_rows < self.rows.stop)
        with raise_on_all_ranks():
            places = all_rows[mine] - self.rows.start
            then[mine] = np.column_stack([self.index.vectors(places), self.made_at[places]])
        then = sum_over_ranks(torch.from_numpy(then)).numpy()
        ages = step - 1 - then[:, -1]
        old = ages >= max(self.mean_age(step - 1) / 2, 1)  # the young ones have hardly changed
        self.calibration.add(then[old, :-1].astype(np.float32), vectors[old], ages[old])
        with raise_on_all_ranks():
            self._write(places, vectors[mine], step - 1)

    def advance(self, encoder: TextEncoder, n: float, step: int) -> None:
        """Encode about n more passages of the corpus with the weights after optimizer step `step`, on all ranks
        together. On a GPU they are encoded beside the next step and stored after it."""
        before, self.step = self.encoded, step
        with raise_on_all_ranks():
            self._store(self.coder.finished())
            self.coder.take(encoder)
            self.credit += n * len(self.rows) / max(self.corpus.n_passages, 1)
            chosen = list(self._hottest(step) if self.mode == "hot" else ())
            chosen += self._oldest(exclude=np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64))
            self.credit -= sum(map(len, chosen))
            self.encoded += sum(map(len, chosen))
            self._begun_at = step
            self._store(self.coder.begin(chosen))
        self.encoded = before + int(sum_over_ranks(torch.tensor(self.encoded - before)))

    def snapshot(self, snapshot: Snapshot) -> Snapshot:
        """The same index as a value of its own, of mixed ages."""
        return replace(snapshot, encoder_fingerprint="", generation=self.generation, calibrate=self._calibrate)

    def _calibrate(self, questions: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        ages = self.step - self.made_at[rows.clip(min=0)] if len(self.rows) else np.zeros(rows.shape)
        return np.where(rows == MISSING_ROW, -np.inf, self.calibration(questions, scores, ages))

    def state_dict(self) -> dict[str, Any]:
        """Vectors and ages of the whole corpus on rank 0, plain values; called by all ranks together."""
        with raise_on_all_ranks():
            self._store(self.coder.finished())
        codes = shards_on_rank_zero(self.index.stored(), self.corpus.n_passages)
        made_at = shards_on_rank_zero(self.made_at, self.corpus.n_passages)
        return {
            "codes": None if codes is None else torch.from_numpy(codes),
            "made_at": None if made_at is None else torch.from_numpy(made_at),
            "asked": [torch.from_numpy(rows) for rows in self.asked],
            "credit": gather_objects(self.credit),
            "encoded": self.encoded,
            "step": self.step,
            "calibration": self.calibration.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        part = slice(self.rows.start, self.rows.stop)
        self.index.restore(state["codes"][part].numpy())
        self.made_at[:] = state["made_at"][part].numpy()
        self.asked = deque((rows.numpy() for rows in state["asked"]), maxlen=WINDOW)
        credit = [float(part) for part in state["credit"]]
        same = len(credit) == world_size()
        self.credit = credit[rank()] if same else sum(credit) * len(self.rows) / max(self.corpus.n_passages, 1)
        self.encoded, self.step = int(state["encoded"]), int(state["step"])
        self.calibration.load_state_dict(state["calibration"])

    def _store(self, encoded: Iterable[tuple[np.ndarray, Tensor]]) -> None:
        for rows, embeddings in encoded:
            self._write(rows - self.rows.start, embeddings.numpy(), self._begun_at)

    def _write(self, places: np.ndarray, vectors: np.ndarray, made_at: int) -> None:
        newer = self.made_at[places] <= made_at
        self.index.write(places[newer], vectors[newer])
        self.made_at[places[newer]] = made_at

    def _oldest(self, exclude: np.ndarray) -> list[np.ndarray]:
        """The oldest passages as far as the credit reaches; `rolling` takes them by groups of one length."""
        left = self.credit - len(exclude)
        if self.mode == "hot":
            n = min(max(0, int(left)), len(self.made_at))
            made_at = self.made_at[self._in_groups]
            # Not sorted: of a large shard few are needed. Of equally old ones, the first in the groups' order.
            until = np.partition(made_at, n - 1)[n - 1] if n else -1
            older, as_old = np.flatnonzero(made_at < until), np.flatnonzero(made_at == until)
            oldest = self._in_groups[np.concatenate([older, as_old])[:n]]
            return list(self._grouped(np.setdiff1d(oldest + self.rows.start, exclude)))
        if not self.groups:
            return []
        # By the oldest of each: what training keeps fresh must not hold back those it is encoded with.
        made_at = np.minimum.reduceat(self.made_at[self._in_groups], np.cumsum(self._group_sizes) - self._group_sizes)
        order = np.argsort(made_at, kind="stable")
        n = int(np.searchsorted(np.cumsum(self._group_sizes[order]), left, side="right"))
        return [self.groups[number] for number in order[:n]]

    def _hottest(self, step: int) -> Iterator[np.ndarray]:
        rows, hits = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *self.asked]), return_counts=True)
        mine = (rows >= self.rows.start) & (rows < self.rows.stop)
        rows, hits = rows[mine], hits[mine]
        worth = hits * (step - self.made_at[rows - self.rows.start])
        best = np.argsort(-worth, kind="stable")[: max(0, int(self.credit * (1 - BACKGROUND)))]
        yield from self._grouped(rows[best[worth[best] > 0]])

    def _grouped(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Few passages rarely share a length: passes are padded, where the encoder does not pack them."""
        for places in by_length(self.coder.lengths(rows), self.corpus.tokens_per_pass):
            yield rows[places]
