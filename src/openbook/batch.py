"""The words of the project: what a passage, an example, a batch and a retrieval result are.

Axis names, one legend for the whole project:

    batch         questions of one rank's batch
    n_docs        passages marginalised over per question
    question_len  tokens of the longest question of the batch
    passage_len   tokens of the longest passage as the passage encoder reads it
    context_len   tokens of the longest context (question + passage as the generator reads it)
    target_len    tokens of the longest answer, end-of-sequence included
    vocab         the generator's vocabulary
    dim           the embedding dimension of the retriever
    n_passages    passages of the corpus; a *row* is a passage's number in it, from 0
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED_LABEL = -100  # The label of a target position that no loss counts (padding).

# The row of a hit that the index did not have; FAISS answers -1, and nothing may be read at it.
MISSING_ROW = -1

# The row of the null document, an empty passage (Guu et al. 2020, section 3.3): its context is the question alone, and
# unlike a missing hit it counts. A closed book reads nothing else.
NULL_ROW = -2


@dataclass(frozen=True, slots=True)
class Passage:
    """One passage of the corpus. `id` is the user's own name for it, unique in the corpus."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Example:
    """One question with every answer that counts as right.

    `positive_ids` names passages known to hold the answer (for measuring recall, never for joint training);
    `relation` and `phrasing` are groups that results are reported by, empty where the data has none. `negative_ids`
    names passages known not to hold it (hard negatives of DPR); `grades` says how relevant each of the positive ones
    is (TREC's graded judgements), 1 each where it is empty. `reward` says what the positive passages, read in their
    order, were worth (dpr.loss=ordered). `paraphrases` are other wordings of a training question, from which the
    question encoder learns beside it. Without `answers` only retrieval is trained and measured.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    positive_ids: tuple[str, ...] = ()
    relation: str = ""
    phrasing: str = ""
    negative_ids: tuple[str, ...] = ()
    grades: tuple[int, ...] = ()
    reward: float | None = None
    paraphrases: tuple[str, ...] = ()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; one from the host gets to a GPU without waiting for what the GPU is still busy with."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Paraphrases(NamedTuple):
    """Other wordings of a batch's questions: ids and mask [n, question_len] as of the questions, and of [n] int64 on
    the CPU, which question each is one of, rising."""

    ids: Tensor
    mask: Tensor
    of: Tensor


@dataclass(frozen=True)
class Batch:
    """Questions and targets of one rank for one forward pass.

    question_ids, question_mask: [batch, question_len], as the question encoder reads them, special tokens included.
    context_questions: the same questions as the generator's tokenizer writes them, one tuple of ids per question,
        without special tokens; contexts are assembled from these and the corpus store, never from strings.
    labels: [batch, target_len], the answer and its end-of-sequence, then IGNORED_LABEL for padding.
    weight: [batch] float, 1 for an example, 0 for one that only keeps the ranks in step at the end of an epoch.
    cursor: how many examples of the stream all ranks have consumed once this batch is trained on.
    target_lengths: [batch], how many labels of each question are no padding; read from labels, and kept for the host
        when these move to a GPU.
    paraphrases: in training, where its questions have some.
    """

    question_ids: Tensor
    question_mask: Tensor
    context_questions: tuple[tuple[int, ...], ...]
    labels: Tensor
    weight: Tensor
    examples: tuple[Example, ...]
    cursor: int = 0
    target_lengths: tuple[int, ...] = ()
    paraphrases: Paraphrases | None = None

    def __post_init__(self) -> None:
        if self.labels.device.type == "cpu" or len(self.target_lengths) != len(self.labels):
            object.__setattr__(self, "target_lengths", tuple(self.target_mask.sum(-1).tolist()))

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on the device: what Lightning looks for."""
        device = torch.device(device)
        others = self.paraphrases
        if others is not None:
            others = Paraphrases(to_device(others.ids, device), to_device(others.mask, device), others.of)
        return replace(
            self,
            question_ids=to_device(self.question_ids, device),
            question_mask=to_device(self.question_mask, device),
            labels=to_device(self.labels, device),
            weight=to_device(self.weight, device),
            paraphrases=others,
        )

    @property
    def target_mask(self) -> Tensor:
        """[batch, target_len] bool: the target positions that count."""
        return self.labels != IGNORED_LABEL


@dataclass(frozen=True)
class Retrieved:
    """What the index answered: rows [batch, n_docs] int64 (MISSING_ROW where there was no hit) and index_scores
    [batch, n_docs] fp32, highest first. index_scores select; they never enter a loss (they may be stale).

    rows are always on the CPU: the host looks tokens up by them, and would have to wait for a GPU to say them.
    index_scores are where the questions are."""

    rows: Tensor
    index_scores: Tensor

    @property
    def mask(self) -> Tensor:
        """[batch, n_docs] bool on the CPU: True where there is a passage."""
        return self.rows != MISSING_ROW

    def of_first(self, n: int) -> Retrieved:
        """Of the first n questions."""
        return Retrieved(self.rows[:n], self.index_scores[:n])
