"""How stale the index is and what a refresh changes, measured on probe questions; also what the index family costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openbook.batch import MISSING_ROW
from openbook.index.snapshot import Snapshot, merged
from openbook.refresh.drift import (
    cosine_drift,
    overlap_among_candidates,
    overlap_at_k,
    rank_correlation,
    score_drift,
)
from openbook.retrieval.corpus_encoder import CorpusOptions
from openbook.retrieval.dense import DenseRetriever
from openbook.utils.distributed import gather_rows, rank, sum_over_ranks, world_size

SAMPLE = 64  # Passages per rank whose drift is measured.

# Probe questions used between refreshes: all of their candidates are encoded.
PROBES_BETWEEN = 32


@dataclass
class Sample:
    """A fixed sample of this rank's passages and their embeddings in the index: rows [n], rising, vectors [n, dim]."""

    rows: np.ndarray
    vectors: Tensor

    @classmethod
    def of(cls, rows: range, n: int, dim: int, seed: int) -> Sample:
        """n of the rows (all where there are fewer), not encoded yet."""
        chosen = np.random.default_rng(seed).permutation(len(rows))[:n]
        return cls(np.sort(chosen) + rows.start, torch.full((len(chosen), dim), torch.nan))

    def see(self, rows: np.ndarray, embeddings: Tensor) -> None:
        """Keep the embeddings of those rows that are in the sample."""
        if len(self.rows):
            places = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
            hit = self.rows[places] == rows
            if hit.any():
                seen = embeddings[torch.from_numpy(np.flatnonzero(hit)).to(embeddings.device)]
                self.vectors[torch.from_numpy(places[hit])] = seen.cpu()


class IndexMeasure:
    """Compares the snapshot that is searched with the one that is being built.

    questions: [n, dim] probe embeddings, the same on all ranks. k: of overlap@k; three times as many of the old
    index's hits are scored again. sample: the passages whose drift is measured. exact: the new family finds what exact
    search finds, so its recall need not be measured. `see` every passage of this rank once, then `finish`; the
    constructor and `finish` are called by all ranks together.
    """

    def __init__(self, *, questions: Tensor, old: Snapshot | None, k: int, sample: Sample, exact: bool):
        self.questions, self.k, self.exact = questions, k, exact
        self.old = old.search(questions, 3 * k) if old is not None else None
        self.old_sample, self.sample = sample, Sample(sample.rows, sample.vectors.clone())
        rows = np.unique(self.old.rows[self.old.mask].numpy()) if self.old is not None else np.empty(0, dtype=np.int64)
        self.watched = Sample(rows, torch.zeros(len(rows), questions.shape[1]))
        self.best = (torch.full((len(questions), k), -torch.inf), torch.full((len(questions), k), MISSING_ROW))

    def see(self, rows: np.ndarray, embeddings: Tensor) -> None:
        """New embeddings [n, dim] fp32 of this rank's passages at rows [n]."""
        self.sample.see(rows, embeddings)
        self.watched.see(rows, embeddings)
        if not self.exact:
            found = self.questions.to(embeddings.device) @ embeddings.T
            scores = torch.cat([self.best[0], found.cpu()], dim=1)
            among = torch.cat([self.best[1], torch.from_numpy(rows).expand(len(self.questions), -1)], dim=1)
            scores, places = scores.topk(self.k, dim=1)
            self.best = scores, among.gather(1, places)

    def finish(self, new: Snapshot) -> dict[str, float]:
        """What was measured, by the name it is logged under; nothing without probe questions."""
        if not len(self.questions):
            return {}
        measured = {}
        found = new.search(self.questions, self.k)
        if not self.exact:
            parts = [gather_rows(part)[0].unflatten(0, (-1, len(self.questions))).numpy() for part in self.best]
            true_rows = torch.from_numpy(merged(parts[0], parts[1], self.k)[1])
            measured["index/recall_of_family"] = overlap_at_k(true_rows, found.rows)
        if self.old is not None:
            vectors = sum_over_ranks(self.watched.vectors)  # 0 where the passage is another rank's
            places = np.searchsorted(self.watched.rows, self.old.rows.numpy()).clip(max=max(len(vectors) - 1, 0))
            again = torch.einsum("bd,bkd->bk", self.questions, vectors[torch.from_numpy(places)])
            mask, before = self.old.mask, self.old.index_scores
            drift = torch.tensor([cosine_drift(self.old_sample.vectors, self.sample.vectors), 1.0])
            total, n = sum_over_ranks(drift * len(self.sample.rows)).tolist()
            measured |= {
                "refresh/overlap_at_k": overlap_at_k(self.old.rows[:, : self.k], found.rows),
                "refresh/rank_correlation": rank_correlation(before, again, mask),
                "refresh/score_drift": score_drift(before[:, : self.k], again[:, : self.k], mask[:, : self.k]),
                "refresh/cosine_drift": total / max(n, 1.0),
            }
        return measured


