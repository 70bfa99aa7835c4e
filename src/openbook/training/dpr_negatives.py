"""Which passages a question is trained on in dense passage retrieval: one positive, hard negatives, false negatives.

Positives and BM25's negatives are those of Karpukhin et al. 2020, section 3.2 and 4.2 (top passages that do not hold
an answer); negatives from the live index are those of Xiong et al. 2020 (ANCE, arXiv:2007.00808).
"""

import warnings
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from openbook.batch import MISSING_ROW, Batch, Example
from openbook.config.training import DprConfig
from openbook.data.corpus import Corpus
from openbook.data.sampler import stream_key
from openbook.errors import OpenBookError
from openbook.metrics.matching import has_answer
from openbook.retrieval.bm25 import BM25Index, passage_texts
from openbook.utils.console import say

_CHUNK = 256  # questions BM25 is asked at once


class RandomRows:
    """In BM25's place where only time and memory count: random passages cost a step as much as BM25's best, and there
    is nothing to build first."""

    def __init__(self, n_passages: int, seed: int):
        self.n_passages, self.random = n_passages, np.random.default_rng(seed)

    def search(self, questions: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """As BM25Index.search."""
        rows = self.random.integers(self.n_passages, size=(len(questions), top_k))
        return rows, np.zeros(rows.shape, dtype=np.float32)


class TrainingPassages:
    """Chooses rows of the corpus for the questions of a batch; a pure function of (seed, cursor, questions, index).

    bm25: over the corpus; built where it is None and needed.
    options: hard negatives per question from each source, as far as its best `depth` passages have so many; with
        mask_false_negatives a passage that is another gold passage of a question, or holds one of its answers
        (`metrics.has_answer`, DPR's own matching), does not compete for it.
    seed: of the draws among several positives. regex: the answers are regular expressions.
    """

    def __init__(
        self,
        corpus: Corpus,
        bm25: BM25Index | RandomRows | None,
        options: DprConfig,
        *,
        seed: int = 0,
        regex: bool = False,
    ):
        self.corpus, self.bm25, self.options, self.seed, self.regex = corpus, bm25, options, seed, regex
        self._found: dict[str, int] = {}

    def prepare(self, examples: Iterable[Example]) -> int:
        """Look once through the training questions: one without a known positive passage gets BM25's best passage that
        holds an answer, as DPR does for questions without gold passages; says how many, and returns how many have none
        either.

        Those are left out of training, with one warning. Raises OpenBookError where that would be all of them.
        """
        total, n_left_out, unknown = 0, 0, list[Example]()
        for example in examples:
            total += 1
            if not self.known_positives(example):
                unknown.append(example)
            if len(unknown) == _CHUNK:
                n_left_out += self._find(unknown)
                unknown = []
        n_left_out += self._find(unknown)
        if self._found:
            say(
                f"weak supervision: {len(self._found):,} of {total:,} training questions name no passage of the "
                "corpus; the best of BM25's that holds an answer stands for it"
            )
        if n_left_out == total:
            raise OpenBookError(
                "no training question has a positive passage",
                where="data.train",
                got=f"{total} questions",
                expected="positive_ids among the passages, or answers that stand in a passage",
                action="Check that data.train and data.corpus belong together. With answers that stand in no passage, "
                "retriever.teacher=generator (warmup.steps=0 for the small reader) needs no positive passage.",
            )
        if n_left_out:
            warnings.warn(
                f"{n_left_out} of {total} training questions have neither a known positive passage nor an answer in "
                f"BM25's best {self.options.depth} passages: they are left out of the retriever's training",
                stacklevel=2,
            )
        return n_left_out

    def positives(self, batch: Batch) -> list[int]:
        """[batch] row of each question's positive passage at this visit, each known one as likely as the others;
        MISSING_ROW where there is none, and for examples that only keep the ranks in step."""
        return [
            self.positive_of(example, batch.cursor) if weight > 0 else MISSING_ROW
            for example, weight in zip(batch.examples, batch.weight.tolist(), strict=True)
        ]

    def hard_negatives(self, batch: Batch, positives: Sequence[int], index_rows: Tensor | None = None) -> list[int]:
        """Rows of the hard negatives of all questions that have a positive passage, BM25's before the index's; those
        that a question names itself (as DPR's files do, who have them from BM25) stand for as many of BM25's.

        index_rows [batch, depth] on the CPU: what the live index finds for the questions, best first; None before there
        is one.
        """
        asked = [place for place, row in enumerate(positives) if row != MISSING_ROW]
        examples = [batch.examples[place] for place in asked]
        chosen: list[set[int]] = [set() for _ in asked]
        found: list[int] = []
        sources: list[tuple[int, list[list[int]]]] = []
        wanted = self.options.bm25_negatives
        if wanted and asked:
            for example, taken in zip(examples, chosen, strict=True):
                new = self._named_negatives(example, batch.cursor)[:wanted]
                taken.update(new)
                found += new
            if short := [place for place, taken in enumerate(chosen) if len(taken) < wanted]:
                bm25 = self._bm25_rows([examples[place] for place in short])
                for place, rows in zip(short, bm25, strict=True):
                    taken = chosen[place]
                    new = self._first_negatives(
                        examples[place], [row for row in rows if row not in taken], wanted - len(taken)
                    )
                    taken.update(new)
                    found += new
        if index_rows is not None and self.options.index_negatives and asked:
            sources.append((self.options.index_negatives, index_rows[asked].tolist()))
        for n_wanted, candidates in sources:
            for example, taken, rows in zip(examples, chosen, candidates, strict=True):
                new = self._first_negatives(example, [row for row in rows if row not in taken], n_wanted)
                taken.update(new)
                found += new
        return found

    def competing(self, examples: Sequence[Example], rows: Sequence[int]) -> Tensor:
        """mask [batch, n] bool: which of the passages at `rows` compete for which question. The caller lets each
        question's own positive passage compete."""
        mask = torch.ones(len(examples), len(rows), dtype=torch.bool)
        if self.options.mask_false_negatives:
            texts = [self.corpus.passage(row).text for row in rows]
            for place, example in enumerate(examples):
                gold = set(self.known_positives(example))
                mask[place] = torch.tensor(
                    [
                        row not in gold and not has_answer(text, example.answers, self.regex)
                        for row, text in zip(rows, texts, strict=True)
                    ]
                )
        return mask

    def known_positives(self, example: Example) -> list[int]:
        """Rows of the passages that the example names and the corpus has, in the example's order."""
        rows = (self.corpus.row_of(identity) for identity in dict.fromkeys(example.positive_ids))
        return [row for row in rows if row is not None]

    def positive_of(self, example: Example, cursor: int = 0) -> int:
        """Row of the question's positive passage at this place of the stream; MISSING_ROW where there is none."""
        known = self.known_positives(example) or [self._found.get(example.id, MISSING_ROW)]
        return known[stream_key(self.seed, cursor, example.id) % len(known)]

    def _named_negatives(self, example: Example, cursor: int) -> list[int]:
        """Rows of the hard negatives that the example names and the corpus has, beginning with another one at each
        visit."""
        gold = set(self.known_positives(example))
        rows = [self.corpus.row_of(identity) for identity in example.negative_ids]
        named = [row for row in dict.fromkeys(rows) if row is not None and row not in gold]
        begin = stream_key(self.seed, cursor, example.id) % len(named) if named else 0
        return named[begin:] + named[:begin]

    def _first_negatives(self, example: Example, rows: Sequence[int], n_wanted: int) -> list[int]:
        gold = {*self.known_positives(example), self._found.get(example.id), MISSING_ROW}
        negatives = (row for row in rows if row not in gold and not self._holds_answer(row, example))
        return list(islice(negatives, n_wanted))

    def _holds_answer(self, row: int, example: Example) -> bool:
        return has_answer(self.corpus.passage(row).text, example.answers, self.regex)

    def _bm25_rows(self, examples: Sequence[Example]) -> list[list[int]]:
        """BM25's best `depth` passages for each question, filled up with MISSING_ROW."""
        if self.bm25 is None:
            self.bm25 = BM25Index(passage_texts(self.corpus))
        return self.bm25.search([example.question for example in examples], self.options.depth)[0].tolist()

    def _find(self, examples: Sequence[Example]) -> int:
        """Remember BM25's positives of these; how many have none."""
        if not examples:
            return 0
        found = [
            next((row for row in rows if row != MISSING_ROW and self._holds_answer(row, example)), None)
            for example, rows in zip(examples, self._bm25_rows(examples), strict=True)
        ]
        self._found |= {example.id: row for example, row in zip(examples, found, strict=True) if row is not None}
        return found.count(None)
