"""Small local models and data, made once per test session: nothing is downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import BartForConditionalGeneration, BertConfig, BertModel, BertTokenizerFast

from openbook.utils.hardware import n_cores
from tests.small_system import SmallSystem
from tests.tiny_models import bart_config

os.environ.setdefault("HF_HUB_OFFLINE", "1")
for of_make in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "OPENBOOK_QUIET"):  # of the `make test` that started the tests
    os.environ.pop(of_make, None)
# Tests on several cores share the threads, and so do the processes that they start.
if (processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(os.environ.get("OMP_NUM_THREADS", n_cores())) // processes))
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Of `-n auto`. On a GPU tests take turns: some look at how much of its memory is free."""
    return 0 if torch.cuda.is_available() else min(n_cores(), 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that is marked `gpu` is skipped where there is none; pytest counts it as skipped."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def environment_of_an_earlier_test() -> Iterator[None]:
    """What a run sets for itself and for the processes that it starts ends with its test: the next one would run in
    its folder, and wandb's own commands would say nothing."""
    for of_a_run in ("OPENBOOK_RUN_DIR", "WANDB_SILENT"):  # a fixture of the session may have run one
        os.environ.pop(of_a_run, None)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def gpus_are_for_tests_that_ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of a CPU is tested on one, also where there is a GPU: attention, casts and the place of an index
    would be others. A test that is marked `gpu` sees it."""
    if torch.cuda.is_available() and not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of the processes that it starts


WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the capital of is what which city a river flows through country king queen "
    "lives in alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau "
    "upsilon phi chi psi omega one two three four five six seven eight nine ten ? . , : a b c d e f g h i j k l m "
    "n o p q r s t u v w x y z ##a ##b ##c ##d ##e ##f ##g ##h ##i ##j ##k ##l ##m ##n ##o ##p ##q ##r ##s ##t "
    "##u ##v ##w ##x ##y ##z "
).split()
LETTERS = WORDS[WORDS.index("alpha") : WORDS.index("chi")]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(WORDS)), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def _with_tokenizer(model: object, folder: Path, tokenizer_folder: Path) -> Path:
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    BertTokenizerFast.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A BERT of 2 layers, dim 24, random weights."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(set(WORDS)),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    return _with_tokenizer(BertModel(config), tmp_path_factory.mktemp("encoder"), tokenizer_folder)


@pytest.fixture(scope="session")
def generator_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A BART of 1 + 1 layers, dim 20, random weights, over the same vocabulary."""
    torch.manual_seed(2)
    config = bart_config(
        len(set(WORDS)), layers=(1, 1), pad=0, bos=2, eos=3, max_position_embeddings=128, dropout=0.0, init_std=0.3
    )
    return _with_tokenizer(BartForConditionalGeneration(config), tmp_path_factory.mktemp("generator"), tokenizer_folder)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with passages.jsonl (37 passages) and train, validation and test questions about them."""
    folder = tmp_path_factory.mktemp("data")
    passages, questions = [], []
    for number in range(37):
        country, city, river = (LETTERS[(number * step + step) % len(LETTERS)] for step in (1, 3, 7))
        name = f"{country} {LETTERS[number % 19]}"
        text = f"the capital of {name} is {city} . a river {river} flows through {name} ."
        passages.append({"id": f"p{number}", "title": name, "text": text})
        questions.append(
            {
                "id": f"q{number}",
                "question": f"what is the capital of {name} ?",
                "answers": [city],
                "positive_ids": [f"p{number}"],
                "relation": "capital",
                "phrasing": "trained",
            }
        )
    for name, content in {
        "passages": passages,
        "train": questions[:23],
        "validation": questions[23:30],
        "test": questions[30:],
    }.items():
        lines = "".join(json.dumps(line) + "\n" for line in content)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small_system(encoder_folder: Path, generator_folder: Path, small_data: Path) -> SmallSystem:
    return SmallSystem(encoder_folder, generator_folder, small_data)
