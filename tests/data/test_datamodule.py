"""The DataModule under a real Trainer: interrupted and resumed, every example comes exactly once per epoch."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from openbook.batch import IGNORED_LABEL, Batch
from openbook.data.datamodule import QuestionAnswerData
from openbook.data.prompts import Prompt
from openbook.data.sampler import sampled_answer
from openbook.errors import OpenBookError
from tests.decoder_only import bpe_tokenizer

N_TRAIN, N_VALIDATION, BATCH_SIZE = 23, 7, 3
STEPS_PER_EPOCH = math.ceil(N_TRAIN / BATCH_SIZE)

pytestmark = pytest.mark.filterwarnings("ignore:.*bottleneck", "ignore:.*val_dataloader", "ignore:.*tensorboard")


def tokenizer(template: bool = False) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "what", "is", "<unk>", *map(str, range(101))]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces = {"single": "<s> $A </s>", "pair": "<s> $A </s> $B </s>", "special_tokens": [("<s>", 1), ("</s>", 2)]}
    if template:
        backend.post_processor = processors.TemplateProcessing(**pieces)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def question_file(path: Path, n: int) -> Path:
    lines = ({"id": f"q{i}", "question": f"what is {i}", "answers": [f"{i}", f"is {i}"]} for i in range(n))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {
        "train": question_file(tmp_path / "train.jsonl", N_TRAIN),
        "validation": question_file(tmp_path / "validation.jsonl", N_VALIDATION),
    }


def data(files: dict[str, Path], **changed: Any) -> QuestionAnswerData:
    asks, answers = tokenizer(template=True), tokenizer()
    limits: dict[str, Any] = {"batch_size": BATCH_SIZE, "max_question_tokens": 11, "max_target_tokens": 5, "seed": 5}
    tokenizers = {"question_tokenizer": asks, "generator_tokenizer": answers}
    return QuestionAnswerData(**(tokenizers | limits | files | changed))


class KilledError(Exception):
    pass


class Recorder(pl.LightningModule):
    """Trains one weight and writes down the examples it saw."""

    def __init__(self, stop_after: int | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[str] = []
        self.epochs: list[int] = []
        self.validated: list[str] = []
        self.stop_after, self.n_batches = stop_after, 0

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        if self.n_batches == self.stop_after:
            raise KilledError
        self.n_batches += 1
        self.seen += [example.id for example, weight in zip(batch.examples, batch.weight, strict=True) if weight]
        self.trainer.datamodule.trained(batch.cursor)  # type: ignore[attr-defined]
        return (self.weight * batch.weight.sum()).sum()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self.validated += [e.id for e, weight in zip(batch.examples, batch.weight, strict=True) if weight]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, epochs: int, *, every_steps: int | None = 1, **options: Any) -> pl.Trainer:
    """Saves a checkpoint at every optimizer step, or at every epoch's end where every_steps is None."""
    saver = ModelCheckpoint(folder, every_n_train_steps=every_steps, save_last=True, save_top_k=-1, filename="{step}")
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[saver],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )


def interrupted_and_resumed(
    files: dict[str, Path], folder: Path, stop_after: int, epochs: int, num_workers: int = 0, **options: Any
) -> tuple[Recorder, Recorder, QuestionAnswerData]:
    first, second = Recorder(stop_after), Recorder()
    with pytest.raises(KilledError):
        trainer(folder, epochs, **options).fit(first, datamodule=data(files, num_workers=num_workers))
    resumed = data(files)
    trainer(folder, epochs, **options).fit(second, datamodule=resumed, ckpt_path=folder / "last.ckpt")
    return first, second, resumed


@pytest.mark.parametrize("stop_after", [1, 4, STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 3])
def test_interrupted_and_resumed_is_the_same_as_never_stopped(
    files: dict[str, Path], tmp_path: Path, stop_after: int
) -> None:
    whole = Recorder()
    trainer(tmp_path / "whole", 2).fit(whole, datamodule=data(files))
    first, second, resumed = interrupted_and_resumed(files, tmp_path / "parts", stop_after, epochs=2)
    assert first.seen + second.seen == whole.seen
    assert set(Counter(whole.seen).values()) == {2}
    assert resumed.state_dict() == {"consumed": 2 * N_TRAIN, "seed": 5}
    assert torch.equal(second.weight, whole.weight)


def test_resumed_with_workers(files: dict[str, Path], tmp_path: Path) -> None:
    """They read ahead of training; what was read but not trained on comes again. The number of workers may change."""
    first, second, _ = interrupted_and_resumed({"train": files["train"]}, tmp_path, 5, epochs=1, num_workers=2)
    assert len(first.seen) == 5 * BATCH_SIZE
    assert sorted(first.seen + second.seen) == sorted(f"q{i}" for i in range(N_TRAIN))


