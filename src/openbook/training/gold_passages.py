"""Questions with the passages that answer them, as the small reader's warm-up reads them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from openbook.batch import MISSING_ROW, Example, to_device
from openbook.config.training import DprConfig
from openbook.data.corpus import Corpus
from openbook.data.inputs import SpecialIds, special_ids, token_ids
from openbook.data.question_file import QuestionFile
from openbook.data.question_lengths import Limits, Reader, check_lengths
from openbook.errors import OpenBookError
from openbook.metrics.matching import has_answer
from openbook.models.all_passages.reading import side_by_side
from openbook.models.contexts import ContextBuilder
from openbook.training.dpr_negatives import TrainingPassages

MOST_POSITIVES = 6  # of one question, that are read at once
POOL = 512  # questions that are compared with each other


class Windows(NamedTuple):
    """Passages of more tokens than `width` are read in windows of so many, the answer anywhere among them."""

    width: int
    random: np.random.Generator


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
        together: bool = False,
    ):
        """long_questions: what becomes of questions of more than so many tokens; None: nothing. together: a question is
        read with all passages that it names and with others, so that the reader learns to tell them apart; otherwise
        with one, where it names several with one that holds an answer."""
        self.corpus, self.tokenizer, self.long_questions, self.together = corpus, tokenizer, long_questions, together
        self.special = special_ids(tokenizer)
        self.contexts = ContextBuilder(corpus.tokens("generator"), self.special, max_context_tokens)

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
        examples = [(example, self._read_with(example, found)) for example in file]
        ids = token_ids(self.tokenizer, [example.question for example, _ in examples])
        gold = [
            Gold(tuple(question[:longest]), rows, self._readable_first(example.answers, rows))
            for question, (example, rows) in zip(ids, examples, strict=True)
            if rows[0] != MISSING_ROW
        ]
        return self._with_others(gold) if self.together else gold

    def _read_with(self, example: Example, found: TrainingPassages) -> tuple[int, ...]:
        known = found.known_positives(example)
        if len(known) < 2:
            return (found.positive_of(example),)
        if self.together:
            return tuple(known[:MOST_POSITIVES])
        holding = [row for row in known if has_answer(self.corpus.passage(row).text, example.answers)]
        return (holding[0] if 0 < len(holding) < len(known) else found.positive_of(example),)

    def _with_others(self, gold: list[Gold]) -> list[Gold]:
        """Each question also with a neighbour of its first passage in the corpus, mostly of the same document, and with
        the first passage of the question most like it, in words, of a pool: most often about another document."""
        order = np.random.default_rng(0).permutation(len(gold))
        read = list(gold)
        for start in range(0, len(order), POOL):
            places = order[start : start + POOL]
            pool = [gold[place] for place in places]
            rows = np.array([one.rows[0] for one in pool])
            alike = np.where(rows[:, None] == rows, -1.0, _likeness([one.question for one in pool]))
            for place, one, nearest in zip(places, pool, alike.argmax(1), strict=True):
                first = one.rows[0]
                beside = first + 1 if first % 2 == 0 and first + 1 < self.corpus.n_passages else max(first - 1, 0)
                read[place] = replace(one, rows=tuple(dict.fromkeys((*one.rows, beside, int(rows[nearest])))))
        return read

    def _readable_first(self, answers: tuple[str, ...], rows: tuple[int, ...]) -> tuple[str, ...]:
        """The answers, one that stands in the passages before the others: the reader copies."""
        if len(answers) == 1:
            return answers
        text = "\n".join(self.corpus.passage(row).text for row in rows)
        return tuple(sorted(answers, key=lambda answer: not has_answer(text, [answer])))

    def rows(self, gold: Sequence[Gold]) -> Tensor:
        """[len(gold), n passages], MISSING_ROW where a question has fewer than the others."""
        return pad_sequence([torch.tensor(one.rows) for one in gold], True, MISSING_ROW)

    def inputs(
        self, gold: Sequence[Gold], device: torch.device, windows: Windows | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask of the contexts [len(gold), n passages, context_len], empty where there is no passage."""
        rows = self.rows(gold)
        ids, mask = side_by_side(self.contexts_of(gold, windows), [one.question for one in gold], rows)
        return to_device(ids.view(*rows.shape, -1), device), to_device(mask.view(*rows.shape, -1), device)

    def contexts_of(self, gold: Sequence[Gold], windows: Windows | None) -> ContextBuilder:
        """What builds the contexts of these questions: of whole passages, or of windows of them."""
        whole = self.contexts
        if windows is None:
            return whole
        answers = token_ids(self.tokenizer, [one.answers[0] for one in gold])
        return _WindowedContexts(whole.tokens, self.special, whole.max_length, answers=answers, windows=windows)


