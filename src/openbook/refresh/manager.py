"""Keep one retriever's index fresh: which refresh is under way, when the next one is due, what a checkpoint must hold.

`callbacks/index_refresh.py` calls this from Lightning's hooks; nothing here knows Lightning.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from openbook.config.refresh_schedule import RefreshSchedule
from openbook.config.retrieval import IN_PLACE, RefreshMode
from openbook.errors import OpenBookError
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.index.vector_store import VectorStore
from openbook.models.encoders import TextEncoder
from openbook.refresh.look import embedded, look
from openbook.refresh.measure import Comparison, Sample
from openbook.refresh.rebuild import Refresh
from openbook.refresh.rolling import Rolling
from openbook.retrieval.corpus_encoder import CorpusOptions
from openbook.retrieval.dense import Retriever
from openbook.utils.console import say
from openbook.utils.distributed import from_rank_zero, sum_over_ranks

SAMPLE = 64
"""Passages per rank whose drift is measured."""

LOOK_PROBES = 32
"""Probe questions of a look between refreshes: every candidate of theirs is encoded."""

HOT_DEPTH = 50
"""Passages per question that count as nearly retrieved."""


@dataclass(frozen=True)
class RefreshOptions:
    """How (mode, spread, share) and when (schedule, look_every) the index is refreshed: see RefreshConfig."""

    schedule: RefreshSchedule
    mode: RefreshMode = "blocking"
    spread: int = 10
    share: float = 1.0
    overlap_k: int = 10
    look_every: int = 0

    @property
    def in_place(self) -> bool:
        return self.mode in IN_PLACE


class RefreshManager:
    """Builds a retriever's snapshot and keeps it fresh.

    blocking    training waits while every rank encodes its shard; then all swap.
    amortized   the weights are copied at step s, a slice is encoded after each of the next `spread` steps, all ranks
                swap after the last of them.
    rolling     after every step the oldest passages are encoded with today's weights and replaced in place.
    hot         likewise, those that recent questions wanted first.

    A frozen passage encoder is never encoded again. The state keeps the passage encoder as it was when the index was
    made (and, in the middle of an amortized refresh, as it was at its start), or, where passages are of different
    ages, their vectors: a resumed run searches what the interrupted one searched.

    probes: ids and mask of questions on which the old and the new index are compared. store: passage vectors kept on
    disk, for weights that another run may meet. All methods are called by all ranks together.
    """

    def __init__(
        self,
        options: RefreshOptions,
        index: IndexOptions,
        corpus: CorpusOptions,
        probes: tuple[Tensor, Tensor] | None = None,
        store: VectorStore | None = None,
    ):
        self.options, self.index, self.corpus = options, index, corpus
        self.probes, self.store = probes, store
        self.generation = -1
        self.made_at = 0  # the step whose weights the index was made from
        self.seconds = 0.0  # of this process: building, comparing, swapping
        self.encoded = 0  # passages encoded for the index, on all ranks
        self.under_way: Refresh | None = None
        self.rolling: Rolling | None = None
        self._started_at = 0
        self._sample: Sample | None = None
        self._encoder_then: dict[str, Tensor] | None = None
        self._encoder_next: dict[str, Tensor] | None = None
        self._resumed: dict[str, Any] = {}
        self._clock_runs = False

    def ensure(self, retriever: Retriever, step: int) -> dict[str, float]:
        """Build the snapshot where there is none: as a checkpoint kept it, else of today's weights; returns what was
        measured in the latter case."""
        if retriever.snapshot is not None:
            return {}
        if self.generation < 0:
            return self.refresh(retriever, step, self.store)
        with self._clock():
            if "rolling" in self._resumed and not self.options.in_place:  # resumed in another mode
                self.refresh(retriever, step)
                self._started_at = step
            elif "rolling" in self._resumed:
                self._restore_rolling(retriever)
            else:
                self._restore(retriever, step)
        self._resumed = {}
        return {}

    def prepare(self, retriever: Retriever, step: int) -> dict[str, float]:
        """`ensure`, and what the first training step needs."""
        measured = self.ensure(retriever, step)
        if self.options.in_place and retriever.passage_encoder.trains and self.rolling is None:
            self.rolling = self._rolling(retriever)
            self.rolling.made_at[:] = self.made_at
        retriever.depth = HOT_DEPTH if self.rolling and self.options.mode == "hot" else 0
        return measured

    def after_step(self, retriever: Retriever, step: int) -> dict[str, float]:
        """Once after every optimizer step; returns what was measured, by the name it is logged under."""
        if not retriever.passage_encoder.trains:
            return {}
        with self._clock():
            measured = self._roll(retriever, step) if self.rolling is not None else {}
            if self._looks(step):
                measured |= self._look(retriever)
                retriever.embedding_cache.take()  # of no training step: a resumed run would not have it
            if self.rolling is None:
                measured |= self._continue(retriever, step)
                measured |= self._start_if_due(retriever, step, measured.get("staleness/overlap_at_k"))
            return measured

    def age(self, step: int) -> float:
        """Optimizer steps since the weights that the index was made from; the mean where passages differ."""
        return self.rolling.mean_age(step) if self.rolling is not None else float(step - self.made_at)

    def refresh(self, retriever: Retriever, step: int, store: VectorStore | None = None) -> dict[str, float]:
        """Encode everything at once, measure, swap; returns what was measured, by the name it is logged under."""
        started = time.perf_counter()
        with self._clock():
            if self.rolling is not None and retriever.snapshot is not None:
                self.rolling.renew(retriever.passage_encoder, step)
                fingerprint = retriever.passage_encoder.fingerprint()
                retriever.snapshot = replace(
                    self.rolling.snapshot(retriever.snapshot), encoder_fingerprint=fingerprint, calibrate=None
                )
                self.generation, measured = retriever.snapshot.generation, {}
            else:
                self.under_way = self._encoder_next = None  # or there would be three indexes
                refresh = self._begin(retriever, retriever.passage_encoder, self._questions(retriever), store)
                refresh.run()
                encoder = retriever.passage_encoder.copied_state()
                measured = self._swap(retriever, refresh, step)
                self._encoder_then = encoder
        seconds = time.perf_counter() - started
        return measured | {"refresh/seconds": seconds, "refresh/passages_per_second": self.corpus.n_passages / seconds}

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors. The corpus' fingerprint says which corpus the index was made from."""
        state: dict[str, Any] = {
            "generation": self.generation,
            "made_at": self.made_at,
            "corpus": self.corpus.fingerprint,
            "passage_encoder": self._encoder_then,
            "encoded": self.encoded,
            "started_at": self._started_at,
        }
        if self.under_way is not None:
            state["next"] = {"passage_encoder": self._encoder_next, "questions": self.under_way.comparison.questions}
        if self.rolling is not None:
            state["rolling"] = self.rolling.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["corpus"] != self.corpus.fingerprint:
            raise OpenBookError(
                "the checkpoint's index is of another corpus",
                where="data.corpus",
                action="Resume with the run's own corpus; `evaluate` takes another.",
            )
        self._resumed = dict(state)
        self.generation, self.encoded = int(state["generation"]), int(state["encoded"])
        self.made_at, self._started_at = int(state["made_at"]), int(state["started_at"])
        self._encoder_then = state["passage_encoder"]

    def _looks(self, step: int) -> bool:
        options = self.options
        if options.schedule.watches_staleness:
            return self.under_way is None and options.schedule.needs_look(step, self._started_at, options.look_every)
        return options.look_every > 0 and step % options.look_every == 0

    def _continue(self, retriever: Retriever, step: int) -> dict[str, float]:
        """The next slice of an amortized refresh, and the swap after its last one."""
        if self.under_way is None:
            return {}
        done = step - self._started_at
        refresh, encoder = self.under_way, self._encoder_next
        self.under_way = self._encoder_next = None  # what fails half-way is not gone on with
        refresh.advance(self.options.spread - done + 1)
        if done < self.options.spread:
            self.under_way, self._encoder_next = refresh, encoder
            return {}
        measured = self._swap(retriever, refresh, self._started_at)
        self._encoder_then = encoder
        return measured

    def _start_if_due(self, retriever: Retriever, step: int, overlap: float | None) -> dict[str, float]:
        since = step - self._started_at
        if self.under_way or not from_rank_zero(self.options.schedule.due(step, self._started_at, overlap)):
            return {}
        if self.options.mode == "amortized":
            encoder = retriever.passage_encoder.copied_state()
            self.under_way = self._begin(retriever, retriever.passage_encoder, self._questions(retriever))
            self._encoder_next, self._started_at = encoder, step
            return {}
        measured = self.refresh(retriever, step) | {"refresh/steps_since_last": float(since)}
        self._started_at = step
        return measured

    def _roll(self, retriever: Retriever, step: int) -> dict[str, float]:
        rolling = self.rolling
        assert rolling is not None and retriever.snapshot is not None
        rolling.note(retriever.take_candidates())
        rolling.write_back(*retriever.embedding_cache.take(), step)
        interval = self.options.schedule.interval(step)
        if interval:
            rolling.advance(retriever.passage_encoder, self.options.share * self.corpus.n_passages / interval, step)
        retriever.snapshot = rolling.snapshot(retriever.snapshot)
        self.generation = retriever.snapshot.generation
        return {"refresh/mean_age": rolling.mean_age(step), "refresh/encoded_passages": float(rolling.encoded)}

    def _questions(self, retriever: Retriever) -> Tensor:
        return embedded(self.probes, retriever, self.corpus.dtype)

    def _look(self, retriever: Retriever) -> dict[str, float]:
        assert self._sample is not None
        questions = self._questions(retriever)[:LOOK_PROBES]
        return look(retriever, questions, self._sample, self.options.overlap_k)

    def _new_sample(self, encoder: TextEncoder) -> Sample:
        return Sample.of(self.corpus.my_rows(), SAMPLE, encoder.dim, self.corpus.seed)

    def _begin(
        self, retriever: Retriever, encoder: TextEncoder, questions: Tensor, store: VectorStore | None = None
    ) -> Refresh:
        sample = self._sample or self._new_sample(encoder)
        comparison = Comparison(questions, retriever.snapshot, self.options.overlap_k, sample, self.index.exact)
        return Refresh(encoder, self.corpus, self.index, self.generation + 1, comparison, store)

    def _swap(self, retriever: Retriever, refresh: Refresh, made_at: int) -> dict[str, float]:
        """Rebind the snapshot; from here on everything searches the new one."""
        snapshot, measured = refresh.finish()
        encoded = int(sum_over_ranks(torch.tensor(refresh.encoded)))
        retriever.snapshot = snapshot
        self.generation, self.made_at, self._sample = snapshot.generation, made_at, refresh.comparison.sample
        self.encoded += encoded
        measured |= {"refresh/generation": float(snapshot.generation), "refresh/encoded_passages": float(self.encoded)}
        if "refresh/overlap_at_k" in measured:
            overlap, drift = measured["refresh/overlap_at_k"], measured["refresh/score_drift"]
            say(
                f"index generation {snapshot.generation}: overlap@{self.options.overlap_k} with the last one "
                f"{overlap:.2f}, score drift {drift:.3f}"
            )
        return measured

    def _restore(self, retriever: Retriever, step: int) -> None:
        """The index that the checkpoint's run searched, and what it had encoded of the next one."""
        self.generation -= 1  # the same generation is made again
        encoded = self.encoded
        encoder = retriever.passage_encoder.with_state(self._encoder_then)
        refresh = self._begin(retriever, encoder, self._questions(retriever), self.store)
        refresh.run("encoding the checkpoint's index again")
        self._swap(retriever, refresh, self.made_at)
        self.encoded = encoded
        if "next" in self._resumed:
            self._encoder_next = self._resumed["next"]["passage_encoder"]
            encoder = retriever.passage_encoder.with_state(self._encoder_next)
            self.under_way = self._begin(retriever, encoder, self._resumed["next"]["questions"])
            for done in range(1, step - self._started_at + 1):
                self.under_way.advance(self.options.spread - done + 1)

    def _restore_rolling(self, retriever: Retriever) -> None:
        rows = self.corpus.my_rows()
        index = ShardIndex(retriever.passage_encoder.dim, len(rows), self.index).finish()
        retriever.snapshot = Snapshot(
            index, self.generation, "", self.corpus.fingerprint, self.corpus.n_passages, rows.start
        )
        self._sample = self._new_sample(retriever.passage_encoder)
        self.rolling = self._rolling(retriever)
        self.rolling.load_state_dict(self._resumed["rolling"])
        retriever.snapshot = self.rolling.snapshot(retriever.snapshot)

    def _rolling(self, retriever: Retriever) -> Rolling:
        assert retriever.snapshot is not None
        mode: Any = self.options.mode
        return Rolling(self.corpus, retriever.snapshot, self.corpus.coder(retriever.passage_encoder), mode)

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """Counts the seconds of the outermost block."""
        outermost, self._clock_runs, started = not self._clock_runs, True, time.perf_counter()
        try:
            yield
        finally:
            if outermost:
                self._clock_runs = False
                self.seconds += time.perf_counter() - started
