"""Question encoder, passage encoder and one snapshot of the index: p(z|x) of Lewis et al. 2020, section 2.2."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from openbook.batch import Batch, Retrieved, to_device
from openbook.data.corpus import PassageTokens
from openbook.data.inputs import SpecialIds, passage_inputs
from openbook.data.length_batches import TOKENS_OF_A_PASS, by_length, cheapest_passes
from openbook.errors import OpenBookError
from openbook.index.snapshot import Snapshot
from openbook.models.activation_checkpointing import recomputed
from openbook.models.encoders import TextEncoder
from openbook.retrieval.embedding_cache import EmbeddingCache


class Retriever(nn.Module):
    """DPR-style bi-encoder over a snapshot that may be stale.

    `search` decides *which* passages are read, with the snapshot's scores; `score` says how well they fit, with
    embeddings made now. Only the latter reach a loss.
    """

    def __init__(
        self,
        question_encoder: TextEncoder,
        passage_encoder: TextEncoder,
        tokens: PassageTokens,
        special: SpecialIds,
        max_passage_tokens: int,
        temperature: float,
        train_question_encoder: bool = True,
        train_passage_encoder: bool = True,
        tokens_per_pass: int = 65536,
        rerank: int = 0,
        tokens_per_backward: int = 0,
    ):
        super().__init__()
        self.question_encoder = question_encoder
        self.passage_encoder = passage_encoder
        for encoder, trains in ((question_encoder, train_question_encoder), (passage_encoder, train_passage_encoder)):
            if not trains:
                encoder.requires_grad_(False)
        self.tokens = tokens
        self.special = special
        self.max_passage_tokens = max_passage_tokens
        self.temperature = temperature
        self.tokens_per_pass = tokens_per_pass
        self.rerank = rerank
        self.tokens_per_backward = tokens_per_backward
        self.snapshot: Snapshot | None = None
        self.embedding_cache = EmbeddingCache()
        self.depth = 0  # candidates that a search looks at even where fewer are read
        self._candidates: list[Tensor] = []
        self.passage_encoder.register_load_state_dict_post_hook(lambda *_: self.embedding_cache.outdate())

    def train(self, mode: bool = True) -> Self:
        """A frozen encoder stays in eval mode: dropout in it would be noise that nothing learns from."""
        super().train(mode)
        for encoder in (self.question_encoder, self.passage_encoder):
            if not encoder.trains:
                encoder.eval()
        return self

    def represent(self, batch: Batch) -> Tensor:
        """The questions as `retrieve` and `score` take them: q(x) [batch, dim] fp32."""
        return self.encode_questions(batch.question_ids, batch.question_mask)

    def encode_questions(self, question_ids: Tensor, question_mask: Tensor) -> Tensor:
        """[batch, question_len] twice -> [batch, dim] fp32."""
        return self.question_encoder(question_ids, question_mask)

    def search(self, question_emb: Tensor, top_k: int) -> Retrieved:
        """The snapshot's top_k for question_emb [batch, dim]; no gradient, scores without temperature."""
        if self.snapshot is None:
            raise OpenBookError("searched before there is an index", action="Add the IndexRefresh callback.")
        return self.snapshot.search(question_emb, top_k)

    def retrieve(self, question_emb: Tensor, top_k: int) -> Retrieved:
        """`search`, and with `rerank` the first so many of its candidates put in order by fresh scores, best first.

        The candidates' passages are encoded without gradient and in eval mode, each once while the weights are the
        same. It undoes most of what a stale index costs, for the price of that many encodings. Where `depth` is
        set, that many candidates are looked at in training and remembered (`take_candidates`).
        """
        found = self.search(question_emb, max(top_k, self.rerank, self.depth))
        if self.depth and self.training:
            self._candidates.append(found.rows.flatten())
        if self.rerank > 0:
            first = Retrieved(found.rows[:, : self.rerank], found.index_scores[:, : self.rerank])
            rows, places = torch.unique(first.rows.clamp(min=0), return_inverse=True)
            passage_emb = self.encode_once(rows)
            scores = self._scores(question_emb, passage_emb[to_device(places, passage_emb.device)], first)
            order = scores.argsort(dim=1, descending=True, stable=True)
            behind = torch.arange(self.rerank, found.rows.shape[1], device=order.device).expand(len(order), -1)
            order = torch.cat([order, behind], dim=1)  # asked for more than are re-ranked: the rest as the index has it
            found = Retrieved(found.rows.gather(1, order.cpu()), found.index_scores.gather(1, order))
        return Retrieved(found.rows[:, :top_k], found.index_scores[:, :top_k])

    def score(self, question_emb: Tensor, retrieved: Retrieved) -> Tensor:
        """Fresh doc_scores [batch, n_docs] fp32 of what was retrieved, divided by the temperature; -inf where missing.

        A passage that several questions of the batch retrieved is encoded once. While the passage encoder trains,
        gradient flows into it; otherwise none is recorded, and what is known of today's weights is not encoded again.
        """
        rows, places = torch.unique(retrieved.rows.clamp(min=0), return_inverse=True)
        if torch.is_grad_enabled() and self.passage_encoder.trains:
            passage_emb = self.encode_rows(rows)
            if not self.passage_encoder.has_dropout:
                self.embedding_cache.add(rows, passage_emb)
        else:
            passage_emb = self.encode_once(rows)
        # index_select, not indexing: its gradient adds the shares of a passage up in the same order at every run.
        each = passage_emb.index_select(0, to_device(places.flatten(), passage_emb.device)).unflatten(0, places.shape)
        return self._scores(question_emb, each, retrieved)

    def take_candidates(self) -> Tensor:
        """[n] rows that training's questions retrieved or nearly retrieved since this was last asked."""
        rows, self._candidates = self._candidates, []
        return torch.cat([torch.empty(0, dtype=torch.int64), *rows])

    def _scores(self, question_emb: Tensor, passage_emb: Tensor, retrieved: Retrieved) -> Tensor:
        with torch.autocast(question_emb.device.type, enabled=False):
            scores = torch.einsum("bd,bkd->bk", question_emb.float(), passage_emb.float()) / self.temperature
        return torch.where(to_device(retrieved.mask, scores.device), scores, -torch.inf)

    @property
    def _device(self) -> torch.device:
        return next(self.passage_encoder.parameters()).device

    def index_is_fresh(self) -> bool:
        """Whether the snapshot was made from today's passage encoder."""
        return self.snapshot is not None and self.snapshot.encoder_fingerprint == self.passage_encoder.fingerprint()

    def index_is_exact(self) -> bool:
        """Whether the snapshot's scores are what `score` would give: an exact index of today's weights."""
        return self.snapshot is not None and self.snapshot.index.options.exact and self.index_is_fresh()

    @torch.no_grad()
    def encode_once(self, rows: Tensor) -> Tensor:
        """Embeddings [n, dim] fp32 of distinct rows in eval mode, no gradient; kept while the weights are the same.
        Rows are on the CPU."""
        if not len(rows):
            return torch.empty(0, self.passage_encoder.dim, device=self._device)
        wanted = self.embedding_cache.missing(rows)
        if len(wanted):
            mode = self.passage_encoder.training
            self.passage_encoder.eval()
            self.embedding_cache.add(wanted, self.encode_rows(wanted))
            self.passage_encoder.train(mode)
        return self.embedding_cache.get(rows)

    def encode_rows(self, rows: Tensor) -> Tensor:
        """Embeddings [n, dim] of passages by row, in the mode and with the gradient the passage encoder has now. Rows
        are on the CPU.

        With `tokens_per_backward` a gradient's activations are there for one pass at a time, of at most so many tokens.
        """
        device, chosen = self._device, rows.numpy()
        lengths = np.minimum(self.tokens.length(chosen) + self.special.n_in_context, self.max_passage_tokens)
        encode: Callable[..., Tensor] = self.passage_encoder
        if torch.is_grad_enabled() and self.passage_encoder.trains:
            most = min(self.tokens_per_pass, self.tokens_per_backward or self.tokens_per_pass)
            passes = cheapest_passes(lengths, most, TOKENS_OF_A_PASS.get(device.type, 0))
            if self.tokens_per_backward:
                encode = partial(recomputed, encode)
        else:
            passes = list(by_length(lengths, self.tokens_per_pass))
        parts = []
        for positions in passes:
            ids, mask = passage_inputs(self.tokens, chosen[positions], self.special, self.max_passage_tokens)
            parts.append(encode(to_device(ids, device), to_device(mask, device)))
        back = np.argsort(np.concatenate(passes))
        return torch.cat(parts)[to_device(torch.from_numpy(back), device)]
