"""Maximum inner product search over a snapshot: one immutable index, sharded over the ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from openbook.batch import MISSING_ROW, Retrieved, to_device
from openbook.errors import OpenBookError
from openbook.index.calibration import CANDIDATES
from openbook.index.shard_index import ShardIndex
from openbook.utils.distributed import exchange_rows, gather_rows

Calibrate = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Snapshot:
    """An index and what it was made from. Searching holds one; a swap rebinds the name.

    index holds this rank's passages, of all n_passages those from first_row on. generation counts the snapshots of a
    run from 0. The fingerprints are those of the passage encoder's weights and of the corpus: equal fingerprints,
    equal index. Where passages are of different ages (`rolling`, `hot`), encoder_fingerprint is empty, and comparable
    makes their scores comparable: (questions [n, dim], scores [n, k], rows of this shard [n, k]) -> scores [n, k].
    """

    index: ShardIndex
    generation: int
    encoder_fingerprint: str
    corpus_fingerprint: str
    n_passages: int
    first_row: int = 0
    calibrate: Calibrate | None = None

    @property
    def factory(self) -> str:
        return self.index.options.factory

    def search(self, question_embeddings: Tensor, top_k: int) -> Retrieved:
        """The top_k passages of each question: question_embeddings [batch, dim] -> rows and scores [batch, top_k].

        All ranks call it together, each with questions of its own and as many as it likes: every shard is searched for
        every question, ids and scores are exchanged and merged, and each rank gets its own questions' passages. Where
        the index had fewer hits, and where it gives a passage twice, the row is MISSING_ROW and the score -inf.
        index_scores are plain inner products, before any temperature. Nothing here is differentiable.
        """
        asked, counts = gather_rows(question_embeddings.detach().float())
        if asked.shape[1] != self.index.dim:
            raise OpenBookError(
                "question embeddings do not fit the index",
                got=f"dim {asked.shape[1]}",
                expected=f"dim {self.index.dim}",
            )
        # An index on a GPU is asked there, and what it finds is the only thing that is waited for: a question that is
        # not finite has no score that is.
        on_gpu = self.index.device.type == "cuda"
        queries = (asked if on_gpu else asked.cpu()).contiguous()
        if not on_gpu:
            _check_finite(queries)
        scores, rows = self.index.search(queries, max(top_k, CANDIDATES) if self.calibrate else top_k)
        if on_gpu and not np.isfinite(scores).all():
            _check_finite(queries)
        if self.calibrate:
            calibrated = self.calibrate(queries.cpu().numpy(), scores, rows)
            scores, rows = merged(calibrated[None], rows[None], top_k)
        rows = np.where(rows == MISSING_ROW, MISSING_ROW, rows + self.first_row)
        all_scores = exchange_rows(torch.from_numpy(scores), counts).numpy()
        scores, rows = merged(all_scores, exchange_rows(torch.from_numpy(rows), counts).numpy(), top_k)
        return Retrieved(torch.from_numpy(rows), to_device(torch.from_numpy(scores), question_embeddings.device))


def _check_finite(queries: Tensor) -> None:
    if not bool(queries.isfinite().all()):
        raise OpenBookError(
            "question embeddings are not finite",
            action="Training has diverged: lower optim.lr_*, raise optim.warmup_steps, or resume from an earlier "
            "checkpoint.",
        )


def merged(scores: np.ndarray, rows: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """The shards' answers as one: scores and rows [shards, batch, k] -> [batch, top_k], highest first, equal scores by
    row. The same passage twice is one passage: the second is MISSING_ROW and -inf."""
    scores, rows = np.concatenate(scores, axis=1), np.concatenate(rows, axis=1)
    missing = (rows == MISSING_ROW) | ~np.isfinite(scores) | _repeated(rows)
    scores, rows = np.where(missing, -np.inf, scores), np.where(missing, MISSING_ROW, rows)
    order = np.lexsort((rows, -scores), axis=1)[:, :top_k]
    return np.take_along_axis(scores, order, axis=1).astype(np.float32), np.take_along_axis(rows, order, axis=1)


def _repeated(rows: np.ndarray) -> np.ndarray:
    """[batch, n] bool: True where a row stands further left already."""
    order = np.argsort(rows, axis=1, kind="stable")
    in_order = np.take_along_axis(rows, order, axis=1)
    repeated = np.zeros(rows.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    return repeated
