"""Exact search by torch over vectors that a tensor on a GPU owns: replaced in place, fp32 or fp16, read about once.

An exact search takes as long as reading the vectors, so they are read once, as they are stored, and multiplied in
what the GPU multiplies fastest (TF32, fp16). Of every group of passages only the best of these coarse scores is kept.
It says which groups are worth a second look; their members' scores are summed again in fp64, in the order that every
storage sums in (`sum_by_halves`): the same bits as on a CPU. By how much a coarse score can be off is known, so it is
known whether a group that was passed over could hold one of the best; only questions of which that is so are asked
again, of more groups, and at last of all passages. Rows and scores go to the host together, the one wait of a search.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from openbook.index.storage import DEEPEST, Storage, sum_by_halves

_GROUP = 16  # passages whose best coarse score stands for all of them
_SPARE = 24  # groups looked into beyond top-k, so that a second round is rare
_QUESTIONS = 1024  # searched for at once

# How far a coarse score can be off, as a share of |question| |longest vector|. TF32 keeps 10 bits of a number, and some
# GPUs drop the others instead of rounding: 2^-9 for two factors. Of fp16 vectors only the question is rounded: 2^-11.
# The rest is for sums in fp32, and for the lengths being rounded themselves.
_ROUNDING = {torch.float32: 2.4e-3, torch.float16: 8e-4}
_LARGEST = 1e37  # |question| |longest vector| from which a sum in fp32 may overflow

_FOUND, _DEEPER, _UNKNOWN = 0, 1, 2  # what a coarse search says of a question


class FlatOnGpu(Storage):
    """[n_passages, dim] on a GPU, in dtype. temp_memory: MiB that a search may take for itself, about."""

    replaceable = True

    def __init__(self, dim: int, n_passages: int, dtype: torch.dtype, temp_memory: int, device: torch.device):
        self.dim, self.n_passages, self.device = dim, n_passages, device
        with torch.inference_mode(False):  # built before a test, and written to in training
            self.table = torch.zeros((n_passages, dim), dtype=dtype, device=device)
            self.longest = torch.zeros((), device=device)  # no vector that is or was stored is longer
        # A sixteenth for coarse scores, which should stay in the GPU's cache, a quarter for the groups' best, a half
        # for the members' vectors, 12 bytes a number.
        room = temp_memory << 20
        self._scores, self._best_of_groups, self._summed = room // 64, room // 16, room // 24

    def write(self, rows: np.ndarray, embeddings: np.ndarray | Tensor) -> None:
        if len(rows):
            stored = torch.as_tensor(embeddings).to(self.device, self.table.dtype)
            self.table[torch.from_numpy(np.asarray(rows)).to(self.device)] = stored
            self._lengthen(stored)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        return self.table[torch.from_numpy(np.asarray(rows)).to(self.device)].float().cpu().numpy()

    def stored(self) -> np.ndarray:
        return self.table.cpu().numpy().view(np.uint8)

    def as_faiss(self) -> tuple[Any, np.ndarray]:
        made: Any = faiss.IndexFlatIP(self.dim)
        if self.table.dtype == torch.float16:
            made = faiss.IndexScalarQuantizer(self.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        for part in self.table.split(1 << 16):
            made.add(part.float().cpu().numpy())
        return made, np.arange(self.n_passages)

    def restore(self, codes: np.ndarray) -> None:
        self.table.copy_(torch.from_numpy(np.ascontiguousarray(codes)).view(self.table.dtype))
        for part in self.table.split(1 << 16):
            self._lengthen(part)

    def _lengthen(self, stored: Tensor) -> None:
        self.longest.copy_(torch.maximum(self.longest, torch.linalg.vector_norm(stored.float(), dim=1).max()))

    @torch.no_grad()
    def search(self, queries: Tensor, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        k = min(top_k, self.n_passages)
        scores, rows = np.empty((len(queries), k), dtype=np.float32), np.empty((len(queries), k), dtype=np.int64)
        for start in range(0, len(queries), _QUESTIONS):
            some = slice(start, start + _QUESTIONS)
            scores[some], rows[some] = self._search(queries[some].to(self.device, torch.float32), k)
        return scores, rows

    def _search(self, asked: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
        groups = k + _SPARE
        with coarse_products(), torch.autocast(self.device.type, enabled=False):
            scores, rows, said = _on_host(*self._in_best_groups(asked, k, groups))
            while (said == _DEEPER).any() and groups * 4 * _GROUP <= DEEPEST:
                groups *= 4
                todo = np.flatnonzero(said == _DEEPER)
                scores[todo], rows[todo], said[todo] = _on_host(*self._in_best_groups(self._of(asked, todo), k, groups))
        todo = np.flatnonzero(said != _FOUND)  # so many scores are alike that all passages are as quickly looked at
        if len(todo):
            scores[todo], rows[todo], _ = _on_host(*self._in_all(self._of(asked, todo), k))
        return scores, rows

    def _of(self, asked: Tensor, places: np.ndarray) -> Tensor:
        return asked[torch.from_numpy(places).to(self.device)]

    def _in_best_groups(self, asked: Tensor, k: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k best [n, k] of the members of so many groups, scores and rows, and for each question whether they are
        the best of all (_FOUND), perhaps not (_DEEPER), or there is no telling (_UNKNOWN)."""
        _, exponent = torch.frexp(asked.abs().amax(1, keepdim=True))
        rows, best = self._members(torch.ldexp(asked, -exponent), groups)
        scores = self._summed_again(asked, rows)
        scores, order = scores.sort(dim=1, descending=True, stable=True)  # equal ones stay in the order of their rows
        scores, rows = scores[:, :k], rows.gather(1, order[:, :k])
        reach = torch.linalg.vector_norm(asked, dim=1) * self.longest
        said = torch.where((reach < _LARGEST) & best.isfinite().all(1), _FOUND, _UNKNOWN)
        if order.shape[1] < self.n_passages:
            hidden = torch.ldexp(best.amin(1), exponent[:, 0]).double() + _ROUNDING[self.table.dtype] * reach.double()
            said = torch.where((said == _FOUND) & (hidden >= scores[:, -1]), _DEEPER, said)
        return scores, rows, said

    def _members(self, asked: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        """Rows [n, m], rising, of the members of so many groups with the highest coarse scores of asked [n, dim], whose
        numbers are below 1, and these scores [n, groups]. All rows where that is no more."""
        n, whole = len(asked), self.n_passages // _GROUP * _GROUP
        if groups * _GROUP >= whole:
            return torch.arange(self.n_passages, device=self.device).expand(n, -1), asked.new_zeros(n, 1)
        asked = asked.to(self.table.dtype)
        chunk = max(_GROUP, self._scores // n // _GROUP * _GROUP)  # passages
        kept, numbers = asked.new_empty(n, 0, dtype=torch.float32), torch.empty(n, 0, dtype=torch.int64).to(self.device)
        best = torch.empty(n, min(whole, max(chunk, self._best_of_groups // n * _GROUP)) // _GROUP, device=self.device)
        first = filled = 0  # number of the first group in `best`, and groups there
        for start in range(0, whole, chunk):
            part = self.table[start : min(start + chunk, whole)]
            more = len(part) // _GROUP
            # Passages of a group lie `more` apart, so that groups lie side by side.
            scores = _product(asked, part).view(n, _GROUP, more)
            torch.amax(scores, 1, out=best[:, filled : filled + more])
            filled += more
            if filled + chunk // _GROUP > best.shape[1] or start + chunk >= whole:
                found, places = best[:, :filled].topk(min(groups, filled), sorted=False)
                kept, numbers = torch.cat([kept, found], 1), torch.cat([numbers, places + first], 1)
                if kept.shape[1] > groups:
                    kept, places = kept.topk(groups, sorted=False)
                    numbers = numbers.gather(1, places)
                first, filled = first + filled, 0
        starts, places = numbers // (chunk // _GROUP) * chunk, numbers % (chunk // _GROUP)
        apart = (whole - starts).clamp(max=chunk) // _GROUP
        rows = ((starts + places)[..., None] + apart[..., None] * torch.arange(_GROUP, device=self.device)).view(n, -1)
        rest = torch.arange(whole, self.n_passages, device=self.device).expand(n, -1)
        return torch.cat([rows.sort(dim=1).values, rest], 1), kept

    def _summed_again(self, asked: Tensor, rows: Tensor) -> Tensor:
        """Scores [n, m] fp32 of the passages at rows [n, m], summed in fp64."""
        scores = torch.empty(rows.shape, device=self.device)
        width = max(1, min(rows.shape[1], self._summed // self.dim))
        at_once = max(1, self._summed // (width * self.dim))
        for first in range(0, len(rows), at_once):
            some = slice(first, first + at_once)
            for start in range(0, rows.shape[1], width):
                part = (some, slice(start, start + width))
                terms = self.table[rows[part]].double()
                scores[part] = sum_by_halves(terms.mul_(asked[some, None])).float()
        return scores

    def _in_all(self, asked: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k best [n, k] of all passages, a few at a time, as `PlainCodes` looks at all of them on a CPU."""
        scores = torch.empty(len(asked), 0, device=self.device)
        rows = torch.empty(len(asked), 0, dtype=torch.int64, device=self.device)
        step = max(1, self._summed // max(self.dim, len(asked)))
        for start in range(0, self.n_passages, step):
            part = self.table[start : start + step]
            found = (asked.double() @ part.double().T).float()
            some = torch.arange(start, start + len(part), device=self.device).expand(found.shape)
            scores, order = torch.cat([scores, found], 1).sort(dim=1, descending=True, stable=True)
            scores, rows = scores[:, :k], torch.cat([rows, some], 1).gather(1, order[:, :k])
        return scores, rows, torch.zeros(len(asked), dtype=torch.int64, device=self.device)


def _product(asked: Tensor, part: Tensor) -> Tensor:
    """asked [n, dim] times part [n_passages, dim], both fp32 or both fp16: [n, n_passages] fp32. A GPU takes fp16 as it
    is; no fp32 copy of the vectors is made."""
    if part.dtype == torch.float32:
        return asked @ part.T
    if part.is_cuda and torch.version.hip is None:
        return torch.mm(asked, part.T, out_dtype=torch.float32)
    return asked.float() @ part.float().T


@contextmanager
def coarse_products() -> Iterator[None]:
    """Inside, a GPU multiplies fp32 in TF32 where it can; on a CPU as exactly as torch can."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _on_host(scores: Tensor, rows: Tensor, said: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All three in one copy."""
    bits = scores.contiguous().view(torch.int32).long()
    packed = torch.cat([rows, bits, said[:, None]], 1).cpu().numpy()
    k = rows.shape[1]
    return packed[:, k : 2 * k].astype(np.int32).view(np.float32), packed[:, :k].copy(), packed[:, -1].copy()
