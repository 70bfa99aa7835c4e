"""Readers: good files come in whole, and each kind of bad input gives its one message."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from openbook.batch import Passage
from openbook.data.readers.formats import check_passages, index_questions, parse_example, read_passages
from openbook.errors import OpenBookError

TSV = (
    "id\ttext\ttitle\n"
    '1\t"Aaron ( or ; ""Ahärôn"") is a prophet"\tAaron\n'
    '2\tplain text\t"""Heroes"" (album)"\n'
    '3\t"two\tcolumns in one"\tTabs\n'
)
PASSAGES = [
    Passage("1", "Aaron", 'Aaron ( or ; "Ahärôn") is a prophet'),
    Passage("2", '"Heroes" (album)', "plain text"),
    Passage("3", "Tabs", "two\tcolumns in one"),
]
JSONL = "".join(json.dumps({"id": p.id, "title": p.title, "text": p.text}) + "\n" for p in PASSAGES)
GOOD = '{"id": "%s", "title": "t", "text": "fine"}\n'
QUESTION = '{"question": "q", "answers": ["a"]}\n'


def written(tmp_path: Path, content: str | bytes, name: str = "p.jsonl") -> Path:
    path = tmp_path / name
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_jsonl_passages(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, JSONL, name)
    assert list(read_passages(path)) == PASSAGES
    assert check_passages(path) == 3


