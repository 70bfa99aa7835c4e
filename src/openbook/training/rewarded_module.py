"""The LightningModule that trains both encoders on passages that somebody chose, and on how much that was worth."""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from openbook.batch import Batch, Example, to_device
from openbook.errors import OpenBookError
from openbook.objectives.dpr import dpr_scores, in_batch_hits
from openbook.objectives.ordered import ordered_logprob
from openbook.retrieval.dense import of_all_ranks
from openbook.training.dpr_module import DprModule
from openbook.training.dpr_negatives import TrainingPassages
from openbook.utils.console import say


class ChosenPassages(TrainingPassages):
    """`positive_ids` as an ordered choice: a question is trained on all of them or not at all."""

    def prepare(self, examples: Iterable[Example]) -> int:
        """Look once through the training questions; says how many have no reward of their own, which then is 1, and
        returns how many are left out: those that choose nothing, the same passage twice, or one that is not in the
        corpus. OpenBookError where that would be all of them."""
        total = n_without = n_left_out = 0
        for example in examples:
            total, n_without = total + 1, n_without + (example.reward is None)
            n_left_out += not self.chosen(example)
        if n_left_out == total:
            raise OpenBookError(
                "no training question has chosen passages",
                where="data.train",
                got=f"{total} questions",
                expected="positive_ids among the passages, in the order in which they were chosen",
            )
        if n_left_out:
            warnings.warn(
                f"{n_left_out} of {total} training questions choose no passage, one of them twice, or one that is not "
                "in the corpus: they are left out of training",
                stacklevel=2,
            )
        if n_without:
            say(f"data.train: {n_without:,} of {total:,} questions have no `reward`: theirs is 1")
        return n_left_out

    def chosen(self, example: Example) -> list[int]:
        """Rows of the passages in the order in which they were chosen; empty where the question is left out."""
        known = self.known_positives(example)
        return known if len(known) == len(example.positive_ids) else []


class RewardedModule(DprModule):
    """Reward-weighted log-likelihood of the passages that each question names, in their order (objectives/ordered.py),
    among the passages of the whole batch and the hard negatives. Evaluation is DPR's."""

    passages: ChosenPassages | None
    baseline: float = 0.0

    def likelihood(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """-log P(chosen passages | question), whether no passage scores higher than the first one chosen, and the
        weight (0 for a question that is left out), each [batch]. All ranks call this together."""
        assert self.passages is not None
        question_emb, device = self.retriever.represent(batch), batch.weight.device
        chosen = [
            self.passages.chosen(example) if weight > 0 else []
            for example, weight in zip(batch.examples, batch.weight.tolist(), strict=True)
        ]
        firsts = [rows[0] if rows else -1 for rows in chosen]
        negatives = self.passages.hard_negatives(batch, firsts, self._index_rows(question_emb))
        rows = of_all_ranks([row for some in chosen for row in some] + negatives)
        columns = torch.full((len(chosen), max(1, *map(len, chosen))), -1)
        for place, some in enumerate(chosen):
            columns[place, : len(some)] = torch.searchsorted(rows, torch.tensor(some, dtype=rows.dtype))
        there = columns >= 0
        competes = self.passages.competing(batch.examples, rows.tolist())
        competes[there.nonzero()[:, 0], columns[there]] = True
        columns = to_device(columns, device)
        first, embedded = columns[:, 0].clamp(min=0), self.retriever.encode_among_ranks(rows)
        scores = dpr_scores(question_emb, embedded, first, to_device(competes, device), self.retriever.temperature)
        return (
            -ordered_logprob(scores, columns),
            in_batch_hits(scores.detach(), first),
            batch.weight * (columns[:, 0] >= 0),
        )

    def worth(self, batch: Batch) -> Tensor:
        """reward - baseline."""
        rewards = [1.0 if one.reward is None else one.reward for one in batch.examples]
        return torch.tensor(rewards, device=batch.weight.device) - self.baseline
