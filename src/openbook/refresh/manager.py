"""When the index is refreshed, and by which way: `rebuild.py` (blocking, amortized) or `rolling.py` (rolling, hot).

`callbacks/index_refresh.py` calls this from Lightning's hooks; nothing here depends on Lightning.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from openbook.config.refresh_schedule import RefreshSchedule
from openbook.config.retrieval import IN_PLACE, RefreshMode
from openbook.errors import OpenBookError
from openbook.index.shard_index import IndexOptions
from openbook.index.vector_store import VectorStore
from openbook.refresh.measure import StalenessProbe
from openbook.refresh.rebuild import RebuildRefresh
from openbook.refresh.rolling import RollingRefresh
from openbook.retrieval.corpus_encoder import CorpusOptions
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.kept_vectors import keep_vectors
from openbook.utils.distributed import from_rank_zero, raise_on_all_ranks

HOT_DEPTH = 50  # Passages per question that count as nearly retrieved.


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
    rolling     after every step the oldest passages are encoded with the current weights and replaced in place.
    hot         likewise, prioritising recently retrieved passages.

    A frozen passage encoder is never encoded again. The state keeps the passage encoder as it was when the index was
    made (and, in the middle of an amortized refresh, as it was at its start), or, where passages are of different
    ages, their vectors: a resumed run searches what the interrupted one searched.

    probes: ids and mask of questions on which the old and the new index are compared. store: passage vectors kept on
    disk, for weights that another run may meet. seconds: spent in this process on building, measuring and swapping;
    first_seconds: those of them that the first snapshot took.
    All methods are called by all ranks together.
    """

    def __init__(
        self,
        *,
        options: RefreshOptions,
        index: IndexOptions,
        corpus: CorpusOptions,
        probes: tuple[Tensor, Tensor] | None = None,
        store: VectorStore | None = None,
    ):
        self.options, self.index, self.corpus, self.store = options, index, corpus, store
        self.probe = StalenessProbe(probes, corpus, options.overlap_k)
        self.rebuild = RebuildRefresh(corpus, index, self.probe)
        self.rolling: RollingRefresh | None = None
        self.seconds = 0.0
        self.first_seconds = 0.0
        self._slices = 0.0  # seconds of the amortized refresh under way, in this process
        self._started_at = 0  # the step after which the last refresh began
        self._resumed: dict[str, Any] = {}
        self._kept = ""  # the encoder's state whose vectors are in the store

    @property
    def generation(self) -> int:
        """Of the searched snapshot; -1 before the first."""
        return self.rolling.generation if self.rolling is not None else self.rebuild.generation

    def ensure(self, retriever: DenseRetriever, step: int) -> dict[str, float]:
        """Build the snapshot where there is none: as a checkpoint kept it, else from the current weights; returns what
        was measured in the latter case."""
        if retriever.snapshot is not None:
            return {}
        before, measured = self.seconds, dict[str, float]()
        if self.rebuild.generation < 0:
            measured = self.refresh(retriever, step, self.store)
        else:
            self._restore(retriever, step)
        self.first_seconds += self.seconds - before
        return measured

    def _restore(self, retriever: DenseRetriever, step: int) -> None:
        """The snapshot of the checkpoint that was loaded."""
        with self._timed():
            if "rolling" not in self._resumed:
                self.rebuild.restore(retriever, self.store)
                if "next" in self._resumed:
                    left = range(self.options.spread, self.options.spread - (step - self._started_at), -1)
                    self.rebuild.restore_next(retriever, self._resumed["next"], left)
            elif self.options.in_place:
                self.rolling = RollingRefresh.restored(
                    retriever=retriever,
                    corpus=self.corpus,
                    options=self.index,
                    mode=self.options.mode,
                    state=self._resumed["rolling"],
                )
                self.probe.sample = self.probe.new_sample(retriever.passage_encoder.dim)
            else:  # resumed in another mode
                self.refresh(retriever, step)
                self._started_at = step
        self._resumed = {}

    def prepare(self, retriever: DenseRetriever, step: int) -> dict[str, float]:
        """`ensure`, and what the first training step needs."""
        measured = self.ensure(retriever, step)
        if self.options.in_place and retriever.passage_encoder.trains and self.rolling is None:
            assert retriever.snapshot is not None
            coder = self.corpus.coder(retriever.passage_encoder)
            self.rolling = RollingRefresh(self.corpus, retriever.snapshot, coder, self.options.mode)
            self.rolling.made_at[:] = self.rebuild.made_at
        retriever.depth = HOT_DEPTH if self.rolling and self.options.mode == "hot" else 0
        return measured

    def after_step(self, retriever: DenseRetriever, step: int) -> dict[str, float]:
        """Once after every optimizer step; returns what was measured, by the name it is logged under."""
        if not retriever.passage_encoder.trains:
            return {}
        measured: dict[str, float] = {}
        with self._timed():
            if self.rolling is not None:
                interval = self.options.schedule.interval(step)
                n = self.options.share * self.corpus.n_passages / interval if interval else 0.0
                measured = self.rolling.after_step(retriever, step, n)
            if self._probes_now(step):
                measured |= self.probe.measure(retriever)
                retriever.passages.cache.take()  # of no training step: a resumed run would not have it
            if self.rolling is None:
                if self.rebuild.under_way is not None:
                    measured |= self._advance(retriever, self.options.spread - (step - self._started_at) + 1)
                measured |= self._start_if_due(retriever, step, measured.get("staleness/overlap_at_k"))
        return measured

    def age(self, step: int) -> float:
        """Optimizer steps since the weights that the index was made from; the mean where passages differ."""
        return self.rolling.mean_age(step) if self.rolling is not None else float(step - self.rebuild.made_at)

    def refresh(self, retriever: DenseRetriever, step: int, store: VectorStore | None = None) -> dict[str, float]:
        """Encode everything at once, measure, swap; returns what was measured, by the name it is logged under."""
        started, encoded = time.perf_counter(), self.rebuild.encoded
        with self._timed():
            if self.rolling is not None and retriever.snapshot is not None:
                self.rolling.refresh(retriever, step)
                measured, n_encoded = dict[str, float](), self.corpus.n_passages
            else:
                measured = self.rebuild.run(retriever, step, store)
                if store is not None and retriever.snapshot is not None:
                    self._kept = retriever.snapshot.encoder_fingerprint
                n_encoded = self.rebuild.encoded - encoded  # what the store knew was not encoded
        return measured | _speed(time.perf_counter() - started, n_encoded)

    def keep_vectors(self, retriever: DenseRetriever) -> None:
        """Write the vectors of the index that is searched to the store, where there is one: whoever answers with these
        weights later, from this corpus or a changed one, does not encode them again."""
        snapshot = retriever.snapshot
        if self.store is not None and snapshot is not None and snapshot.encoder_fingerprint != self._kept:
            with raise_on_all_ranks():
                keep_vectors(snapshot, self.corpus, self.store)
            self._kept = snapshot.encoder_fingerprint

    def _advance(self, retriever: DenseRetriever, slices_left: int) -> dict[str, float]:
        """The next slice of an amortized refresh; at its swap, what the whole of it took."""
        started, encoded, made_at = time.perf_counter(), self.rebuild.encoded, self.rebuild.made_at
        measured = self.rebuild.advance(retriever, slices_left, self._started_at)
        self._slices += time.perf_counter() - started
        if measured:
            measured |= _speed(self._slices, self.rebuild.encoded - encoded)
            measured["refresh/steps_since_last"] = float(self.rebuild.made_at - made_at)
        return measured

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors. The corpus' fingerprint says which corpus the index was made from."""
        rolling = {} if self.rolling is None else {"rolling": self.rolling.state_dict()}
        own = {"generation": self.generation, "started_at": self._started_at, "corpus": self.corpus.fingerprint}
        return self.rebuild.state_dict() | own | rolling

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["corpus"] != self.corpus.fingerprint:
            raise OpenBookError(
                "the checkpoint's index is of another corpus",
                where="data.corpus",
                action="Resume with the run's own corpus; `evaluate` takes another.",
            )
        self._resumed = dict(state)
        self.rebuild.load_state_dict(state)
        self._started_at = int(state["started_at"])

    def _probes_now(self, step: int) -> bool:
        options = self.options
        if options.schedule.watches_staleness:
            idle = self.rebuild.under_way is None
            return idle and options.schedule.needs_look(step, self._started_at, options.look_every)
        return options.look_every > 0 and step % options.look_every == 0

    def _start_if_due(self, retriever: DenseRetriever, step: int, overlap: float | None) -> dict[str, float]:
        since, schedule = step - self._started_at, self.options.schedule
        if self.rebuild.under_way or not from_rank_zero(schedule.due(step, self._started_at, overlap)):
            return {}
        measured: dict[str, float] = {}
        if self.options.mode == "amortized":
            started = time.perf_counter()
            self.rebuild.start(retriever)
            self._slices = time.perf_counter() - started
        else:
            measured = self.refresh(retriever, step) | {"refresh/steps_since_last": float(since)}
        self._started_at = step
        return measured

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Counts the seconds of a block; those of a block in it are counted once, for the outer one sets the sum."""
        started = time.perf_counter() - self.seconds
        try:
            yield
        finally:
            self.seconds = time.perf_counter() - started


def _speed(seconds: float, n_encoded: int) -> dict[str, float]:
    return {"refresh/seconds": seconds, "refresh/passages_per_second": n_encoded / max(seconds, 1e-9)}
