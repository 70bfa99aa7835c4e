"""From a plan of the stream to a Batch: what the workers of a DataLoader run.

It stands apart from the DataModule so that a worker, which starts as a fresh process, need not import Lightning.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from openbook.batch import Batch, Example, Paraphrases
from openbook.data.encoder_inputs import EncoderFormat, question_inputs
from openbook.data.inputs import decoded, targets, token_ids
from openbook.data.prompts import Prompt
from openbook.data.question_file import QuestionFile
from openbook.data.sampler import BatchPlan, sampled_answer, sampled_paraphrases

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Planned = tuple[BatchPlan, list[Example]]


class PlannedExamples(Dataset[Planned]):
    """Reads the examples of a plan. Map-style, one item is one batch, so that workers need no state of their own.

    With a limit, that many examples spread evenly over the file stand for all of it.
    """

    def __init__(self, questions: QuestionFile, limit: int = 0):
        self.questions = questions
        self.length = min(limit or len(questions), len(questions))

    def __len__(self) -> int:
        return self.length

    def example(self, index: int) -> Example:
        """The index-th of the examples in use."""
        return self.questions[index * len(self.questions) // self.length]

    def __getitems__(self, plan: BatchPlan) -> Planned:
        """The name that the DataLoader calls with a whole batch of its sampler."""
        return plan, [self.example(plan.filler if index is None else index) for index in plan.indices]


@dataclass(frozen=True, kw_only=True)
class Collate:
    """Makes a Batch of the examples of a plan. Picklable, and pure: any number of workers gives the same bytes.

    prompt: of a decoder-only generator. cut_questions: of a longer question each tokenizer keeps the first
    max_question_tokens; otherwise there is none. decoded_questions: the generator reads what the question encoder's
    tokens decode to. paraphrases: of each question at most.
    """

    question_tokenizer: Tokenizer
    question_format: EncoderFormat
    generator_tokenizer: Tokenizer
    max_question_tokens: int
    max_target_tokens: int
    seed: int
    sample_answers: bool
    prompt: Prompt | None = None
    cut_questions: bool = False
    decoded_questions: bool = False
    paraphrases: int = 0

    def __call__(self, planned: Planned) -> Batch:
        plan, examples = planned
        questions = [example.question for example in examples]
        asked, ids, mask = self._asked(questions)
        read = decoded(self.question_tokenizer, asked) if self.decoded_questions else questions
        write = token_ids if self.prompt is None else self.prompt.questions
        context_questions = tuple(tuple(ids[: self._most]) for ids in write(self.generator_tokenizer, read))
        if self.sample_answers:
            answers = [sampled_answer(example, plan.epoch, self.seed) for example in examples]
        else:
            answers = [example.answers[0] if example.answers else "" for example in examples]
        labelled = targets if self.prompt is None else self.prompt.targets
        return Batch(
            question_ids=ids,
            question_mask=mask,
            context_questions=context_questions,
            labels=labelled(self.generator_tokenizer, answers, self.max_target_tokens),
            weight=torch.tensor([0.0 if index is None else 1.0 for index in plan.indices]),
            examples=tuple(examples),
            cursor=plan.cursor,
            paraphrases=self._paraphrases(examples, plan.epoch) if self.paraphrases else None,
        )

    @property
    def _most(self) -> int | None:
        """Tokens that are kept of a question; None: all."""
        return self.max_question_tokens if self.cut_questions else None

    def _asked(self, questions: list[str]) -> tuple[list[list[int]], Tensor, Tensor]:
        """The questions' tokens, and ids and mask [batch, question_len] of the question encoder."""
        style = self.question_format
        asked = [ids[: self._most] for ids in style.question_ids(self.question_tokenizer, questions)]
        return asked, *question_inputs(asked, style, self.max_question_tokens + style.n_around)

    def _paraphrases(self, examples: list[Example], epoch: int) -> Paraphrases | None:
        every = [sampled_paraphrases(example, epoch, self.seed, self.paraphrases) for example in examples]
        of = torch.tensor([place for place, some in enumerate(every) for _ in some], dtype=torch.int64)
        return Paraphrases(*self._asked([one for some in every for one in some])[1:], of) if len(of) else None


def one_thread_per_worker(worker: int) -> None:
    """Workers share the cores with the model: a small batch gains nothing from a pool of tokenizer threads."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