@pytest.mark.parametrize(("stop_after", "saved"), [(4, 4), (5, 4)])
def test_resumed_under_accumulation(files: dict[str, Path], tmp_path: Path, stop_after: int, saved: int) -> None:
    """The checkpoint lies at an optimizer step; a micro-batch after it was lost with the process and comes again."""
    first, second, _ = interrupted_and_resumed(files, tmp_path, stop_after, epochs=2, accumulate_grad_batches=2)
    kept = first.seen[: saved * BATCH_SIZE]
    assert len(first.seen) == stop_after * BATCH_SIZE
    assert set(Counter(kept + second.seen).values()) == {2}
    assert sorted((kept + second.seen)[:N_TRAIN]) == sorted(f"q{i}" for i in range(N_TRAIN))


def test_resumed_from_the_end_of_an_epoch(files: dict[str, Path], tmp_path: Path) -> None:
    first, second, _ = interrupted_and_resumed(
        files, tmp_path, stop_after=STEPS_PER_EPOCH + 2, epochs=3, every_steps=None
    )
    kept = first.seen[:N_TRAIN]
    assert set(Counter(kept + second.seen).values()) == {3}


def test_an_epoch_cut_short_goes_on_where_it_was(files: dict[str, Path], tmp_path: Path) -> None:
    recorder = Recorder()
    trainer(tmp_path, 2, limit_train_batches=3).fit(recorder, datamodule=data(files))
    assert len(set(recorder.seen)) == len(recorder.seen) == 2 * 3 * BATCH_SIZE


def test_validation_is_whole_in_order_every_time(files: dict[str, Path], tmp_path: Path) -> None:
    recorder = Recorder()
    trainer(tmp_path, 2).fit(recorder, datamodule=data(files, evaluation_batch_size=2))
    assert recorder.validated == [f"q{i}" for i in range(N_VALIDATION)] * 2


