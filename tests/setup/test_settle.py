"""What a configuration leaves to the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from openbook.config.load import flat, load_experiment, load_resolved, to_yaml
from openbook.config.schema import Config
from openbook.data.corpus import Corpus
from openbook.data.corpus_build import build_corpus
from openbook.errors import OpenBookError
from openbook.models.encoders import load_tokenizer
from openbook.setup.encoders import follow_folders
from openbook.setup.settle import settle
from openbook.tracking.open_keys import OPEN, agrees, left_open
from tests.small_system import SmallSystem

OWN = "data.corpus=p.jsonl data.train=t.jsonl data.validation=v.jsonl data.test=e.jsonl trainer.accelerator=cpu".split()


@pytest.fixture
def corpus(small_system: SmallSystem, tmp_path: Path) -> Corpus:
    tokenizer = load_tokenizer(str(small_system.encoder))
    return build_corpus(
        small_system.data / "passages.jsonl", {"encoder": tokenizer, "generator": tokenizer}, tmp_path / "cache"
    )


def settled(corpus: Corpus, n_questions: int, *words: str) -> Config:
    return settle(load_experiment("rag_token", [*OWN, *words]), corpus, n_questions)


def test_the_embedded_values_are_for_the_embedded_data_alone(corpus: Corpus) -> None:
    book, own = load_experiment("rag_token"), load_experiment("rag_token", OWN)
    assert (book.trainer.max_steps, own.trainer.max_steps) == (60, 0)
    assert (book.retriever.teacher, own.retriever.teacher) == ("generator", "auto")
    assert not book.retriever.train_word_embeddings and not own.retriever.train_word_embeddings
    assert settle(book, corpus, 5000) == book


def test_every_open_setting_is_chosen_and_a_run_is_found_by_what_was_asked(corpus: Corpus) -> None:
    asked = load_experiment("rag_token", OWN)
    before, after = flat(asked), flat(settle(follow_folders(asked), corpus, 900))
    assert {key for key, value in OPEN.items() if before[key] != value} == set()
    assert {key for key, value in OPEN.items() if after[key] == value} == {
        "retriever.dim"
    }  # all, as this folder has it
    assert {key for key in before if before[key] != after[key]} == set(OPEN) - {"retriever.dim"}
    assert agrees(after, before, OPEN) and not agrees(after, before | {"optim.lr": 5e-4}, OPEN)
    assert not agrees(after, before | {"seed": 1}, OPEN)
    assert left_open(asked) == list(OPEN)


def test_a_value_that_somebody_chose_is_not_what_the_data_would_have(corpus: Corpus) -> None:
    asked = load_experiment("rag_token", OWN)
    chosen = load_experiment("rag_token", [*OWN, "optim.lr=1e-7", "trainer.max_steps=2"])
    run = flat(settle(follow_folders(chosen), corpus, 900))
    opened = left_open(chosen)
    assert set(OPEN) - set(opened) == {"optim.lr", "trainer.max_steps"}
    assert agrees(run, flat(chosen), opened) and not agrees(run, flat(asked), opened)
    older = flat(settle(follow_folders(asked), corpus, 900))  # it did not record what it left open
    assert not agrees(older, flat(asked), None)
    folders = {key: value for key, value in flat(asked).items() if key.startswith("retriever.p")}
    assert agrees({key: older[key] for key in folders}, folders, None)


@pytest.mark.parametrize("steps", [12, 19, 20, 45, 90])
def test_what_was_chosen_is_checked_as_what_was_asked(corpus: Corpus, tmp_path: Path, steps: int) -> None:
    words = ("refresh.mode=amortized", f"trainer.max_steps={steps}")  # a refresh takes 10 steps
    if steps < 20:
        with pytest.raises(OpenBookError, match=rf"not end within the run.*10 of {steps} steps.*most {steps // 2}"):
            settled(corpus, 900, *words)
        return
    config = settled(corpus, 900, *words)
    assert 10 <= int(config.refresh.every) <= steps - 10
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_resolved(tmp_path / "config.yaml") == config


def test_experiments_can_extend_and_override_embedded_values(tmp_path: Path) -> None:
    child = {"extends": "rag_token", "trainer": {"max_steps": 7}, "embedded": {"optim": {"lr": 0.5}}}
    (tmp_path / "child.yaml").write_text(yaml.safe_dump(child))
    (tmp_path / "rag_token.yaml").write_text(Path("experiments/rag_token.yaml").read_text())
    book, own = (load_experiment("child", words, tmp_path) for words in ([], OWN))
    assert (book.trainer.max_steps, own.trainer.max_steps) == (7, 7)
    assert (book.optim.lr, own.optim.lr) == (0.5, 0.0)
    assert load_experiment("child", ["optim.lr=1e-3"], tmp_path).optim.lr == 1e-3


def test_nothing_is_left_open_and_what_was_said_stays(corpus: Corpus, tmp_path: Path) -> None:
    config = settled(corpus, 900, "optim.lr=3e-4", "warmup.steps=0", "refresh.every=7")
    assert (config.optim.lr, config.optim.lr_generator, config.warmup.steps) == (3e-4, 0.0, 0)
    assert (config.refresh.every, config.trainer.checkpoint_every, config.trainer.validate_every) == ("7", 7, 7)
    assert (config.retriever.teacher, config.evaluate.checkpoint) == ("both", "best")
    assert settle(config, corpus, 900) == config
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_resolved(tmp_path / "config.yaml") == config


def test_a_run_of_before_these_settings_goes_on_as_it_was(tmp_path: Path) -> None:
    old = {"experiment": "old", "data": {"corpus": "p.jsonl"}, "trainer": {"monitor": "auto", "max_steps": 9}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old), encoding="utf-8")
    config = load_resolved(tmp_path / "config.yaml", training=False)
    assert (config.retriever.teacher, config.warmup.spans, config.trainer.monitor) == ("generator", 0.0, "exact_match")
    assert config.evaluate.checkpoint == "last" and config.warmup.window == 0
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old | {"objective": "dpr"}), encoding="utf-8")
    assert load_resolved(tmp_path / "config.yaml", training=False).trainer.monitor == "recall_at_1"


@pytest.mark.parametrize(
    ("n_questions", "words", "steps"),
    [
        (10_000, (), 90),  # on a CPU, where a step takes seconds
        (80, (), 40),  # 8 passes over 80 questions
        (16, (), 30),
        (900, ("trainer.max_epochs=2",), 114),
        (900, ("trainer.max_epochs=2", "trainer.batch_size=4", "trainer.accumulate=2"), 226),
        (20, ("trainer.max_epochs=1",), 2),
        (17, ("trainer.max_epochs=8",), 16),
        (900, ("trainer.max_steps=5",), 5),
    ],
)
def test_steps_follow_from_the_questions(corpus: Corpus, n_questions: int, words: tuple[str, ...], steps: int) -> None:
    assert settled(corpus, n_questions, *words).trainer.max_steps == steps


@pytest.mark.parametrize("batch", [32, 64, 200])
def test_the_warm_up_is_as_long_as_what_it_reads_allows(corpus: Corpus, batch: int) -> None:
    tokens = corpus.tokens("generator").lengths.mean() + 16  # of a passage and a question
    seen = []
    for words, passages, most, (fewest, longest) in (
        ((), 1, 2e6, (250, 500)),
        (("warmup.window=0",), 1, 1e6, (150, 300)),
        (("objective=emdr2", "generator.reads=all"), 3, 2e6, (250, 500)),
        (("objective=emdr2", "generator.reads=all", "warmup.window=0"), 3, 1e6, (150, 300)),
    ):
        seen.append(settled(corpus, 900, f"warmup.batch_size={batch}", *words).warmup.steps)
        assert seen[-1] == min(max(10 * round(most / (batch * passages * tokens) / 10), fewest), longest)
    assert seen[0] > seen[1] >= seen[3] and seen[0] >= seen[2] > seen[3]


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (("retriever.kind=bm25",), "retriever.temperature", 1.0),
        (("retriever.normalize=false", "retriever.override_folder=true"), "retriever.temperature", 1.0),
        ((), "retriever.temperature", 0.05),
        (("data.validation=",), "evaluate.checkpoint", "last"),
        (("refresh.fresh_test=false",), "evaluate.checkpoint", "last"),
        (
            ("retriever.train_question_encoder=false", "retriever.train_passage_encoder=false"),
            "retriever.teacher",
            "generator",
        ),
        (("objective=closed_book",), "retriever.teacher", "generator"),
        (("evaluate.task=labels", "evaluate.labels=yes,no"), "retriever.teacher", "generator"),
        (("data.train=spans",), "warmup.spans", 0.0),
        ((), "warmup.spans", 0.5),
        ((), "data.max_passage_tokens", 128),
        ((), "data.max_context_tokens", 192),
    ],
)
def test_rules(corpus: Corpus, words: tuple[str, ...], key: str, value: Any) -> None:
    section, name = key.split(".")
    assert getattr(getattr(settled(corpus, 900, *words), section), name) == value


def test_a_refresh_is_rarer_where_it_costs_more(corpus: Corpus) -> None:
    config = replace(load_experiment("rag_token", [*OWN, "trainer.max_steps=3000"]))
    small = settle(config, corpus, 900).refresh.every
    corpus.n_passages = 1_000_000
    assert int(settle(config, corpus, 900).refresh.every) == 1500  # half of the run at most
    corpus.n_passages = 100_000
    assert int(small) < int(settle(config, corpus, 900).refresh.every) < 1500


def test_passages_are_read_as_far_as_nearly_all_need_and_the_model_can(
    tmp_path: Path, small_system: SmallSystem
) -> None:
    tokenizer = load_tokenizer(str(small_system.encoder))
    lines = "".join(
        f'{{"id": "{n}", "title": "t", "text": "{"alpha " * (180 if n % 20 else 20)}"}}\n' for n in range(60)
    )
    (tmp_path / "p.jsonl").write_text(lines)
    corpus = build_corpus(tmp_path / "p.jsonl", {"encoder": tokenizer, "generator": tokenizer}, tmp_path)
    config = settled(corpus, 900)
    assert (config.data.max_passage_tokens, config.data.max_context_tokens) == (192, 256)
    short = settled(corpus, 900, f"retriever.passage_encoder={small_system.encoder}")
    assert short.data.max_passage_tokens == 128  # its positions
