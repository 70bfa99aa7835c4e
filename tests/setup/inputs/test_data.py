"""From keys to files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openbook.config.load import load_experiment
from openbook.errors import OpenBookError
from openbook.setup.inputs import data
from openbook.setup.inputs.own_files import own_passages, was_cut
from tests.small_system import SmallSystem


def test_sums_are_forgotten_once_and_only_where_that_is_asked_for(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(data, "forget", forgotten.append)
    cache = f"data.cache={tmp_path / 'cache'}"
    data.files(small_system.config(tmp_path / "run", cache))
    assert forgotten == []
    for _ in range(2):
        data.files(small_system.config(tmp_path / "run", cache, "data.verify=true"))
    assert forgotten == [str(tmp_path / "cache")]


@pytest.mark.parametrize("content", ["[1, 2]", "no json", '{"format": "x"}', "[" * 100_000, "\udcff"])
def test_a_report_of_the_users_own_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert not was_cut(tmp_path / "passages.jsonl")


def dpr_file(path: Path, *texts: str) -> Path:
    """Of a question for each text, whose passage has the text's number, as DPR's scripts number them."""
    contexts = [{"title": "t", "text": text, "passage_id": str(n)} for n, text in enumerate(texts)]
    asked = [
        {"question": f"{text}?", "answers": ["a"], "positive_ctxs": [context], "hard_negative_ctxs": []}
        for text, context in zip(texts, contexts, strict=True)
    ]
    path.write_text(json.dumps(asked), encoding="utf-8")
    return path


def test_files_whose_passages_have_the_same_ids(small_system: SmallSystem, tmp_path: Path) -> None:
    """The same text again is one passage; two texts under one id are refused, before as after they are in the cache."""
    train = dpr_file(tmp_path / "train.json", "an oak", "a fir")

    def corpus(other: Path) -> Path:
        words = (f"data.train={train}", f"data.validation={other}", "data.test=", "data.corpus=questions")
        return own_passages(small_system.config(tmp_path / "run", *words, f"data.cache={tmp_path / 'c'}"), "questions")

    same = corpus(dpr_file(tmp_path / "same.json", "an oak", "a fir", "an elm"))
    assert [json.loads(line)["text"] for line in same.read_text().splitlines()] == ["an oak", "a fir", "an elm"]
    other = dpr_file(tmp_path / "dev.json", "an oak", "a birch")
    for _ in range(2):
        with pytest.raises(
            OpenBookError,
            match=r"two passages under one id \(data\.corpus=questions\): got the id '1' in .*train\.json and, with "
            r"another text, in .*dev\.json; 1 such passages.*leave their ids out.*data\.corpus=FILE",
        ):
            corpus(other)


def test_a_gpu_answers_more_questions_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(*words: str) -> int:
        return data.answered_at_once(load_experiment("rag_token", words))

    assert (at_once(), at_once("evaluate.batch_size=3")) == (16, 3)
    monkeypatch.setattr(data, "accelerator", lambda wanted: "gpu")
    assert (at_once(), at_once("evaluate.batch_size=3")) == (128, 3)
    assert (at_once("retriever.n_docs=8"), at_once("evaluate.n_docs=50")) == (64, 16)
