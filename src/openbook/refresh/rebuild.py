"""Refreshing by rebuilding: a new index is made beside the old one, then all ranks switch to it at the same step.

`RebuildRefresh` keeps what a run must remember of it; `Rebuild` is one encoding of the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openbook.index.passage_keys import passage_keys
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.index.vector_store import VectorStore
from openbook.models.encoders import TextEncoder
from openbook.refresh.measure import IndexMeasure, StalenessProbe
from openbook.retrieval.corpus_encoder import CorpusOptions, encode_passes
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.kept_vectors import keep_vectors, stored_as
from openbook.utils.console import progress, say
from openbook.utils.distributed import raise_on_all_ranks, sum_over_ranks

State = dict[str, Tensor] | None


class RebuildRefresh:
    """The whole corpus encoded at once (`run`: blocking), or a slice after each of several steps (`start`, `advance`:
    amortized), with the weights as they were at the start; then the retriever's snapshot is swapped.

    generation: of the searched index, -1 for none. made_at: the step whose weights it was made from. encoded: passages
    encoded so far, on all ranks. encoder_state: the weights that the searched index was made from, for a checkpoint;
    None where the encoder does not train. All methods are called by all ranks together.
    """

    def __init__(self, corpus: CorpusOptions, index: IndexOptions, probe: StalenessProbe):
        self.corpus, self.index, self.probe = corpus, index, probe
        self.generation, self.made_at, self.encoded = -1, 0, 0
        self.encoder_state: State = None
        self.under_way: Rebuild | None = None

    def run(self, retriever: DenseRetriever, step: int, store: VectorStore | None = None) -> dict[str, float]:
        """Encode everything now and swap; returns what was measured, by the name it is logged under."""
        self.under_way = None  # or there would be three indexes
        rebuild = self._begin(retriever, retriever.passage_encoder, self.probe.embed(retriever), store=store)
        rebuild.run()
        rebuild.encoder_state = retriever.passage_encoder.copied_state()
        return self._swap(retriever, rebuild, step)

    def start(self, retriever: DenseRetriever) -> None:
        """Copy the weights; the slices follow."""
        encoder = retriever.passage_encoder
        self.under_way = self._begin(retriever, encoder, self.probe.embed(retriever), encoder.copied_state())

    def advance(self, retriever: DenseRetriever, slices_left: int, started_at: int) -> dict[str, float]:
        """The next of slices_left, and after the last one the swap, to an index of the weights of step started_at."""
        rebuild, self.under_way = self.under_way, None  # a refresh that fails half-way is abandoned
        assert rebuild is not None
        rebuild.advance(slices_left)
        if slices_left > 1:
            self.under_way = rebuild
            return {}
        return self._swap(retriever, rebuild, started_at)

    def restore(self, retriever: DenseRetriever, store: VectorStore | None) -> None:
        """The index that the checkpoint's run searched, made again from its weights."""
        encoded, encoder = self.encoded, retriever.passage_encoder.with_state(self.encoder_state)
        self.generation -= 1  # the same generation is made again
        rebuild = self._begin(retriever, encoder, self.probe.embed(retriever), self.encoder_state, store)
        rebuild.run("encoding the checkpoint's index again")
        self._swap(retriever, rebuild, self.made_at)
        self.encoded = encoded

    def restore_next(self, retriever: DenseRetriever, state: dict[str, Any], slices_left: range) -> None:
        """What the checkpoint's run had encoded of the next index; slices_left: before each slice that was done."""
        encoder_state = state["passage_encoder"]
        encoder = retriever.passage_encoder.with_state(encoder_state)
        self.under_way = self._begin(retriever, encoder, state["questions"], encoder_state)
        for left in slices_left:
            self.under_way.advance(left)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors; `next` is what `restore_next` needs, there while a refresh is under way."""
        state: dict[str, Any] = {name: getattr(self, name) for name in ("generation", "made_at", "encoded")}
        state["passage_encoder"] = self.encoder_state
        if self.under_way is not None:
            questions = self.under_way.measure.questions
            state["next"] = {"passage_encoder": self.under_way.encoder_state, "questions": questions}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generation, self.made_at, self.encoded = (int(state[k]) for k in ("generation", "made_at", "encoded"))
        self.encoder_state = state["passage_encoder"]

    def _begin(
        self,
        retriever: DenseRetriever,
        encoder: TextEncoder,
        questions: Tensor,
        encoder_state: State = None,
        store: VectorStore | None = None,
    ) -> Rebuild:
        probe, old = self.probe, retriever.snapshot
        sample = probe.sample or probe.new_sample(encoder.dim)
        return Rebuild(
            encoder,
            self.corpus,
            self.index,
            generation=self.generation + 1,
            measure=IndexMeasure(questions=questions, old=old, k=probe.k, sample=sample, exact=self.index.exact),
            encoder_state=encoder_state,
            store=store,
        )

    def _swap(self, retriever: DenseRetriever, rebuild: Rebuild, made_at: int) -> dict[str, float]:
        """Rebind the snapshot; from here on every search uses the new one."""
        snapshot, measured = rebuild.finish()
        encoded = int(sum_over_ranks(torch.tensor(rebuild.encoded)))
        retriever.snapshot = snapshot
        self.generation, self.made_at, self.encoder_state = snapshot.generation, made_at, rebuild.encoder_state
        self.probe.sample = rebuild.measure.sample
        self.encoded += encoded
        measured |= {"refresh/generation": float(snapshot.generation), "refresh/encoded_passages": float(self.encoded)}
        if "refresh/overlap_at_k" in measured:
            say(
                f"index generation {snapshot.generation}: {encoded:,} passages encoded, overlap@{self.probe.k} with "
                f"the previous one {measured['refresh/overlap_at_k']:.2f}, "
                f"score drift {measured['refresh/score_drift']:.3f}"
            )
        return measured


class Rebuild:
    """Makes the next snapshot of `encoder`, whole or slice by slice; nothing that is searched changes meanwhile.

    Passages are encoded in a seeded order of passes, so that the first of n slices costs what the last does. Families
    that learn see a seeded sample first. What `store` knows of these weights is not encoded again.
    encoder_state: the encoder's weights for a checkpoint, where they train.
    All methods are called by all ranks together; what one rank raises is raised on all.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        corpus: CorpusOptions,
        options: IndexOptions,
        *,
        generation: int,
        measure: IndexMeasure,
        encoder_state: State = None,
        store: VectorStore | None = None,
    ):
        self.corpus, self.options, self.generation = corpus, options, generation
        self.measure, self.encoder_state, self.store = measure, encoder_state, store
        self.rows = corpus.my_rows()
        self.encoded = 0  # passages so far
        self._unwritten: list[tuple[np.ndarray, Tensor]] = []
        with raise_on_all_ranks():
            self.fingerprint = encoder.fingerprint()
            self.index = ShardIndex(encoder.dim, len(self.rows), options)
            self.coder = corpus.coder(encoder, self.index.device)
            self.n_to_learn_from = self.index.n_to_train_on
            order = np.random.default_rng(options.seed).permutation(self.rows)
            self._learns_from = np.zeros(len(self.rows), dtype=bool)  # by place in the shard
            self._learns_from[order[: self.n_to_learn_from] - self.rows.start] = True
            rows = self._unknown()
            first = self._learns_from[rows - self.rows.start]
            parts = (rows[first], rows[~first])  # a seeded sample to learn from comes first, where there is one
            self.passes = [p for part in parts for p in self.coder.passes(part, corpus.tokens_per_pass, corpus.seed)]
            self.n_to_encode = sum(map(len, self.passes))

    def run(self, label: str = "encoding the corpus") -> None:
        """Encode all that is left."""
        told = self.measure.old is not None  # with the overlap
        with raise_on_all_ranks(), progress(label, "passages", told=told) as done:
            self._take_encoded(encode_passes(self.coder, self.passes), done)
            self.passes = []

    def advance(self, slices_left: int) -> None:
        """Encode the next slice, of slices_left that remain with it; the slices are alike in tokens."""
        with raise_on_all_ranks():
            self._take_encoded(self.coder.finished())
            tokens = np.cumsum(self.coder.tokens_in(self.passes))
            # As many passes as bring the sum nearest to an even share; in the last slice all of them.
            n = int(np.abs(tokens - tokens[-1] / max(slices_left, 1)).argmin()) + 1 if len(tokens) else 0
            self._take_encoded(self.coder.begin(self.passes[:n]))
            del self.passes[:n]

    def finish(self) -> tuple[Snapshot, dict[str, float]]:
        """The snapshot, once everything is encoded, and what it changes."""
        with raise_on_all_ranks():
            self._take_encoded(self.coder.finished())
            self.index.finish()
        snapshot = Snapshot(
            self.index,
            self.generation,
            self.fingerprint,
            self.corpus.fingerprint,
            self.corpus.n_passages,
            self.rows.start,
        )
        measured = self.measure.finish(snapshot)
        with raise_on_all_ranks():
            if self.store is not None and self.encoded:
                keep_vectors(snapshot, self.corpus, self.store, self._keys)
        return snapshot, measured

    def _take_encoded(
        self, passes: Iterable[tuple[np.ndarray, Tensor]], done: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        for rows, embeddings in passes:
            self._take(rows, embeddings)
            self.encoded += len(rows)
            done(self.encoded, self.n_to_encode)

    def _take(self, rows: np.ndarray, embeddings: Tensor) -> None:
        """Index these; where the family learns, once its sample is complete."""
        self.measure.see(rows, embeddings)
        self._unwritten.append((rows, embeddings))
        if self.n_to_learn_from:
            self.n_to_learn_from -= int(self._learns_from[rows - self.rows.start].sum())
            if self.n_to_learn_from:
                return
            seen = np.concatenate([rows for rows, _ in self._unwritten])
            sample = np.flatnonzero(self._learns_from[seen - self.rows.start])
            sample = sample[np.argsort(seen[sample])]  # the same whatever came from the store
            self.index.train(torch.cat([embeddings for _, embeddings in self._unwritten]).numpy()[sample])
        unwritten, self._unwritten = self._unwritten, []
        for rows, embeddings in unwritten:
            self.index.write(rows - self.rows.start, embeddings)

    def _unknown(self) -> np.ndarray:
        """The rows that must be encoded; what the store knows is indexed here, a twentieth at a time."""
        if self.store is None:
            return np.asarray(self.rows)
        name = stored_as(self.fingerprint, self.corpus)
        self._keys = passage_keys(self.corpus.tokens, self.rows)
        unknown = []
        for places in np.array_split(np.random.default_rng(self.options.seed).permutation(len(self.rows)), 20):
            known, vectors = self.store.find(name, self._keys[places])
            unknown.append(places[~known])
            if known.any():
                self._take(places[known] + self.rows.start, torch.from_numpy(vectors))
        return np.sort(np.concatenate(unknown)) + self.rows.start
