"""Every format: what is read of it, gold ids and hard negatives among it, and what is said of broken files."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openbook.batch import Example, Passage
from openbook.data.question_file import QuestionFile
from openbook.data.readers.columns import PASSAGE, QUESTION
from openbook.data.readers.compressed import packing
from openbook.data.readers.convert import Converted, convert_passages, convert_questions
from openbook.data.readers.detect import is_native
from openbook.data.readers.formats import read_passages
from openbook.data.readers.passages.splitter import Splitter
from openbook.errors import OpenBookError
from tests.data.readers import samples
from tests.data.readers.samples import (
    ASKED,
    GOLD,
    PASSAGE_FILES,
    PASSAGES,
    QUESTION_FILES,
    RANKING_FILES,
    WRONG,
    written,
)

CARRY = {"DPR training files", "Tevatron", "SQuAD", "SQuAD 2.0", "HotpotQA and 2WikiMultihopQA", "2WikiMultihopQA"}
CARRY |= {"MuSiQue", "MS MARCO question answering", "MS MARCO, the release's columns"}


def questions(path: Path, cache: Path, answered: bool = False, **more: Any) -> tuple[list[Example], Converted]:
    options = {"split": "train", "columns": {}} | more
    made = convert_questions(str(path), cache, answered=answered, **options)
    assert made.questions is not None
    return list(QuestionFile(made.questions, unanswered=True)), made


def passages(path: Path, cache: Path, splitter: Splitter = Splitter(), **more: Any) -> list[Passage]:  # noqa: B008
    made = convert_passages(str(path), cache, columns=more.pop("columns", {}), splitter=splitter)
    assert made.passages is not None and made.questions is None
    return list(read_passages(made.passages))


@pytest.mark.parametrize("name", QUESTION_FILES)
def test_questions(name: str, tmp_path: Path) -> None:
    found, made = questions(written(tmp_path, QUESTION_FILES[name]()), tmp_path / "cache")
    if name == "FEVER":
        assert [(one.question, one.answers) for one in found] == [
            ("alpha is a country", ("SUPPORTS",)),
            ("x", ("NOT ENOUGH INFO",)),
        ]
        assert [one.positive_ids for one in found] == [("alpha", "gamma_-LRB-state-RRB-"), ()]
        return
    answers = {
        "CuratedTREC": lambda own: ("|".join(own),),
        "SQuAD": lambda own: (own[0],),
        "SQuAD 2.0": lambda own: (own[0],),
        "HotpotQA and 2WikiMultihopQA": lambda own: (own[0],),
        "2WikiMultihopQA": lambda own: (own[0],),
        "MS MARCO question answering": lambda own: (own[0],),
        "MS MARCO, the release's columns": lambda own: (own[0],),
    }.get(name, tuple)
    assert [(one.question, one.answers) for one in found[:2]] == [(q, answers(a)) for q, a in ASKED.values()]
    assert (made.passages is not None) == (name in CARRY)
    if name in CARRY:
        assert made.passages is not None
        texts = {one.id: one.text for one in read_passages(made.passages)}
        for key, example in zip(ASKED, found, strict=False):
            assert [texts[one].startswith(PASSAGES[GOLD[key]][1]) for one in example.positive_ids] == [True]
            if not name.startswith("SQuAD"):
                assert [texts[one].startswith(PASSAGES[WRONG[key]][1]) for one in example.negative_ids] == [True]
    if name == "KILT":
        assert [one.positive_ids for one in found] == [("1:1",), ("2:1",)]
    if name in ("SQuAD 2.0", "MS MARCO question answering", "MS MARCO, the release's columns"):
        assert found[2].answers == () and made.report["notes"]["questions have no answer"] == 1
        kept, made = questions(tmp_path / made_name(QUESTION_FILES[name]()), tmp_path / "cache", answered=True)
        assert len(kept) == 2 and made.report["notes"]["questions without an answer are left out"] == 1


def made_name(files: Any) -> str:
    return next(iter(files))


@pytest.mark.parametrize("name", RANKING_FILES)
def test_queries_with_judgements(name: str, tmp_path: Path) -> None:
    files = RANKING_FILES[name]()
    written(tmp_path, files)
    paths = [tmp_path] if name == "BEIR" else [tmp_path / "queries.train.tsv", tmp_path / "qrels.train.tsv"]
    for path in paths:
        found, _ = questions(path, tmp_path / "cache")
        assert [one.question for one in found] == [question for question, _ in ASKED.values()]
        assert [one.positive_ids for one in found] == [("1",), ("2",)]
        assert not any(one.answers for one in found)
    if name == "BEIR":
        assert (found[0].negative_ids, found[0].grades, found[1].grades) == (("3",), (2,), ())
        assert questions(tmp_path / "qrels" / "test.tsv", tmp_path / "cache")[0] == found
        with pytest.raises(OpenBookError, match=r"no judgements for validation .*got test\.tsv, train\.tsv.*Name one"):
            questions(tmp_path, tmp_path / "cache", split="validation")
    with pytest.raises(OpenBookError, match=r"none of 2 questions has an answer .*objective=dpr"):
        questions(paths[0], tmp_path / "cache", answered=True)
    corpus = passages(tmp_path if name == "BEIR" else tmp_path / "collection.tsv", tmp_path / "cache")
    assert [(one.id, one.text) for one in corpus] == [(key, text) for key, (_, text) in PASSAGES.items()]


@pytest.mark.parametrize("name", PASSAGE_FILES)
def test_passages(name: str, tmp_path: Path) -> None:
    found = passages(written(tmp_path, PASSAGE_FILES[name]()), tmp_path / "cache")
    texts = [one.text for one in found]
    if name == "KILT knowledge source":
        assert [one.id for one in found] == [f"{page}:{n}" for page in PASSAGES for n in (1, 3)]
        assert found[1].title == "alpha > Rivers" and texts[0] == PASSAGES["1"][1]
    elif name == "FEVER Wikipedia pages":
        assert [(one.id, one.title) for one in found][1] == ("gamma_-LRB-state-RRB-", "gamma (state)")
        assert len(found) == 3  # the page without a name has no text
    elif name == "text, Markdown and HTML":
        assert [(one.id, one.title) for one in found] == [
            ("a.txt#1", "a"),
            ("b.md#1", "gamma"),
            ("b.md#2", "gamma > rivers"),
            ("sub/c.html#1", "omega > king"),
        ]
        assert texts == [text for _, text in PASSAGES.values()]
    else:
        assert [(one.title, one.text) for one in found] == list(PASSAGES.values())
        if name != "transformers' RAG":
            assert [one.id for one in found] == list(PASSAGES)


@pytest.mark.parametrize(("pack", "kind"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_packed_files_are_known_by_their_content(pack: Any, kind: str, tmp_path: Path) -> None:
    raw = samples.dpr().encode()
    (tmp_path / "q.json").write_bytes(pack(raw))
    assert packing(tmp_path / "q.json") == kind
    assert len(questions(tmp_path / "q.json", tmp_path / "cache")[0]) == 2
    (tmp_path / "cut.json").write_bytes(pack(raw * 3)[:-9])
    with pytest.raises(OpenBookError, match=rf"the {kind} file is damaged .*Fetch or pack it again"):
        questions(tmp_path / "cut.json", tmp_path / "cache")


def test_zstd(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    raw = samples.dpr().encode()
    half = len(raw) // 2
    packed = zstandard.compress(raw[:half]) + zstandard.compress(raw[half:])  # two frames
    (tmp_path / "q.zst").write_bytes(packed)
    assert len(questions(tmp_path / "q.zst", tmp_path / "cache")[0]) == 2
    (tmp_path / "cut.zst").write_bytes(packed[:-9])
    with pytest.raises(OpenBookError, match="the zstd file is damaged"):
        questions(tmp_path / "cut.zst", tmp_path / "cache")


def test_parquet(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"question": [q for q, _ in ASKED.values()], "answer": [a for _, a in ASKED.values()]})
    parquet.write_table(table, tmp_path / "q.parquet")
    assert [one.answers for one in questions(tmp_path / "q.parquet", tmp_path / "c")[0]] == [
        tuple(a) for _, a in ASKED.values()
    ]
    (tmp_path / "q.parquet").write_bytes((tmp_path / "q.parquet").read_bytes()[:-9])
    with pytest.raises(OpenBookError, match="the Parquet file is damaged"):
        questions(tmp_path / "q.parquet", tmp_path / "c")


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number, (key, (title, text)) in enumerate(PASSAGES.items()):
        line = samples.lines({"id": key, "contents": f"{title}\n{text}"})
        (tmp_path / f"shards-{number}.jsonl").parent.mkdir(exist_ok=True)
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / f"{number}.jsonl").write_text(line)
    assert [one.id for one in passages(tmp_path / "p", tmp_path / "cache")] == list(PASSAGES)


def test_rows_of_the_hub_are_read_like_the_files(tmp_path: Path) -> None:
    """Hugging Face's data sets keep lists of objects as objects of lists."""
    title, text = PASSAGES["1"]
    question, answers = ASKED["q1"]
    squad = {
        "id": "q1",
        "title": title,
        "context": text,
        "question": question,
        "answers": {"text": answers, "answer_start": [1, 1]},
    }
    hotpot = {
        "id": "q1",
        "question": question,
        "answer": answers[0],
        "type": "bridge",
        "supporting_facts": {"title": [title], "sent_id": [0]},
        "context": {"title": [title, "kappa"], "sentences": [[text], ["a river ."]]},
    }
    trivia = {"question": question, "question_id": "q1", "answer": {"aliases": answers[1:], "value": answers[0]}}
    marco = {
        "query": question,
        "query_id": 5,
        "answers": answers,
        "passages": {"is_selected": [1, 0], "passage_text": [text, "a river ."], "url": ["u", "v"]},
    }
    for number, record in enumerate((squad, hotpot, trivia, marco)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(samples.lines(record))
        found, _ = questions(path, tmp_path / "cache")
        assert found[0].question == question and found[0].answers[0] == answers[0]
        assert len(found[0].positive_ids) == (0 if record is trivia else 1)


def test_other_keys_beside_our_own_say_nothing(tmp_path: Path) -> None:
    """A file that was read where it lies before other formats were known still is."""
    own = {"question": "q", "answers": ["a"], "context": "c", "answer": "b", "paragraphs": [], "positive_ids": ["1"]}
    (tmp_path / "q.jsonl").write_text(samples.lines(own | {"positive_ctxs": [{"title": "t"}]}, own))
    assert is_native(tmp_path / "q.jsonl", QUESTION, {})
    (tmp_path / "p.jsonl").write_text(
        samples.lines({"id": "1", "title": "t", "text": "x", "contents": "y", "lines": "z"})
    )
    assert is_native(tmp_path / "p.jsonl", PASSAGE, {})
    (tmp_path / "p.tsv").write_text(PASSAGE_FILES["DPR passages"]()["psgs_w100.tsv"])
    assert is_native(tmp_path / "p.tsv", PASSAGE, {})
    for ours, name, columns in ((QUESTION, "q.jsonl", {"question": "a"}), (PASSAGE, "p.jsonl", {"text": "a"})):
        assert not is_native(tmp_path / name, ours, columns)
        assert is_native(tmp_path / name, ours, {"id": "a"})


def test_columns_that_the_user_names(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"q.csv": samples.rows([["ask", "golds", "n"], ["why ?", "['a', 'b']", "7"], ["who ?", "c", "8"]], ",")},
    )
    columns = {"question": "ask", "answers": "golds", "id": "n"}
    found, _ = questions(path, tmp_path / "cache", columns=columns)
    assert [(one.id, one.question, one.answers) for one in found] == [
        ("7", "why ?", ("a", "b")),
        ("8", "who ?", ("c",)),
    ]
    with pytest.raises(OpenBookError, match=r"a record has no `gold` \(.*q\.csv:2\).*2 records"):
        questions(path, tmp_path / "cache", columns=columns | {"answers": "gold"})
    with pytest.raises(OpenBookError, match=r"format is not known .*q\.csv.*Set data\.columns=question:NAME"):
        questions(path, tmp_path / "cache")


