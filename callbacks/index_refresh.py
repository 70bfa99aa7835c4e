"""Re-encode the corpus on schedule and swap the index on all ranks at the same optimizer step."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from openbook.distributed import concatenate_shards, raise_together, rank, shard, world_size
from openbook.encode_corpus import encode_passages
from openbook.encoders import TextEncoder
from openbook.mips import Snapshot, build_index
from openbook.progress import progress, say
from openbook.retriever import Retriever
from openbook.schedule import RefreshSchedule


@dataclass(frozen=True)
class IndexOptions:
    """How a snapshot is made: FAISS factory string, where it is searched, its search depth; tokens per forward
    pass and weights' dtype when the corpus is encoded."""

    factory: str = "Flat"
    device: Literal["cpu", "gpu"] = "cpu"
    nprobe: int = 16
    ef_search: int = 64
    tokens_per_pass: int = 4096
    dtype: torch.dtype = torch.float32


class IndexRefresh(L.Callback):
    """Owns the snapshot of a module's retriever: builds it before the first search, refreshes it on schedule.

    A refresh: every rank encodes its shard of the corpus with today's passage encoder, the shards are exchanged, each
    rank builds the same index, measures it against the old one on probe questions, and rebinds `retriever.snapshot`.
    A frozen passage encoder is never encoded again.

    fresh_test: re-encode before a test when the passage encoder has moved since the last refresh.

    A checkpoint keeps the passage encoder as it was at the last refresh, so that a resumed run searches the very
    index that the interrupted one searched.
    """

    def __init__(
        self,
        schedule: RefreshSchedule,
        options: IndexOptions,
        corpus_fingerprint: str,
        probes: tuple[Tensor, Tensor] | None = None,
        overlap_k: int = 10,
        fresh_test: bool = True,
    ):
        self.schedule = schedule
        self.options = options
        self.corpus_fingerprint = corpus_fingerprint
        self.probes = probes
        self.overlap_k = overlap_k
        self.fresh_test = fresh_test
        self.generation = -1
        self.last_refresh = 0
        self.seconds = 0.0  # of this process: building, comparing, swapping
        self._encoder_then: dict[str, Tensor] | None = None

    # By then a resumed run's weights are in place, whatever the strategy restores them with.
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ensure(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ensure(pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ensure(pl_module)
        retriever: Retriever = pl_module.retriever  # type: ignore[assignment]
        if self.fresh_test and not retriever.index_is_fresh():
            self.refresh(retriever)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        retriever: Retriever = pl_module.retriever  # type: ignore[assignment]
        if retriever.passage_encoder.trains and self.schedule.due(trainer.global_step, self.last_refresh):
            measured = self.refresh(retriever)
            measured["refresh/steps_since_last"] = float(trainer.global_step - self.last_refresh)
            self.last_refresh = trainer.global_step
            for logger in trainer.loggers:  # not through the module: Lightning would repeat the values at the next step
                logger.log_metrics(measured, step=trainer.global_step - 1)

    def refresh(self, retriever: Retriever) -> dict[str, float]:
        """Encode, build, measure, swap; returns what was measured, by the name it is logged under."""
        started = time.perf_counter()
        old = retriever.snapshot
        new, embeddings = self._make(retriever, retriever.passage_encoder)
        measured = {} if old is None else self._compare(retriever, old, new, embeddings)
        retriever.snapshot = new
        self.generation = new.generation
        if retriever.passage_encoder.trains:
            self._encoder_then = _copied_state(retriever.passage_encoder)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        measured |= {
            "refresh/seconds": seconds,
            "refresh/passages_per_second": new.n_passages / seconds,
            "refresh/generation": float(new.generation),
        }
        if "refresh/overlap_at_k" in measured:
            overlap, drift = measured["refresh/overlap_at_k"], measured["refresh/score_drift"]
            say(f"index generation {new.generation}: overlap@{self.overlap_k} with the last one {overlap:.2f}, "
                f"score drift {drift:.3f}")  # fmt: skip
        return measured

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors. The corpus' fingerprint says which corpus the index was made from."""
        return {"generation": self.generation, "last_refresh": self.last_refresh, "corpus": self.corpus_fingerprint,
                "passage_encoder": self._encoder_then}  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.generation = int(state_dict["generation"])
        self.last_refresh = int(state_dict["last_refresh"])
        self._encoder_then = state_dict["passage_encoder"]

    def _ensure(self, module: L.LightningModule) -> None:
        """Build the snapshot where there is none: of the weights a checkpoint kept for it, else of today's."""
        retriever: Retriever = module.retriever  # type: ignore[assignment]
        if retriever.snapshot is not None:
            return
        if self.generation < 0:
            self.refresh(retriever)
            return
        started = time.perf_counter()
        encoder = retriever.passage_encoder
        if self._encoder_then is not None:
            encoder = copy.deepcopy(encoder)
            encoder.load_state_dict(self._encoder_then)
        self.generation -= 1  # the same generation is made again
        retriever.snapshot, _ = self._make(retriever, encoder)
        self.generation = retriever.snapshot.generation
        self.seconds += time.perf_counter() - started

    def _make(self, retriever: Retriever, encoder: TextEncoder) -> tuple[Snapshot, Tensor]:
        """A new snapshot of the whole corpus under `encoder`, and its embeddings [n_passages, dim]."""
        options, n_passages = self.options, len(retriever.tokens.lengths)
        error: Exception | None = None
        embeddings = torch.empty(0)
        try:
            with progress("encoding the corpus", "passages") as done:
                embeddings = encode_passages(
                    encoder, retriever.tokens, shard(n_passages, rank(), world_size()), retriever.special,
                    retriever.max_passage_tokens, options.tokens_per_pass, options.dtype, done,
                )  # fmt: skip
        except Exception as caught:  # exchanged before it is raised: a rank alone would leave the others waiting
            error = caught
        raise_together(error)
        embeddings = concatenate_shards(embeddings, n_passages)
        try:
            index = build_index(embeddings.numpy(), options.factory, options.device, options.nprobe, options.ef_search)
        except Exception as caught:
            error = caught
        raise_together(error)
        snapshot = Snapshot(index, self.generation + 1, encoder.fingerprint(), self.corpus_fingerprint, options.factory)
        return snapshot, embeddings

    @torch.inference_mode()
    def _compare(self, retriever: Retriever, old: Snapshot, new: Snapshot, embeddings: Tensor) -> dict[str, float]:
        """overlap@k: the share of the old top-k that is still in the new one, under today's question encoder. Score
        drift: mean |new - old| inner product of the old top-k."""
        if self.probes is None:
            return {}
        ids, mask = self.probes
        device = next(retriever.parameters()).device
        was_training = retriever.question_encoder.training
        retriever.question_encoder.eval()
        with torch.autocast(device.type, self.options.dtype, enabled=self.options.dtype != torch.float32):
            questions = retriever.question_encoder(ids.to(device), mask.to(device)).cpu()
        retriever.question_encoder.train(was_training)
        before, after = old.search(questions, self.overlap_k), new.search(questions, self.overlap_k)
        kept = (before.rows[:, :, None] == after.rows[:, None, :]).any(-1) & before.mask
        again = torch.einsum("bd,bkd->bk", questions, embeddings[before.rows.clamp(min=0)])
        drift = (again - before.index_scores).abs()[before.mask]
        return {
            "refresh/overlap_at_k": (kept.sum() / before.mask.sum().clamp(min=1)).item(),
            "refresh/score_drift": drift.mean().item(),
        }


def _copied_state(encoder: TextEncoder) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in encoder.state_dict().items()}
