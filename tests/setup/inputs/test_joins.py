"""What of the data does not fit is counted and said, and refused where nothing fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openbook.__main__ import main
from openbook.batch import Example
from openbook.config.models import MINILM
from openbook.data.inputs import token_ids
from openbook.errors import OpenBookError
from openbook.metrics.matching import exact_match, has_answer
from openbook.models.encoders import load_tokenizer
from openbook.retrieval.bm25 import BM25Index
from openbook.setup.inputs.joins import _unwritable, check_bm25
from openbook.setup.prepare import prepare
from tests.decoder_only import causal_folder
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")


def rewritten(source: Path, target: Path, **changes: Any) -> Path:
    """A jsonl file with each row's fields replaced; a function is given the row and its number."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    for n, row in enumerate(rows):
        row.update({key: change(row, n) if callable(change) else change for key, change in changes.items()})
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return target


def test_positive_ids_of_another_corpus(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = small_system.data / "train.jsonl"
    none = rewritten(train, tmp_path / "none.jsonl", positive_ids=lambda row, n: [f"wiki:{n}"])
    with pytest.raises(OpenBookError, match=r"none of \d+ positive ids are in the corpus \(data\.train\)"):
        prepare(small_system.config(tmp_path / "run", f"data.train={none}"))
    some = rewritten(
        train, tmp_path / "some.jsonl", positive_ids=lambda row, n: [f"wiki:{n}"] if n < 2 else row["positive_ids"]
    )
    prepare(small_system.config(tmp_path / "run", f"data.train={some}"))
    assert "data.train: 2 of" in capsys.readouterr().out
    prepare(small_system.config(tmp_path / "run", f"data.test={none}"), "test")  # another corpus is asked on purpose
    assert "positive ids are not in the corpus" in capsys.readouterr().out


def test_keys_that_are_not_read_are_said(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = rewritten(small_system.data / "train.jsonl", tmp_path / "t.jsonl", positive_ctxs=[{"title": "t"}], note=1)
    prepare(small_system.config(tmp_path / "run", f"data.train={train}"))
    said = " ".join(capsys.readouterr().out.split())
    assert "`positive_ctxs`" in said and "is it meant as `positive_ids`?" in said and "`note`" in said


def test_answers_that_the_tokenizer_cannot_write(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = small_system.data / "train.jsonl"
    none = rewritten(train, tmp_path / "none.jsonl", answers=["Ω≠∞"])
    with pytest.raises(OpenBookError, match=r"none of \d+ questions have an answer that"):
        prepare(small_system.config(tmp_path / "run", f"data.train={none}"))
    one = rewritten(train, tmp_path / "one.jsonl", answers=lambda row, n: ["Ω≠∞"] if n == 3 else row["answers"])
    capsys.readouterr()
    prepare(small_system.config(tmp_path / "run", f"data.train={one}"))
    assert "data.train: 1 of" in capsys.readouterr().out


def test_answers_that_come_back_without_their_accents(small_data: Path) -> None:
    """What an uncased tokenizer writes of them is no exact match: they are counted as what it cannot write."""
    tokenizer = load_tokenizer(MINILM)
    asked = [Example(str(n), "q", answers) for n, answers in enumerate([("São Paulo",), ("Rome",), ("Ñu", "gnu")])]
    assert _unwritable(tokenizer, asked) == 1
    for one in asked:
        back = tokenizer.batch_decode(token_ids(tokenizer, list(one.answers)), skip_special_tokens=True)
        assert any(exact_match(text, one.answers) for text in back) == (one.answers != ("São Paulo",))


def test_passages_that_are_cut_and_answers_in_the_part_cut(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passages = rewritten(
        small_system.data / "passages.jsonl",
        tmp_path / "p.jsonl",
        text=lambda row, n: "a river flows . " * 60 + row["text"],
    )
    prepare(small_system.config(tmp_path / "run", f"data.corpus={passages}"))
    said = " ".join(capsys.readouterr().out.split())
    assert "37 of 37 passages are cut for the passage encoder" in said
    assert "37 of 37 passages are cut for the generator" in said
    assert "stands only in the part of their gold passage that the generator does not read" in said


def test_of_a_question_that_is_cut_only_its_limit_takes_room(small_system: SmallSystem, tmp_path: Path) -> None:
    train = rewritten(
        small_system.data / "train.jsonl", tmp_path / "t.jsonl", question=lambda row, n: row["question"] + " what" * 90
    )
    words = ("data.max_context_tokens=120", "data.max_question_tokens=16", "data.long_questions=cut")
    counts = prepare(small_system.config(tmp_path / "run", f"data.train={train}", *words)).counts
    (cut,) = [one for one in counts if one.where == "data.train" and one.what.endswith("generator does not read")]
    assert (cut.n, cut.of > 0) == (0, True)


def test_labels_that_no_question_has(small_system: SmallSystem, tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match=r"none of \d+ questions have one of evaluate\.labels as an answer"):
        prepare(small_system.config(tmp_path / "run", "evaluate.task=labels", "evaluate.labels=one,two"))


def test_nothing_is_said_where_everything_fits(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(small_system.config(tmp_path / "run"))
    assert "data." not in capsys.readouterr().out


def test_questions_that_bm25_finds_nothing_for(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare(small_system.config(tmp_path / "run"))
    with pytest.raises(OpenBookError, match=r"BM25 finds no passage for any question \(data\."):
        check_bm25(BM25Index(["völlig anderes", "noch etwas"]), prepared.questions.questions)
    first = prepared.questions.questions["train"][0].question
    capsys.readouterr()
    check_bm25(BM25Index([first, "etwas"]), {"train": prepared.questions.questions["train"]})


def test_bm25_finds_text_without_spaces() -> None:
    index = BM25Index(["东山上长的是北树", "海谷里长的是东树", "an oak in the valley"])
    assert index.search(["东山上长的是什么树", "海谷里是什么", "which oak"], 1)[0].tolist() == [[0], [1], [2]]


def test_one_passage_per_question_teaches_no_retriever(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(small_system.config(tmp_path / "run", "retriever.n_docs=1"))
    assert "the encoders learn nothing" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(OpenBookError, match=r"the loss is 0 and nothing is learned \(trainer\.batch_size\)"):
        small_system.config(
            tmp_path / "run", "objective=dpr", "trainer.batch_size=1", "dpr.bm25_negatives=0", "generator.model=minilm"
        )


def test_passages_cut_for_a_prompt(
    small_system: SmallSystem, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prompt takes its part of a context: what is left for the passage is counted with it."""
    folder = causal_folder(tmp_path / "causal", small_data)
    words = [f"generator.model={folder}", "data.max_question_tokens=40"]
    parts = prepare(small_system.config(tmp_path / "run", *words, "data.max_context_tokens=90")).parts
    assert parts.prompt is not None
    capsys.readouterr()
    longest = int(parts.corpus.tokens("generator").lengths.max())
    most = 90 - parts.prompt.n_in_context - 16
    tight = 90 - max(0, most - longest) - 1
    prepare(small_system.config(tmp_path / "run", *words, f"data.max_context_tokens={tight}"))
    said = " ".join(capsys.readouterr().out.split())
    assert f"cut for the generator, which reads {tight - parts.prompt.n_in_context - 16} of at most {longest}" in said
    with pytest.raises(OpenBookError, match=r"no room for a passage .*\(data\.max_context_tokens\): got 49 tokens"):
        prepare(small_system.config(tmp_path / "run", *words, "data.max_context_tokens=49"))


def test_a_prompt_for_a_generator_that_reads_none(small_system: SmallSystem, tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match=r"only a decoder-only generator reads a prompt of .*\(generator\.prompt\)"):
        prepare(small_system.config(tmp_path / "run", "generator.prompt=chat"))


def test_data_counts_what_stands_twice_and_what_leaks(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One passage again as it is, one in capitals, one with a word more; two test questions from training; an answer
    that no passage has. Dropped, the questions' ids are those of the passages that are kept."""
    rows = [json.loads(line) for line in (small_system.data / "passages.jsonl").read_text().splitlines()]
    again = [rows[0] | {"id": "0 again"}, rows[1] | {"id": "1 again", "text": rows[1]["text"].upper()}]
    again.append(rows[2] | {"id": "2 again", "text": rows[2]["text"] + " nu"})
    corpus = tmp_path / "p.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in again + rows), encoding="utf-8")
    asked = [json.loads(line)["question"] for line in (small_system.data / "train.jsonl").read_text().splitlines()]
    test = rewritten(
        small_system.data / "test.jsonl",
        tmp_path / "t.jsonl",
        question=lambda row, n: asked[n].upper().replace("?", " ?") if n in (1, 3) else row["question"],
        answers=lambda row, n: ["omega psi"] if n == 0 else row["answers"],
    )
    words = small_system.words(tmp_path / "run", f"data.corpus={corpus}", f"data.test={test}")
    assert main(["data", *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "data.test: 2 of 7 questions stand in data.train too" in said
    content = json.loads((tmp_path / "run" / "data.json").read_text())
    counts = {(one["where"], one["what"]): (one["n"], one["of"]) for one in content["counts"]}
    of_corpus = [pair for (where, _), pair in counts.items() if where == "data.corpus"]
    assert of_corpus[:3] == [(1, 40), (2, 40), (1, 40)]
    assert counts["data.test", "questions stand in data.train too"] == (2, 7)
    assert counts["data.validation", "questions stand in data.train too"] == (0, 7)
    assert counts["data.test", "questions have no answer in any passage"] == (1, 7)
    assert counts["data.train", "positive ids are not in the corpus"] == (0, 23)
    assert content["passages"] == 40 and content["questions"] == {"train": 23, "validation": 7, "test": 7}

    for how, n in (("drop", 38), ("drop_near", 37)):
        prepared = prepare(small_system.config(tmp_path / how, *words[1:], f"data.duplicates={how}"))
        assert prepared.parts.corpus.n_passages == n
        ids = [one for example in prepared.questions.questions["train"] for one in example.positive_ids]
        assert ids[:2] == ["0 again", "1 again"] and ids[2] == ("2 again" if how == "drop_near" else "p2")
        assert all(prepared.parts.corpus.row_of(one) is not None for one in ids)
        assert f"{40 - n} passages that say what an earlier one says are left out" in capsys.readouterr().out


def test_ids_of_documents_stand_for_their_passages(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file a passage: the questions name the file, whose two halves are passages of their own."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for line in (small_system.data / "passages.jsonl").read_text().splitlines():
        row = json.loads(line)
        (folder / f"{row['id']}.txt").write_text(row["text"])

    def documents(row: dict[str, Any], n: int) -> list[str]:
        return [f"{one}.txt" for one in row["positive_ids"]]

    files = {
        split: rewritten(small_system.data / f"{split}.jsonl", tmp_path / f"{split}.jsonl", positive_ids=documents)
        for split in ("train", "test")
    }
    words = [f"data.{split}={path}" for split, path in files.items()]
    prepared = prepare(
        small_system.config(tmp_path / "run", f"data.corpus={folder}", *words, "data.split.size=4", "data.validation=")
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "documents: all of their passages count" in said and "those with an answer of their passages count" in said
    assert "positive ids are not in the corpus" not in said
    corpus = prepared.parts.corpus
    for split, file in prepared.questions.questions.items():
        for example in file:
            texts = [corpus.passage(corpus.row_of(one)).text for one in example.positive_ids]  # type: ignore[arg-type]
            held = [has_answer(text, example.answers) for text in texts]
            assert any(held) and (len(texts) > 1 if split == "test" else all(held)), (split, texts)
