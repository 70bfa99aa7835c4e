"""Questions with a passage that answers them, as the small reader's warm-up reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from openbook.batch import MISSING_ROW, to_device
from openbook.config.training import DprConfig
from openbook.data.corpus import Corpus
from openbook.data.inputs import special_ids, token_ids
from openbook.data.question_file import QuestionFile
from openbook.data.question_lengths import Limits, Reader, check_lengths
from openbook.errors import OpenBookError
from openbook.metrics.matching import has_answer
from openbook.models.contexts import ContextBuilder
from openbook.training.dpr_negatives import TrainingPassages


@dataclass(frozen=True)
class Gold:
    question: tuple[int, ...]
    row: int
    answers: tuple[str, ...]


class GoldPassages:
    """Questions with the row of a passage known to answer them."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Any,
        max_context_tokens: int,
        long_questions: tuple[Literal["cut", "drop"], int] | None = None,
    ):
        """long_questions: what becomes of questions of more than so many tokens; None: nothing."""
        self.corpus, self.tokenizer, self.long_questions = corpus, tokenizer, long_questions
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
        examples = [(example, found.positive_of(example)) for example in file]
        ids = token_ids(self.tokenizer, [example.question for example, _ in examples])
        return [
            Gold(tuple(question[:longest]), row, self._readable_first(example.answers, row))
            for question, (example, row) in zip(ids, examples, strict=True)
            if row != MISSING_ROW
        ]

    def _readable_first(self, answers: tuple[str, ...], row: int) -> tuple[str, ...]:
        """The answers, one that stands in the passage before the others: the reader copies."""
        if len(answers) == 1:
            return answers
        text = self.corpus.passage(row).text
        return tuple(sorted(answers, key=lambda answer: not has_answer(text, [answer])))

    def inputs(self, gold: list[Gold], device: torch.device) -> tuple[Tensor, Tensor]:
        ids, mask = self.contexts([one.question for one in gold], torch.tensor([[one.row] for one in gold]))
        return to_device(ids, device), to_device(mask, device)