@dataclass(frozen=True, kw_only=True)
class _WindowedContexts(ContextBuilder):
    """Contexts of windows of the passages. Where no passage of a question holds the answer's tokens, they stay whole;
    beside one that does, the others are read in windows from anywhere."""

    answers: Sequence[Sequence[int]]  # of each question in turn
    windows: Windows

    def __call__(self, questions: Sequence[Sequence[int]], rows: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self.special, SpecialIds)
        ids, mask = super().__call__(questions, rows)
        whole = [row[:length] for row, length in zip(ids.numpy(), mask.sum(1).tolist(), strict=True)]
        n_docs, contexts = rows.shape[1], list[Tensor]()
        for number, (question, answer) in enumerate(zip(questions, self.answers, strict=True)):
            first = len(question) + self.special.n_in_context - 1  # of the passage
            here = whole[number * n_docs : (number + 1) * n_docs]
            contexts += map(torch.from_numpy, self._cut(here, first, answer))
        lengths = torch.tensor([len(one) for one in contexts])
        return pad_sequence(contexts, True, self.special.pad), torch.arange(int(lengths.max())) < lengths[:, None]

    def _cut(self, contexts: list[np.ndarray], first: int, answer: Sequence[int]) -> list[np.ndarray]:
        width, random = self.windows
        places = [_place(context[first:-1], answer, random) for context in contexts]
        if len(answer) > width or all(place is None for place in places):
            return contexts
        return [self._window(*one, first, len(answer)) for one in zip(contexts, places, strict=True)]

    def _window(self, context: np.ndarray, place: int | None, first: int, answer: int) -> np.ndarray:
        width, random = self.windows
        last = len(context) - 1 - first - width  # at which a window can begin
        if last <= 0:
            return context
        earliest, latest = (0, last) if place is None else (max(place + answer - width, 0), min(place, last))
        start = first + int(random.integers(earliest, latest + 1))
        return np.concatenate([context[:first], context[start : start + width], context[-1:]])


def _likeness(questions: Sequence[Sequence[int]]) -> np.ndarray:
    """[n, n]: the cosine of the questions' sets of tokens."""
    known = {token: place for place, token in enumerate(sorted({token for one in questions for token in one}))}
    sets = np.zeros((len(questions), len(known)), dtype=np.float32)
    for number, one in enumerate(questions):
        sets[number, [known[token] for token in one]] = 1
    sets /= np.linalg.norm(sets, axis=1, keepdims=True).clip(min=1)
    return sets @ sets.T


def batches(lengths: np.ndarray, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless epochs of positions; the batches of a pool of 16 hold contexts of like length, in shuffled order."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(lengths))
        for start in range(0, len(order), 16 * batch_size):
            pool = order[start : start + 16 * batch_size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            cuts = np.array_split(pool, max(1, len(pool) // batch_size))
            yield from (cuts[number] for number in random.permutation(len(cuts)))


def _place(passage: np.ndarray, answer: Sequence[int], random: np.random.Generator) -> int | None:
    """Where the answer begins in the passage; one of the places where there are several, None where there is none."""
    if not 0 < len(answer) <= len(passage):
        return None
    stands = (np.lib.stride_tricks.sliding_window_view(passage, len(answer)) == np.asarray(answer)).all(1)
    places = stands.nonzero()[0]
    return int(random.choice(places)) if len(places) else None
