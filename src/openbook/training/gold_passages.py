"""Questions with the passages that answer them, as the small reader's warm-up reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from openbook.batch import MISSING_ROW, Example, to_device
from openbook.config.training import DprConfig
from openbook.data.corpus import Corpus
from openbook.data.inputs import special_ids, token_ids
from openbook.data.question_file import QuestionFile
from openbook.data.question_lengths import Limits, Reader, check_lengths
from openbook.errors import OpenBookError
from openbook.metrics.matching import has_answer
from openbook.models.all_passages.reading import side_by_side
from openbook.models.contexts import ContextBuilder
from openbook.training.dpr_negatives import TrainingPassages


@dataclass(frozen=True)
class Gold:
    question: tuple[int, ...]
    rows: tuple[int, ...]
    answers: tuple[str, ...]


class GoldPassages:
    """Questions with the rows of passages known to answer them."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Any,
        max_context_tokens: int,
        long_questions: tuple[Literal["cut", "drop"], int] | None = None,
        most: int = 1,
    ):
        """long_questions: what becomes of questions of more than so many tokens; None: nothing. most: passages that a
        question is read with at once. One: where it names several, one which holds an answer. Several: all that it
        names and, for each, one next to it in the corpus, so that the reader learns to tell them apart."""
        self.corpus, self.tokenizer, self.long_questions, self.most = corpus, tokenizer, long_questions, most
        self.contexts = ContextBuilder(corpus.tokens("generator"), special_ids(tokenizer), max_context_tokens)

    def read(self, path: Path, weak: bool = False) -> list[Gold]:
        """Every example of the file that names a passage of the corpus; with `weak` also those that name none, with the
        passage that BM25 finds. OpenBookError where that leaves none to learn from."""
        file, found = QuestionFile(path), TrainingPassages(self.corpus, None, DprConfig())
        longest = None
        if self.long_questions is not None:
            done, longest = self.long_questions
            check_lengths(file, [Reader(self.tokenizer)], Limits(longest, done, answer=None, strict=False))
        try:
            if weak:
                found.prepare(file)
        except OpenBookError as problem:
            raise OpenBookError(
                "the warm-up finds no gold passage",
                where=path,
                expected="questions with positive_ids among the passages, or answers that stand in them",
                action="Set warmup.spans=1 to read masked spans of the corpus alone, or warmup.steps=0 to do without a "
                "warm-up.",
            ) from problem
        examples = [(example, self._rows(example, found)) for example in file]
        ids = token_ids(self.tokenizer, [example.question for example, _ in examples])
        return [
            Gold(tuple(question[:longest]), rows, self._readable_first(example.answers, rows))
            for question, (example, rows) in zip(ids, examples, strict=True)
            if rows[0] != MISSING_ROW
        ]

    def _rows(self, example: Example, found: TrainingPassages) -> tuple[int, ...]:
        known = found.known_positives(example)
        one = found.positive_of(example)
        if self.most > 1 and one != MISSING_ROW:
            rows = known or [one]
            return tuple(dict.fromkeys([*rows, *map(self._beside, rows)]))[: self.most]
        holding = [row for row in known if has_answer(self.corpus.passage(row).text, example.answers)]
        return (holding[0] if 0 < len(holding) < len(known) else one,)

    def _beside(self, row: int) -> int:
        """A passage next to this one in the corpus, which is mostly of the same document."""
        return row + 1 if row % 2 == 0 and row + 1 < self.corpus.n_passages else max(row - 1, 0)

    def _readable_first(self, answers: tuple[str, ...], rows: tuple[int, ...]) -> tuple[str, ...]:
        """The answers, one that stands in the passages before the others: the reader copies."""
        if len(answers) == 1:
            return answers
        text = "\n".join(self.corpus.passage(row).text for row in rows)
        return tuple(sorted(answers, key=lambda answer: not has_answer(text, [answer])))

    def inputs(self, gold: list[Gold], device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids and mask of the contexts [len(gold), n passages, context_len]; a question with fewer than the others has
        empty ones."""
        rows = pad_sequence([torch.tensor(one.rows) for one in gold], True, MISSING_ROW)
        ids, mask = side_by_side(self.contexts, [one.question for one in gold], rows)
        return to_device(ids.view(*rows.shape, -1), device), to_device(mask.view(*rows.shape, -1), device)
