"""Passage embeddings of the current weights, valid until the next optimizer step."""

import torch
from torch import Tensor

# Passages kept at most, so that an evaluation over a large corpus does not fill the memory.
_MOST = 65536


class EmbeddingCache:
    """Embeddings by row, without gradient. Rows are on the CPU. Whoever changes the weights calls `outdate`.

    What is outdated is never found again, but can still be taken for an index in which ages differ: it is as fresh as
    an embedding in an index can be.
    """

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}
        self._outdated = False

    def outdate(self) -> None:
        """The weights have changed."""
        self._outdated = True

    def add(self, rows: Tensor, embeddings: Tensor) -> None:
        """rows [n], embeddings [n, dim] with the weights as they are."""
        if self._outdated:
            self._clear()
        self._kept.update(zip(rows.tolist(), embeddings.detach().float(), strict=True))

    def missing(self, rows: Tensor) -> Tensor:
        """Those of rows [n] that are not here; there is room for them."""
        if self._outdated or len(self._kept) + len(rows) > _MOST:
            self._clear()
        return rows[torch.tensor([row not in self._kept for row in rows.tolist()], dtype=torch.bool)]

    def get(self, rows: Tensor) -> Tensor:
        """[n, dim] of rows [n] that are all here."""
        return torch.stack([self._kept[row] for row in rows.tolist()])

    def take(self) -> tuple[Tensor, Tensor]:
        """All there is, rows [n] rising and embeddings [n, dim], the newest of each; then nothing is here any more."""
        rows = torch.tensor(sorted(self._kept), dtype=torch.int64)
        embeddings = self.get(rows) if len(rows) else torch.empty(0, 0)
        self._clear()
        return rows, embeddings

    def _clear(self) -> None:
        self._kept, self._outdated = {}, False