class StalenessProbe:
    """Probe questions and a sample of passages by which successive indexes are compared.

    questions: ids and mask [n, question_len] of the probe questions, None for none. k: of overlap@k. sample: as the
    searched index holds it; None before the first index.
    """

    def __init__(self, questions: tuple[Tensor, Tensor] | None, corpus: CorpusOptions, k: int):
        self.questions, self.corpus, self.k = questions, corpus, k
        self.sample: Sample | None = None

    @torch.inference_mode()
    def embed(self, retriever: DenseRetriever) -> Tensor:
        """The questions' embeddings [n, dim] fp32 on the CPU by the current question encoder in eval mode, under the
        corpus encoding's autocast dtype; n is 0 without probe questions."""
        encoder, dtype = retriever.question_encoder, self.corpus.dtype
        if self.questions is None:
            return torch.empty(0, encoder.dim)
        device, training = next(encoder.parameters()).device, encoder.training
        encoder.eval()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            questions = encoder(*(part.to(device) for part in self.questions)).float().cpu()
        encoder.train(training)
        return questions

    def new_sample(self, dim: int) -> Sample:
        """A seeded sample of this rank's passages, not encoded yet."""
        return Sample.of(self.corpus.my_rows(), SAMPLE, dim, self.corpus.seed)

    def measure(self, retriever: DenseRetriever) -> dict[str, float]:
        """Between refreshes: overlap@k and rank correlation of stale and fresh scores among the index's first 3 k
        passages, and the cosine drift of the sample, by the name each is logged under.

        About as much work as a training step: the ranks share the questions. Called by all ranks together.
        """
        snapshot, sample, k = retriever.snapshot, self.sample, self.k
        assert snapshot is not None and sample is not None
        mine = self.embed(retriever)[:PROBES_BETWEEN][slice(rank(), None, world_size())]
        stale = snapshot.search(mine, 3 * k)
        rows, places = torch.unique(stale.rows.clamp(min=0), return_inverse=True)
        fresh_scores = torch.einsum("bd,bkd->bk", mine, retriever.passages.encode_once(rows).cpu()[places])
        stored = snapshot.index.vectors if snapshot.index.replaceable else None  # may have been replaced since
        before = torch.from_numpy(stored(sample.rows - snapshot.first_row)) if stored else sample.vectors
        values = (
            overlap_among_candidates(stale.index_scores, fresh_scores, stale.mask, k),
            rank_correlation(stale.index_scores, fresh_scores, stale.mask),
            cosine_drift(before, retriever.passages.encode_once(torch.from_numpy(sample.rows)).cpu()),
        )
        weights = torch.tensor([len(mine), len(mine), len(sample.rows)], dtype=torch.float64)
        sums = sum_over_ranks(torch.stack([torch.tensor(values, dtype=torch.float64) * weights, weights]))
        names = ("staleness/overlap_at_k", "staleness/rank_correlation", "staleness/cosine_drift")
        return dict(zip(names, (sums[0] / sums[1].clamp(min=1)).tolist(), strict=True))