@pytest.mark.parametrize("name", ["psgs_w100.tsv", "psgs_w100.tsv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_dpr_passages(tmp_path: Path, name: str, end: str) -> None:
    path = written(tmp_path, TSV.replace("\n", end), name)
    assert list(read_passages(path)) == PASSAGES
    assert check_passages(path) == 3


def test_a_number_as_id_and_blank_lines(tmp_path: Path) -> None:
    path = written(tmp_path, '\n{"id": 17, "title": "", "text": "x", "extra": null}\n\n')
    assert list(read_passages(path)) == [Passage("17", "", "x")]


BAD_PASSAGES: dict[str, tuple[str | bytes, str]] = {
    "malformed": (
        GOOD % 1 + '{"id": 2, "title" "t"}\n' + GOOD % 3 + "{\n",
        r"malformed JSON \(.*p\.jsonl:2\): got Expecting ':' delimiter at position 19, near .*, expected one JSON "
        r"object per line\. 2 of 4 lines have this fault\.",
    ),
    "list": ("[1]\n", r"a line is not a JSON object \(.*:1\): got list, expected \{\.\.\.\} on each line"),
    "utf-8 mark": (
        b"\xef\xbb\xbf" + GOOD.encode(),
        r"not plain UTF-8 \(.*:1\): got the bytes ef bb bf at the start, as UTF-8 with a byte order mark.*tail -c \+4",
    ),
    "utf-16": (GOOD.encode("utf-16"), r"the bytes ff fe at the start, as UTF-16 .*iconv -f UTF-16 -t UTF-8 .*p\.jsonl"),
    "utf-16 without mark": (GOOD.encode("utf-16-le"), r"holds NUL characters.*likely UTF-16: convert it with iconv"),
    "latin-1": (
        GOOD.encode() % b"1" + b'{"id": "2", "title": "", "text": "M\xfcnchen"}\n',
        r"not UTF-8 \(.*:2\): got byte 0xfc at position 36 of the line.*likely Windows-1252.*iconv -f WINDOWS-1252",
    ),
    "empty file": ("", r"the corpus is empty \(.*\): got no passage, expected at least n_docs passages"),
    "blank file": ("\n\n", r"the corpus is empty"),
    "duplicates": (
        GOOD % 1 + GOOD % 2 + GOOD % 1 + GOOD % 2 + GOOD % 1,
        r"an id comes twice \(.*:3\): got the id '1' of line 1 again on line 3, expected each id once\. 3 lines repeat",
    ),
    "empty text": (GOOD % 1 + '{"id": "2", "title": "t", "text": "  "}\n', r"`text` is empty \(.*:2\): expected some"),
    "nul": (
        b'{"id": "1", "title": "t", "text": "a\0b"}\n',
        r"NUL characters \(.*:1\): got 1 of them, the first at byte",
    ),
    "escaped nul": ('{"id": "1", "title": "t", "text": "a\\u0000b"}\n', r"`text` holds NUL characters \(.*:1\)"),
    "half a pair": ('{"id": "1", "title": "t", "text": "a\\ud800b"}\n', r"`text` holds half a surrogate pair"),
    "long line": (
        GOOD % 1 + '{"id": "2", "title": "t", "text": "' + "x" * 2_100_000 + '"}\n' + GOOD % 3 + "{\n",
        r"(?s)a line is too long \(.*:2\): got more than 1,000,000 bytes.* 1 of 4 .*malformed JSON \(.*:4\)",
    ),
    "no text": (
        '{"id": "1", "title": "t", "contents": "x"}\n',
        r"no `text`.*'contents'.*Rename `contents` to `text`\.",
    ),
    "contents alone": (
        '{"id": "1", "contents": "x"}\n',
        r"no `title`.*Rename `contents` to `text`, and add a `title`, which may be empty\.",
    ),
    "no title": ('{"id": "1", "text": "x"}\n', r"no `title` .*`title` may be an empty string"),
    "typing": ('{"id": 1.5, "title": "t", "text": "x"}\n', r"`id` is not text \(.*:1\): got 1\.5, expected a string"),
}


@pytest.mark.parametrize("fault", BAD_PASSAGES)
def test_bad_passages(tmp_path: Path, fault: str) -> None:
    content, message = BAD_PASSAGES[fault]
    with pytest.raises(OpenBookError, match=message):
        check_passages(written(tmp_path, content))


def test_all_kinds_of_faults_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD % 1 + "{\n" + '{"id": "2", "title": "", "text": ""}\n' + "}\n")
    with pytest.raises(
        OpenBookError, match=r"(?s)2 problems.*1\. malformed JSON.*:2\).*2 of 4.*2\. `text` is empty.*:3"
    ):
        check_passages(path)
    with pytest.raises(OpenBookError, match=r"malformed JSON \(.*:2\)"):
        list(read_passages(path))


BAD_TSV: dict[str, tuple[str | bytes, str]] = {
    "header": (
        "id\ttitle\ttext\n1\ta\tb\n",
        r"the header is not DPR's \(.*:1\): got 'id\\ttitle\\ttext', expected 'id\\tte",
    ),
    "columns": ("id\ttext\ttitle\n1\ta\tb\n2\ta\n3\tb\n", r"wrong number of columns \(.*:3\): got 2, .* 2 of 3 lines"),
    "open quote": ('id\ttext\ttitle\n1\t"a\tb\n2\t"a ""b"" c"\tb\n3\ta\tb\n', r"a quotation mark"),
    "bytes": (b"id\ttext\ttitle\n1\tM\xfcnchen\tb\n2\t\tb\n", r"(?s)not UTF-8 \(.*:2\).*`text` is empty \(.*:3\)"),
    "only the header": ("id\ttext\ttitle\n", r"the corpus is empty"),
}


@pytest.mark.parametrize("fault", BAD_TSV)
def test_bad_tsv(tmp_path: Path, fault: str) -> None:
    content, message = BAD_TSV[fault]
    with pytest.raises(OpenBookError, match=message):
        check_passages(written(tmp_path, content, "p.tsv"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match=r"there is no such file \(.*none\.jsonl\)"):
        check_passages(tmp_path / "none.jsonl")
    packed = written(tmp_path, JSONL * 99, "p.jsonl.gz")
    packed.write_bytes(packed.read_bytes()[:60])
    with pytest.raises(OpenBookError, match=r"the gzip file is damaged \(.*p\.jsonl\.gz\).*Fetch or pack it again"):
        check_passages(packed)
    with pytest.raises(OpenBookError, match=r"a packed file has no lines to read singly .*got gzip.*Unpack it first"):
        index_questions(written(tmp_path, QUESTION, "q.jsonl.gz"))


def test_names_do_not_matter(tmp_path: Path) -> None:
    assert list(read_passages(written(tmp_path, JSONL, "p.csv"))) == PASSAGES
    assert list(read_passages(written(tmp_path, TSV, "p"))) == PASSAGES
    assert len(index_questions(written(tmp_path, QUESTION, "q.json"))) == 1


def test_questions_without_an_answer_where_none_is_needed(tmp_path: Path) -> None:
    path = written(tmp_path, QUESTION + '{"question": "r", "negative_ids": ["7"]}\n', "q.jsonl")
    with pytest.raises(OpenBookError, match=r"no `answers` \(.*:2\)"):
        index_questions(path)
    assert len(index_questions(path, unanswered=True)) == 2
    example = parse_example(path.read_bytes().splitlines()[1], "q.jsonl:2", "2")
    assert (example.answers, example.negative_ids) == ((), ("7",))


def test_grades_go_with_positive_ids(tmp_path: Path) -> None:
    line = '{"question": "q", "answers": ["a"], "positive_ids": ["1", "2"], "grades": %s}'
    assert parse_example((line % "[2, 1]").encode(), "q:1", "1").grades == (2, 1)
    for grades in ("[1]", "[0, 1]", '["1", "2"]', "[1.5, 1]", "5", "0", '{"1": 2, "2": 1}', '"21"'):
        with pytest.raises(OpenBookError, match=r"`grades` do not go with `positive_ids`"):
            parse_example((line % grades).encode(), "q:1", "1")


BAD_QUESTIONS = {
    "nq-open": (
        '{"question": "q", "answer": ["a"]}\n',
        r"no `answers` \(.*q\.jsonl:1\): got the keys 'answer', 'question', expected `question` \(a string\) and "
        r"`answers` \(a list of strings, at least one\) on each line\. .*Rename `answer` to `answers`\. "
        r"Or set data\.columns=answers:answer",
    ),
    "objects": (
        '{"question": "q", "output": [{"answer": "a"}]}\n',
        r"no `answers`.*`output` holds objects: write what counts of them as `answers`, a list of strings\.",
    ),
    "misspelt": ('{"qestion": "q", "answers": ["a"]}\n', r"no `question`.*Rename `qestion` to `question`\."),
    "none": (QUESTION + '{"question": "q", "answers": []}\n', r"a question has no answer \(.*:2\): .*at least one"),
    "empty": (QUESTION + '{"question": "q", "answers": ["a", " "]}\n', r"`answers` is empty \(.*:2\)"),
    "text": (
        '{"question": "q", "answers": "a"}\n',
        r"`answers` is not a list \(.*:1\): got 'a', expected a list of str",
    ),
    "no file": ("", r"the question file is empty"),
    "ids": (
        '{"id": "7", "question": "q", "answers": ["a"]}\n' * 2,
        r"an id comes twice \(.*:2\): got the id '7' of line 1 again on line 2",
    ),
}


@pytest.mark.parametrize("fault", BAD_QUESTIONS)
def test_bad_questions(tmp_path: Path, fault: str) -> None:
    content, message = BAD_QUESTIONS[fault]
    with pytest.raises(OpenBookError, match=message):
        index_questions(written(tmp_path, content, "q.jsonl"))


def test_index_finds_lines_after_a_skipped_blank(tmp_path: Path) -> None:
    path = written(tmp_path, QUESTION + "\r\n" + QUESTION.replace('"q"', '"ü"'), "q.jsonl")
    places = index_questions(path)
    assert places.tolist() == [[0, 1], [len(QUESTION) + 2, 3]]
    assert path.read_bytes()[places[1, 0] :].decode() == QUESTION.replace('"q"', '"ü"')


def test_one_line_alone_names_its_place() -> None:
    assert parse_example(QUESTION.encode(), "q.jsonl:5", "5").id == "5"
    with pytest.raises(OpenBookError, match=r"malformed JSON \(q\.jsonl:5\)"):
        parse_example(b"{", "q.jsonl:5", "5")


def test_marks_are_text_where_the_file_does_not_quote(tmp_path: Path) -> None:
    """A text that begins with a quotation mark, and a later one that ends with one, are two passages."""
    lines = ["id\ttext\ttitle", '1\t"Tall trees\tOak', "2\ta fir\tFir", '3\tsaid the poet"\tLarch', '4\t"whole"\tYew']
    path = written(tmp_path, "\n".join(lines), "p.tsv")
    assert [passage.text for passage in read_passages(path)] == ['"Tall trees', "a fir", 'said the poet"', '"whole"']
    assert check_passages(path) == 4


def test_quoted_fields_hold_marks_tabs_and_line_breaks(tmp_path: Path) -> None:
    texts = ['"Tall" trees', "a\ttab", "two\nlines", 'ends with "marks"', "plain", '"', "a\u2028b"]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows(
        [["id", "text", "title"], *([str(n), text, "t"] for n, text in enumerate(texts))]
    )
    path = written(tmp_path, buffer.getvalue(), "p.tsv")
    assert [passage.text for passage in read_passages(path)] == texts
    assert check_passages(path) == len(texts)


@pytest.mark.parametrize("seed", range(20))
def test_what_csv_writes_is_read_as_csv_reads_it(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    texts = ["".join(random.choice(list('"ab\t \n,'), random.integers(1, 9))) + "x" for _ in range(30)]
    texts[0] = 'certainly "quoted", with a\ttab'
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows(
        [["id", "text", "title"], *([str(n), text, text[::-1]] for n, text in enumerate(texts))]
    )
    found = list(read_passages(written(tmp_path, buffer.getvalue(), "p.tsv")))
    # a blank line inside a quoted field is passed over as all blank lines are
    squeezed = [re.sub(r"\n[\t ]*(?=\n)", "", text) for text in texts]
    assert [re.sub(r"\n[\t ]*(?=\n)", "", passage.text) for passage in found] == squeezed


def test_a_long_field_and_a_lone_return_are_read_as_in_jsonl(tmp_path: Path) -> None:
    text = "oak tree " * 22000
    path = written(tmp_path, f'id\ttext\ttitle\n1\t{text}\tt\n2\tan oak\ra birch\t"q"\n', "p.tsv")
    assert [passage.text for passage in read_passages(path)] == [text, "an oak\ra birch"]


def test_a_reward_is_a_finite_number() -> None:
    line = '{"question": "q", "answers": ["a"], "reward": %s}'
    assert parse_example((line % "-2").encode(), "q:1", "1").reward == -2
    for reward in ("NaN", "Infinity", "1" + "0" * 400, '"1"', "true"):
        with pytest.raises(OpenBookError, match="a reward is no number"):
            parse_example((line % reward).encode(), "q:1", "1")


def test_a_line_with_a_number_of_too_many_digits(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD % 1 + '{"id": %s, "title": "", "text": "x"}\n' % ("1" * 5000))
    with pytest.raises(OpenBookError, match=r"malformed JSON \(.*p\.jsonl:2\): got a number of thousands of digits"):
        check_passages(path)
