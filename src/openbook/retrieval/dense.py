"""The dense retriever: question encoder, passage encoder and one snapshot of the index (DPR, Karpukhin et al. 2020)."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openbook.batch import Batch, Retrieved, to_device
from openbook.config.training import OptimConfig
from openbook.errors import OpenBookError
from openbook.index.snapshot import Snapshot
from openbook.models.encoders import TextEncoder
from openbook.retrieval.base import Retriever
from openbook.retrieval.passage_embedder import PassageEmbedder
from openbook.utils.distributed import gather_rows, gather_rows_with_gradient, rank, shard, world_size


class DenseRetriever(nn.Module, Retriever[Tensor]):
    """A bi-encoder over a snapshot that may be stale; queries are question embeddings [batch, dim] fp32.

        doc_scores[b, k] = <d(z_k), q(x_b)> / temperature

    `search` decides *which* passages are read, with the snapshot's scores; `score` says how well they fit, with
    embeddings computed now. Only the latter reach a loss. passages: encodes them; its encoder is the passage encoder.
    rerank: candidates that are put in order by fresh scores before the first of them are read (0: none, -1: and what
    is read keeps the index's order). depth: candidates that training searches and remembers even where fewer are read.
    """

    def __init__(
        self,
        question_encoder: TextEncoder,
        passages: PassageEmbedder,
        *,
        temperature: float,
        train_question_encoder: bool = True,
        train_passage_encoder: bool = True,
        rerank: int = 0,
    ):
        super().__init__()
        self.question_encoder, self.passage_encoder = question_encoder, passages.encoder
        if not train_question_encoder:
            self.question_encoder.requires_grad_(False)
        if not train_passage_encoder:
            self.passage_encoder.requires_grad_(False)
        self.passages, self.temperature, self.rerank = passages, temperature, rerank
        self.snapshot: Snapshot | None = None
        self.depth = 0
        self._candidates: list[Tensor] = []

    def train(self, mode: bool = True) -> Self:
        """A frozen encoder stays in eval mode: dropout in it would be noise that nothing learns from."""
        super().train(mode)
        for encoder in (self.question_encoder, self.passage_encoder):
            if not encoder.trains:
                encoder.eval()
        return self

    def represent(self, batch: Batch) -> Tensor:
        """q(x) [batch, dim] fp32."""
        return self.question_encoder(batch.question_ids, batch.question_mask)

    def search(self, queries: Tensor, top_k: int) -> Retrieved:
        """The snapshot's top_k; no gradient, scores without temperature."""
        if self.snapshot is None:
            raise OpenBookError("searched before there is an index", action="Add the IndexRefresh callback.")
        return self.snapshot.search(queries, top_k)

    def retrieve(self, queries: Tensor, top_k: int) -> Retrieved:
        """`search`, and with `rerank` the first so many of its candidates put in order by fresh scores, best first.

        The candidates' passages are encoded without gradient and in eval mode, each once between optimizer steps. That
        undoes most of what a stale index costs, for the price of that many encodings.
        """
        found = self.search(queries, max(top_k, self.rerank, self.depth))
        if self.depth and self.training:
            self._candidates.append(found.rows.flatten())
        if self.rerank > 0:
            first = Retrieved(found.rows[:, : self.rerank], found.index_scores[:, : self.rerank])
            scores = self._scores(queries, first, self.passages.encode_once)
            order = scores.argsort(dim=1, descending=True, stable=True)
            behind = torch.arange(self.rerank, found.rows.shape[1], device=order.device).expand(len(order), -1)
            order = torch.cat([order, behind], dim=1)  # more than are re-ranked: the rest keep the index's order
            found = Retrieved(found.rows.gather(1, order.cpu()), found.index_scores.gather(1, order))
        return Retrieved(found.rows[:, :top_k], found.index_scores[:, :top_k])

    def score(self, queries: Tensor, retrieved: Retrieved) -> Tensor:
        """Fresh doc_scores [batch, n_docs] fp32 of what was retrieved; -inf where missing.

        A passage that several questions of the batch retrieved is encoded once. While the passage encoder trains,
        gradient flows into it; otherwise none is recorded, and the cache serves what it has.
        """
        return self._scores(queries, retrieved, self.passages.encode_for_training)

    def encode_among_ranks(self, rows: Tensor) -> Tensor:
        """Embeddings [n, dim] of the rows [n] (on the CPU) that all ranks have in common (`of_all_ranks`), each encoded
        on one rank, with gradient as in `score`. All ranks call this together."""
        mine = shard(len(rows), rank(), world_size())
        chosen = rows[mine.start : mine.stop]
        if not self.passage_encoder.trains:
            return gather_rows(self.passages.encode_once(chosen))[0]
        # With more ranks than passages somebody has none; it encodes one for nothing, so that its weights get their
        # gradient of zero, which DistributedDataParallel waits for.
        passages = self.passages
        passage_emb = passages.encode_for_training(chosen) if len(chosen) else passages.encode(rows[:1])[:0]
        return gather_rows_with_gradient(passage_emb)

    def score_rows(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Fresh scores [batch, n] fp32 of every question with the passages at the rows [n] that all ranks have in
        common, with gradient as in `score`. All ranks call this together."""
        passage_emb = self.encode_among_ranks(rows)
        with torch.autocast(queries.device.type, enabled=False):
            return queries.float() @ passage_emb.float().T / self.temperature

    def _scores(self, queries: Tensor, retrieved: Retrieved, encode: Callable[[Tensor], Tensor]) -> Tensor:
        rows, places = torch.unique(retrieved.rows.clamp(min=0), return_inverse=True)
        passage_emb = encode(rows)
        # An embedding: its gradient adds up the terms of a passage in the same order in every run, which that of
        # index_select does not on a GPU, nor that of indexing on a CPU.
        each = F.embedding(to_device(places, passage_emb.device), passage_emb)
        with torch.autocast(queries.device.type, enabled=False):
            scores = torch.einsum("bd,bkd->bk", queries.float(), each.float()) / self.temperature
        return torch.where(to_device(retrieved.mask, scores.device), scores, -torch.inf)

    def take_candidates(self) -> Tensor:
        """[n] rows that training's questions retrieved or nearly retrieved since the last call."""
        rows, self._candidates = self._candidates, []
        return torch.cat([torch.empty(0, dtype=torch.int64), *rows])

    def index_is_fresh(self) -> bool:
        """Whether the snapshot was made from the passage encoder's current weights."""
        return self.snapshot is not None and self.snapshot.encoder_fingerprint == self.passage_encoder.fingerprint()

    def index_is_exact(self) -> bool:
        """Whether the snapshot's scores are what `score` would give: an exact index of the current weights."""
        return self.snapshot is not None and self.snapshot.index.options.exact and self.index_is_fresh()

    def index_facts(self) -> dict[str, Any]:
        names = ("generation", "n_passages", "factory")
        return {name: getattr(self.snapshot, name) for name in names} if self.snapshot else {}

    def parts(self, optim: OptimConfig) -> list[tuple[str, nn.Module, float]]:
        return [
            ("question_encoder", self.question_encoder, optim.lr_question_encoder or optim.lr),
            ("passage_encoder", self.passage_encoder, optim.lr_passage_encoder or optim.lr),
        ]

    def weights_changed(self) -> None:
        self.passages.cache.outdate()


def of_all_ranks(rows: list[int]) -> Tensor:
    """[n] the distinct rows of all ranks, rising; row 0 where there is none, so that there is something to encode."""
    everywhere, _ = gather_rows(torch.tensor(rows, dtype=torch.int64))
    return torch.unique(everywhere) if len(everywhere) else torch.zeros(1, dtype=torch.int64)