def test_ranks_share_evaluation_without_repeating(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    weighted: list[str] = []
    for rank in range(3):
        module = data(files, evaluation_batch_size=2)
        monkeypatch.setattr(module, "trainer", SimpleNamespace(global_rank=rank, world_size=3))
        module.setup("validate")
        batches = list(module.val_dataloader())
        assert len(batches) == 2
        for batch in batches:
            assert isinstance(batch, Batch)
            weighted += [e.id for e, weight in zip(batch.examples, batch.weight, strict=True) if weight]
    assert sorted(weighted) == [f"q{i}" for i in range(N_VALIDATION)]


def test_zero_and_two_workers_give_the_same_bytes(files: dict[str, Path], tmp_path: Path) -> None:
    def batches(num_workers: int) -> list[Batch]:
        module = data(files, num_workers=num_workers, cache=tmp_path / "cache")
        module.setup("fit")
        return list(module.train_dataloader())

    alone, workers = batches(0), batches(2)
    assert len(alone) == len(workers) == STEPS_PER_EPOCH
    for one, other in zip(alone, workers, strict=True):
        for name in ("question_ids", "question_mask", "labels", "weight"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert (one.context_questions, one.examples, one.cursor) == (
            other.context_questions,
            other.examples,
            other.cursor,
        )


def test_a_batch_says_what_it_was_made_from(files: dict[str, Path]) -> None:
    module, words = data(files), tokenizer()
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    for row, example in enumerate(batch.examples):
        asked = words(example.question, add_special_tokens=False)["input_ids"]
        assert batch.question_ids[row][batch.question_mask[row]].tolist() == [1, *asked, 2]
        assert list(batch.context_questions[row]) == asked
        answer = words(sampled_answer(example, 0, 5), add_special_tokens=False)["input_ids"]
        assert batch.labels[row][batch.labels[row] != IGNORED_LABEL].tolist() == [*answer, 2]
    assert batch.cursor == BATCH_SIZE
    assert batch.weight.tolist() == [1.0] * BATCH_SIZE


def test_training_questions_bring_their_paraphrases(files: dict[str, Path]) -> None:
    rows = [json.loads(line) for line in files["train"].read_text().splitlines()]
    worded = [row | {"paraphrases": [f"is {place} {n}" for n in range(place % 4)]} for place, row in enumerate(rows)]
    files = files | {
        "train": files["train"].with_name("worded.jsonl"),
        "validation": files["train"].with_name("v.jsonl"),
    }
    for path in files.values():
        path.write_text("".join(json.dumps(row) + "\n" for row in worded))
    module, words = data(files, paraphrases=2), tokenizer(template=True)
    module.setup("fit")
    seen = dict[str, set[str]]()
    for epoch in range(12):
        for batch in module.train_dataloader():
            found = dict.fromkeys(range(len(batch.examples)), 0)
            if batch.paraphrases is not None:
                ids, mask, of = batch.paraphrases
                assert of.tolist() == sorted(of.tolist()) and mask.sum(1).tolist() == [5] * len(of)
                for row, place in zip(ids, of.tolist(), strict=True):
                    found[place] += 1
                    text = words.decode(row, skip_special_tokens=True)
                    assert text in batch.examples[place].paraphrases
                    seen.setdefault(batch.examples[place].id, set()).add(text)
            for place, example in enumerate(batch.examples):
                assert found[place] == min(2, len(example.paraphrases))
        module.consumed = (epoch + 1) * N_TRAIN
    assert {len(some) for some in seen.values()} == {1, 2, 3}  # of three in the file two at a visit, in turn
    assert all(batch.paraphrases is None for batch in module.val_dataloader())
    without = data(files)
    without.setup("fit")
    assert all(batch.paraphrases is None for batch in without.train_dataloader())


def test_a_long_paraphrase_is_refused_as_a_question_is(files: dict[str, Path]) -> None:
    row = {"question": "what is 1", "answers": ["1"], "paraphrases": ["what is 2", "is " * 12]}
    files["train"].write_text(json.dumps(row) + "\n")
    with pytest.raises(OpenBookError, match=r"longer than the limit.*train\.jsonl:1"):
        data(files).setup("fit")


def test_each_epoch_samples_anew_and_evaluation_takes_the_first(files: dict[str, Path]) -> None:
    module = data(files, batch_size=N_TRAIN)
    module.setup("fit")
    lengths = []
    for consumed in (0, N_TRAIN):
        module.trained(consumed)
        (batch,) = module.train_dataloader()
        lengths.append({e.id: int(n) for e, n in zip(batch.examples, batch.target_mask.sum(1), strict=True)})
    assert lengths[0] != lengths[1]
    (validation,) = data_in_order(module)
    assert validation.target_mask.sum(1).tolist() == [2] * N_VALIDATION


def data_in_order(module: QuestionAnswerData) -> list[Batch]:
    return list(module.val_dataloader())


def test_long_answers_warn_once_or_are_refused(files: dict[str, Path]) -> None:
    files["train"].write_text(
        '{"question": "what", "answers": ["1 2 3 4"]}\n'
        '{"question": "is", "answers": ["1 2 3 4 5 6", "1 2 3 4 5", "7"]}\n'
    )
    wanted = (
        r"2 answers are longer than the limit \(the first at .*train\.jsonl:2\): got up to 6 tokens, expected at most 4"
    )
    module = data(files)
    with pytest.warns(UserWarning, match=wanted) as caught:
        module.setup("fit")
    assert len(caught) == 1
    with pytest.raises(OpenBookError, match=wanted):
        data(files, strict=True).setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        module.setup("fit")  # checked already: the warning comes once
        data(files, max_target_tokens=7, strict=True).setup("fit")


def test_a_long_question_is_refused_before_training(files: dict[str, Path]) -> None:
    message = r"longer than the limit \(.*train\.jsonl:1\): got 3 tokens, expected at most 2.*23 of 23 questions"
    with pytest.raises(OpenBookError, match=message):
        data(files, max_question_tokens=2).setup("fit")


def test_a_missing_split_says_which_key(files: dict[str, Path]) -> None:
    module = data(files)
    module.setup("test")
    assert module.test_dataloader() == []
    module = data({"validation": files["validation"]})
    module.setup("fit")
    with pytest.raises(OpenBookError, match=r"there are no train questions: expected data\.train=FILE"):
        module.train_dataloader()


def test_another_seed_gives_way_to_the_checkpoint(files: dict[str, Path]) -> None:
    module = data(files, seed=6)
    with pytest.warns(UserWarning, match="continues with the checkpoint's seed 5 instead of 6"):
        module.load_state_dict({"consumed": 6, "seed": 5})
    assert module.state_dict() == {"consumed": 6, "seed": 5}


def test_a_limit_takes_examples_spread_over_the_file(files: dict[str, Path]) -> None:
    module = data(files, limits={"validation": 3})
    module.setup("fit")
    ids = [example.id for batch in module.val_dataloader() for example in batch.examples]
    assert ids == ["q0", "q2", "q4"]
    assert len(list(module.train_dataloader())) == STEPS_PER_EPOCH


def test_texts_are_counted_with_the_space_that_a_prompt_writes(files: dict[str, Path]) -> None:
    """In byte-level BPE a number behind a space is one token more: as many as its label then has."""
    generator = bpe_tokenizer(["Question: Answer: what is"] * 3)
    prompt = Prompt(((0,), (1, 2)), ("question",), frozenset({"question", "answer"}), 0, 0)
    files["train"].write_text('{"question": "7", "answers": ["1995"]}\n')
    space, answer, question = (len(ids) for ids in generator([" ", " 1995", " 7"])["input_ids"])
    assert (space, answer, question) == (1, 5, 2)
    words: dict[str, Any] = {"generator_tokenizer": generator, "prompt": prompt, "strict": True}
    with pytest.raises(OpenBookError, match=r"answers are longer .*got up to 5 tokens, expected at most 4"):
        data({"train": files["train"]}, **words, max_target_tokens=5).setup("fit")
    module = data({"train": files["train"]}, **words, max_target_tokens=6)
    module.setup("fit")
    assert next(iter(module.train_dataloader())).labels[0].tolist() == [*generator(" 1995")["input_ids"], 0]
    with pytest.raises(OpenBookError, match=r"question is longer .*got 2 tokens, expected at most 1"):
        data({"train": files["train"]}, **words, max_question_tokens=1).setup("fit")