def test_a_data_set_of_the_hub_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(OpenBookError, match=r"need the package datasets \(hf:squad\)\. pip install 'openbook\[hub\]'"):
        convert_questions("hf:squad", tmp_path, split="train", columns={}, answered=True)


def test_a_data_set_of_the_hub_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is datasets' own; its rows are read like a file's."""
    calls = []

    def load_dataset(path: str, name: str | None = None, *, split: str, streaming: bool) -> Any:
        calls.append((path, name, split, streaming))
        return iter([{"question": question, "answer": answers} for question, answers in ASKED.values()])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    for name in ("hf:nq_open", "hf:a/b@c:dev"):
        made = convert_questions(name, tmp_path, split="train", columns={}, answered=True)
        assert made.report["questions"] == 2
    assert calls == [("nq_open", None, "train", True), ("a/b", "c", "dev", True)]


def test_datasets_itself_streams_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    written(tmp_path / "d", {"train.jsonl": QUESTION_FILES["NQ-open"]()["q.jsonl"]})
    made = convert_questions(f"hf:{tmp_path / 'd'}", tmp_path / "c", split="train", columns={}, answered=True)
    assert made.report["format"] == "NQ-open" and made.report["questions"] == 2


BROKEN: dict[str, tuple[str, str]] = {
    "a cut list": (samples.dpr()[:-30], r"malformed JSON \(.*q:\d+\): got .*1 records have this fault"),
    "an unanswered alias": (
        json.dumps({"Data": [{"Question": "q", "Answer": 3}]}),
        r"`Answer` is not an object \(.*q:1\)",
    ),
    "text behind": (samples.dpr() + "[]", r"malformed JSON \(.*\): got more text behind the document"),
    "a context without text": (samples.dpr().replace('"text"', '"txt"', 1), r"a line has no `text` \(.*q:2\)"),
    "no paragraphs": (json.dumps({"data": [3]}), r"an article is not an object \(.*q:1\): got int"),
    "a paragraph of text": (
        samples.hotpot().replace('["the capital of alpha is beta .", " it is old ."]', '"a"'),
        r"no list of sentences",
    ),
    "provenance": (
        samples.kilt().replace('"start_paragraph_id": 1', '"start_paragraph_id": "x"', 1),
        r"names no paragraphs \(.*q:1\)",
    ),
    "evidence": (
        samples.fever().replace('[289914, 283015, "alpha", 0]', "[1]"),
        r"evidence is no list of four \(.*q:1\)",
    ),
    "a short row": ("1\tfactoid\twho ?\ta\n2\tfactoid\twhy ?\n", r"wrong number of columns \(.*q:2\): got 3"),
    "webquestions": (json.dumps([{"utterance": "q", "targetValue": "beta"}]), r"`targetValue` is no list of answers"),
    "a list of another kind": (
        samples.lines({"question": "q", "answer": ["a"]}, {"question": "r"}),
        r"no `answer` \(.*q:2\)",
    ),
    "an id twice": (
        samples.tevatron() * 2,
        r"an id comes twice \(.*q:3\): got the id of .*q:1 again.*2 records repeat",
    ),
    "nothing known": (
        samples.lines({"a": 1}),
        r"question format is not known .*got records with 'a', expected one of DPR",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_questions(fault: str, tmp_path: Path) -> None:
    content, message = BROKEN[fault]
    (tmp_path / "q").write_text(content)
    with pytest.raises(OpenBookError, match=message):
        questions(tmp_path / "q", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("converted-*"))


BROKEN_PASSAGES: dict[str, tuple[str, str]] = {
    "no contents": (samples.lines({"id": "1", "contents": "t\nx"}, {"id": "2"}), r"no `contents` \(.*p:2\)"),
    "two texts of one id": ("1\ta b\n2\tc\n1\td\n", r"an id comes twice \(.*p:3\): got the id of .*p:1 again"),
    "a row of one": ("1\ta b\n2\n", r"wrong number of columns \(.*p:2\)"),
    "not UTF-8": (
        "[\n" + '{"id": "1", "contents": "M\udcfcnchen"}]',
        r"the file is not UTF-8 \(.*p:\d\): got byte 0xfc",
    ),
    "questions without any": (samples.lines({"question": "q", "answer": ["a"]}), r"nothing is in it"),
}


@pytest.mark.parametrize("fault", BROKEN_PASSAGES)
def test_broken_passages(fault: str, tmp_path: Path) -> None:
    content, message = BROKEN_PASSAGES[fault]
    (tmp_path / "p").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(OpenBookError, match=message):
        passages(tmp_path / "p", tmp_path / "cache")


def test_a_second_reading_gives_the_same_bytes(tmp_path: Path) -> None:
    path = written(tmp_path, {"q.json": samples.hotpot()})
    one, two = (questions(path, tmp_path / cache)[1] for cache in ("a", "b"))
    for first, second in ((one.questions, two.questions), (one.passages, two.passages)):
        assert first is not None and second is not None and first.read_bytes() == second.read_bytes()
    assert questions(path, tmp_path / "a")[1].questions == one.questions
