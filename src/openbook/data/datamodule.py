"""Questions and answers for every rank: batches of the stream, and the one number that continues it.

The trainer must be made with `use_distributed_sampler=False`: the stream shares itself out.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from openbook.batch import Batch, Example
from openbook.data.collate import Collate, PlannedExamples, one_thread_per_worker
from openbook.data.encoder_inputs import EncoderFormat, encoder_format, question_inputs
from openbook.data.prompts import Prompt
from openbook.data.question_file import QuestionFile
from openbook.data.question_lengths import Limits, Reader, answer_room, check_lengths, check_prefix, over, told
from openbook.data.sampler import BatchPlan, GlobalBatchSampler
from openbook.errors import OpenBookError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


class ResumableLoader(DataLoader[Batch]):
    """A DataLoader that tells Lightning that it can be resumed. Its place is in the DataModule's state, so there is
    nothing to hold here; without the two methods Lightning warns, wrongly, that a resumed epoch is unreliable."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


class QuestionAnswerData(LightningDataModule):
    """Training, validation and test questions as batches of this rank.

    Files are `.jsonl` questions (see formats); a file of None has no loader. max_question_tokens counts a question
    without special tokens, under either tokenizer and for the encoder with its prefix (question_format): a longer one
    is, by long_questions, an error when the data is set up (because questions are never cut in a context), cut at its
    end, or left out, and said. max_target_tokens counts the end-of-sequence: longer answers are cut, with one warning
    that says how many, or with `strict` an error.

    Training batches sample one of the gold answers per visit, by (seed, epoch, example id); the others label the
    first one, and carry all in `examples`. `cache` is a folder for line indexes (see QuestionFile).

    limits: {split: questions used}, spread evenly over the file; 0 or absent: all. unanswered: whether questions may
    lack an answer. prompt: of a decoder-only generator. global_batch_size: training questions of all ranks in a pass,
    0: as many as they have room for (batch_size each). paraphrases: of a training question at most.

    The state of a checkpoint is {"consumed", "seed"}: `consumed` is the cursor of the batch last handed to a training
    step. It is noted when the batch is handed over, because ModelCheckpoint saves before the module's own
    on_train_batch_end.
    """

    def __init__(
        self,
        *,
        train: str | Path | None = None,
        validation: str | Path | None = None,
        test: str | Path | None = None,
        question_tokenizer: Tokenizer,
        question_format: EncoderFormat | None = None,
        generator_tokenizer: Tokenizer,
        batch_size: int,
        evaluation_batch_size: int | None = None,
        max_question_tokens: int,
        max_target_tokens: int,
        seed: int = 0,
        num_workers: int = 0,
        strict: bool = False,
        cache: str | Path | None = None,
        limits: Mapping[str, int] | None = None,
        long_questions: Literal["error", "cut", "drop"] = "error",
        unanswered: bool = False,
        prompt: Prompt | None = None,
        global_batch_size: int = 0,
        decoded_questions: bool = False,
        paraphrases: int = 0,
    ):
        super().__init__()
        self.global_batch_size = global_batch_size
        self.limits, self.long_questions, self.unanswered = dict(limits or {}), long_questions, unanswered
        self.prompt, self.decoded_questions, self.paraphrases = prompt, decoded_questions, paraphrases
        self.paths = {"train": train, "validation": validation, "test": test}
        self.question_tokenizer, self.generator_tokenizer = question_tokenizer, generator_tokenizer
        self.question_format = question_format or encoder_format(question_tokenizer, "joined")
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size or batch_size
        self.max_question_tokens, self.max_target_tokens = max_question_tokens, max_target_tokens
        self.seed, self.num_workers, self.strict, self.cache = seed, num_workers, strict, cache
        self.consumed = 0
        self.questions: dict[str, QuestionFile] = {}
        self._train_sampler: GlobalBatchSampler | None = None

    def setup(self, stage: str | None = None) -> None:
        """Check the files that the stage needs, once. Raises OpenBookError on bad input, all before training."""
        if self.long_questions == "cut":
            check_prefix(
                self._readers[0], self.max_question_tokens, "retriever.question_prefix", "data.max_question_tokens"
            )
        needed = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), None: self.paths}
        for split in needed.get(stage, self.paths):
            path = self.paths[split]
            if path is not None and split not in self.questions:
                questions = QuestionFile(path, self.cache, self.unanswered)
                started = None if self.prompt and not self.prompt.encoded else self.generator_tokenizer
                room = answer_room(started, self.max_target_tokens) if split == "train" else None
                limits = Limits(self.max_question_tokens, self.long_questions, room, self.strict)
                check_lengths(questions, self._readers, limits)
                self.questions[split] = questions

    def train_dataloader(self) -> ResumableLoader:
        together = self.global_batch_size if self.trainer else 0  # alone it is a batch of one rank that is wanted
        stream = {"seed": self.seed, "consumed": self.consumed, "global_batch_size": together}
        self._train_sampler = self._sampler("train", self.batch_size, **stream)
        return self._loader("train", self._train_sampler)

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        return self._in_order("validation")

    def test_dataloader(self) -> ResumableLoader | list[Any]:
        return self._in_order("test")

    def trained(self, cursor: int) -> None:
        """Report that a batch was trained on: its `cursor` becomes the place from which the stream continues."""
        self.consumed = cursor
        if self._train_sampler is not None:
            self._train_sampler.consumed = cursor

    def state_dict(self) -> dict[str, Any]:
        return {"consumed": self.consumed, "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the checkpoint's stream, under its seed; warns where this run asked for another."""
        if state_dict["seed"] != self.seed:
            warnings.warn(
                f"the stream continues with the checkpoint's seed {state_dict['seed']} instead of {self.seed}: "
                "its place means nothing in another order",
                stacklevel=2,
            )
        self.seed = int(state_dict["seed"])
        self.trained(int(state_dict["consumed"]))

    def _sampler(self, split: str, batch_size: int, **stream: Any) -> GlobalBatchSampler:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return GlobalBatchSampler(len(self._examples(split)), batch_size, rank=rank, world_size=world_size, **stream)

    def _split(self, split: str) -> QuestionFile:
        if split not in self.questions:
            raise OpenBookError(
                f"there are no {split} questions", expected=f"data.{split}=FILE", action="Name the file."
            )
        return self.questions[split]

    def _in_order(self, split: str) -> ResumableLoader | list[Any]:
        if self.paths[split] is None:
            return []
        return self._loader(split, self._sampler(split, self.evaluation_batch_size, shuffle=False))

    def probe_questions(self, n: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """ids and mask [n, question_len] of validation questions spread over the file, training ones where there are
        no others, for measuring an index; the same at every call."""
        split = "validation" if "validation" in self.questions else "train"
        if split not in self.questions:
            return None
        chosen = PlannedExamples(self.questions[split], n)
        style, asked = self.question_format, [chosen.example(index).question for index in range(len(chosen))]
        ids = style.question_ids(self.question_tokenizer, asked)
        return question_inputs(ids, style, self.max_question_tokens + style.n_around)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Called for each batch right before it is trained on: whatever is saved later in this step knows of it."""
        if self.trainer is not None and self.trainer.training:
            self.trained(batch.cursor)
        return batch

    def _examples(self, split: str) -> PlannedExamples:
        return PlannedExamples(self._split(split), self.limits.get(split, 0))

    def _loader(self, split: str, sampler: GlobalBatchSampler) -> ResumableLoader:
        return ResumableLoader(
            self._examples(split),  # type: ignore[arg-type]  # one item of it becomes a batch in collate_fn
            batch_sampler=sampler,  # type: ignore[arg-type]  # a plan is not a list of indices; __getitems__ reads it
            collate_fn=self._collate(split == "train"),  # type: ignore[arg-type]  # __getitems__ gives no list
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            multiprocessing_context="spawn" if self.num_workers else None,  # a FAISS search hangs after a fork
            worker_init_fn=one_thread_per_worker if self.num_workers else None,
        )

    def _collate(self, training: bool) -> Collate:
        return Collate(
            question_tokenizer=self.question_tokenizer,
            question_format=self.question_format,
            generator_tokenizer=self.generator_tokenizer,
            max_question_tokens=self.max_question_tokens,
            max_target_tokens=self.max_target_tokens,
            seed=self.seed,
            sample_answers=training,
            prompt=self.prompt,
            cut_questions=self.long_questions == "cut",
            decoded_questions=self.decoded_questions,
            paraphrases=self.paraphrases if training else 0,
        )

    def batch_of(self, examples: Sequence[Example]) -> Batch:
        """Examples that are in no file as one batch; OpenBookError for a question that is too long."""
        asked = list(enumerate((example.question for example in examples), 1))
        for reader in self._readers if self.long_questions != "cut" else ():
            for number, n_tokens in over(reader, asked, self.max_question_tokens):
                raise OpenBookError(
                    "a question is longer than the limit",
                    where=f"question {number}",
                    got=told(n_tokens, [reader]),
                    expected=f"at most {self.max_question_tokens}, because questions are never cut",
                )
        plan = BatchPlan(tuple(range(len(examples))), filler=0, epoch=0, cursor=0)
        return self._collate(training=False)((plan, list(examples)))

    @property
    def _readers(self) -> tuple[Reader, Reader]:
        asks = Reader(self.question_tokenizer, self.question_format.prefix)
        spaced = self.prompt.spaced if self.prompt is not None else ()
        before = {field: " " if field in spaced else "" for field in ("question", "answer")}
        through = (self.question_tokenizer, self.question_format.prefix) if self.decoded_questions else None
        return asks, Reader(self.generator_tokenizer, before["question"], before["answer"], through)
