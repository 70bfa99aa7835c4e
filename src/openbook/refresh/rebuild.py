"""One re-encoding of the corpus: weights as they were at its start, a new index beside the old one, then a snapshot."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.index.vector_store import VectorStore, passage_keys, store_name
from openbook.models.encoders import TextEncoder
from openbook.refresh.measure import Comparison
from openbook.retrieval.corpus_encoder import CorpusOptions, Encoding, encode_passes
from openbook.utils.console import progress
from openbook.utils.distributed import raise_on_all_ranks


class Refresh:
    """Makes the next snapshot of `encoder`, whole or slice by slice; nothing that is searched changes meanwhile.

    Passages are encoded in passes of one length, in a seeded order, so that the first of n slices costs what the last
    does. Families that learn see a seeded sample first. What `store` knows of these weights is not encoded again.
    All methods are called by all ranks together; what one rank raises is raised on all.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        corpus: CorpusOptions,
        options: IndexOptions,
        generation: int,
        comparison: Comparison,
        store: VectorStore | None = None,
    ):
        self.corpus, self.options, self.generation = corpus, options, generation
        self.comparison, self.store = comparison, store
        self.rows = corpus.my_rows()
        self.encoded = 0  # passages so far
        self._waiting: list[Encoding] = []
        self._learnt_from: list[tuple[np.ndarray, Tensor]] = []
        with raise_on_all_ranks():
            self.fingerprint = encoder.fingerprint()
            self.coder = corpus.coder(encoder)
            self.index = ShardIndex(encoder.dim, len(self.rows), options)
            self.n_to_learn_from = self.index.n_to_train_on
            order = np.random.default_rng(options.seed).permutation(self.rows)
            self._to_learn_from = np.sort(order[: self.n_to_learn_from])
            self.passes = self._passes(self._unknown())
            self.n_to_encode = sum(map(len, self.passes))

    def run(self, label: str = "encoding the corpus") -> None:
        """Encode all that is left."""
        with raise_on_all_ranks(), progress(label, "passages") as done:
            for rows, embeddings in encode_passes(self.coder, self.passes):
                self._take(rows, embeddings)
                done(self.encoded, self.n_to_encode)
            self.passes = []

    def advance(self, slices_left: int) -> None:
        """Encode the next slice, of slices_left that remain with it; the slices are alike in tokens."""
        with raise_on_all_ranks():
            self._settle()
            firsts, sizes = [rows[0] for rows in self.passes], [len(rows) for rows in self.passes]
            tokens = self.coder.lengths(np.array(firsts, dtype=np.int64)) * np.array(sizes, dtype=np.int64)
            # As many passes as bring the sum nearest to an even share.
            n = int(np.abs(np.cumsum(tokens) - tokens.sum() / slices_left).argmin()) + 1 if len(tokens) else 0
            n = len(self.passes) if slices_left <= 1 else n
            for rows in self.passes[:n]:
                self._waiting.append(self.coder.start(rows))
                if self.coder.device.type == "cpu":
                    self._settle()
            del self.passes[:n]

    def finish(self) -> tuple[Snapshot, dict[str, float]]:
        """The snapshot, once everything is encoded, and what it changes."""
        with raise_on_all_ranks():
            self._settle()
            if self._learnt_from:
                self._learn()
            self.index.finish()
        snapshot = Snapshot(
            self.index,
            self.generation,
            self.fingerprint,
            self.corpus.fingerprint,
            self.corpus.n_passages,
            self.rows.start,
        )
        measured = self.comparison.finish(snapshot)
        with raise_on_all_ranks():
            self._to_store()
        return snapshot, measured

    def _settle(self) -> None:
        """Take what a GPU has encoded beside the last training step."""
        waiting, self._waiting = self._waiting, []
        for encoding in waiting:
            self._take(encoding.rows, encoding.result())

    def _take(self, rows: np.ndarray, embeddings: Tensor) -> None:
        self.encoded += len(rows)
        self._index(rows, embeddings)

    def _index(self, rows: np.ndarray, embeddings: Tensor) -> None:
        self.comparison.see(rows, embeddings)
        if not self.n_to_learn_from:
            self.index.write(rows - self.rows.start, embeddings.numpy())
            return
        self._learnt_from.append((rows, embeddings))
        self.n_to_learn_from -= int(np.isin(rows, self._to_learn_from).sum())
        if not self.n_to_learn_from:
            self._learn()

    def _learn(self) -> None:
        """The sample is complete: let the family learn from it, and index it."""
        parts, self._learnt_from = self._learnt_from, []
        rows = np.concatenate([rows for rows, _ in parts])
        sample = np.flatnonzero(np.isin(rows, self._to_learn_from))
        sample = sample[np.argsort(rows[sample])]  # the same whatever came from the store
        self.index.train(torch.cat([embeddings for _, embeddings in parts]).numpy()[sample])
        for rows, embeddings in parts:
            self.index.write(rows - self.rows.start, embeddings.numpy())

    def _passes(self, rows: np.ndarray) -> list[np.ndarray]:
        """Those of a seeded sample to learn from first, where there is one."""
        corpus = self.corpus
        first = np.isin(rows, self._to_learn_from)
        parts = [part for part in (rows[first], rows[~first]) if len(part)]
        return [rows for part in parts for rows in self.coder.passes(part, corpus.tokens_per_pass, corpus.seed)]

    def _unknown(self) -> np.ndarray:
        """The rows that must be encoded; what the store knows is indexed here, a twentieth at a time."""
        if self.store is None:
            return np.asarray(self.rows)
        self._keys = passage_keys(self.corpus.tokens, self.rows)
        unknown = []
        for places in np.array_split(np.random.default_rng(self.options.seed).permutation(len(self.rows)), 20):
            known, vectors = self.store.find(self._store_name(), self._keys[places])
            unknown.append(places[~known])
            if known.any():
                self._index(places[known] + self.rows.start, torch.from_numpy(vectors))
        return np.sort(np.concatenate(unknown)) + self.rows.start

    def _to_store(self) -> None:
        if self.store is not None and self.encoded and self.options.exact:
            part = f"{self.rows.start}-{self.rows.stop}-of-{self.corpus.fingerprint[:12]}"
            vectors = self.index.stored().view(np.float32)  # Flat stores the vectors themselves: no copy
            self.store.save(self._store_name(), part, self._keys, vectors)

    def _store_name(self) -> str:
        corpus = self.corpus
        return store_name(self.fingerprint, corpus.max_length, corpus.special, corpus.dtype)
