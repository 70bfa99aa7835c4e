"""What files of the field hold beside what their formats say: titles alone, splits in one folder, numpy's lists."""

import json
from pathlib import Path

import pytest

from openbook.batch import Passage
from openbook.data.readers.checked_lines import MAX_LINE_BYTES, BadLineError
from openbook.data.readers.convert import convert_passages, convert_questions
from openbook.data.readers.detect import passages_of, questions_of
from openbook.data.readers.fields import EMPTY, Asked, answers_of
from openbook.data.readers.formats import check_passages, read_passages
from openbook.data.readers.passages.splitter import Splitter
from openbook.errors import OpenBookError, UnknownFormatError
from tests.data.readers import samples

WORDS = Splitter("words", 100, 0)


def lines(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_document_that_is_a_title_alone_is_a_passage(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "corpus.jsonl", {"_id": "a", "title": "A title only", "text": ""}, {"_id": "b", "text": "b"}
    )
    read = [one for _, one in passages_of(str(path), {}, WORDS).found]
    assert [(one.id, one.title, one.text) for one in read] == [("a", "", "A title only"), ("b", "", "b")]
    nothing = lines(tmp_path / "empty.jsonl", {"_id": "a", "title": "", "text": " "})
    assert isinstance(next(one for _, one in passages_of(str(nothing), {}, WORDS).found), BadLineError)


@pytest.mark.parametrize("dev", ["dev", "validation", "val"])
def test_of_a_folder_with_several_splits_only_one_is_read(tmp_path: Path, dev: str) -> None:
    for split in ("train-0", "train-1", dev, "test"):
        lines(tmp_path / f"{split}.jsonl", {"question": f"{split}?", "answer": ["a"]})
    asked = {}
    for split in ("train", "validation", "test"):
        reading = questions_of(str(tmp_path), split, {})
        asked[split] = [one.example.question for _, one in reading.found]
        assert sum(reading.notes.values()) == 4 - len(asked[split])
    assert asked == {"train": ["train-0?", "train-1?"], "validation": [f"{dev}?"], "test": ["test?"]}
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(OpenBookError, match=r"other splits only.*expected test\*"):
        questions_of(str(tmp_path), "test", {})


def test_a_folder_of_parts_is_read_whole(tmp_path: Path) -> None:
    for part in ("part-0", "part-1"):
        lines(tmp_path / f"{part}.jsonl", {"question": f"{part}?", "answer": ["a"]})
    assert [one.example.question for _, one in questions_of(str(tmp_path), "test", {}).found] == ["part-0?", "part-1?"]


@pytest.mark.parametrize(
    ("written", "answers"),
    [
        ("['14 December 1972 UTC' 'December 1972']", ("14 December 1972 UTC", "December 1972")),
        ("['one'\n \"two's\"]", ("one", "two's")),
        ("['a', 'b']", ("a", "b")),
        ('["a", "b"]', ("a", "b")),
        ("[sic] 'a' 'b'", ("[sic] 'a' 'b'",)),
        ("[1, 2.5]", ("1", "2.5")),
    ],
)
def test_lists_as_python_json_and_numpy_write_them(written: str, answers: tuple[str, ...]) -> None:
    assert answers_of(written, "answers") == answers


def test_a_list_with_some_commas_missing_is_refused() -> None:
    with pytest.raises(BadLineError, match="commas are missing"):
        answers_of("['a', 'b' 'c']", "answers")


def test_of_hard_and_easy_negatives_the_hard_ones_are_named(tmp_path: Path) -> None:
    def context(name: str) -> dict[str, str]:
        return {"title": name, "text": f"text of {name}", "passage_id": name}

    record = {
        "question": "q?",
        "answers": ["a"],
        "positive_ctxs": [context("p")],
        "negative_ctxs": [context("e1"), context("e2")],
        "hard_negative_ctxs": [context("h1")],
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps([record, record | {"question": "r?", "hard_negative_ctxs": []}]))
    first, second = (one for _, one in questions_of(str(path), "train", {}).found)
    assert first.example.negative_ids == ("h1",) and second.example.negative_ids == ("e1", "e2")
    assert {one.id for one in first.passages} == {"p", "h1", "e1", "e2"}


def test_titles_that_are_numbers_are_titles(tmp_path: Path) -> None:
    (path := tmp_path / "my_knowledge.tsv").write_text("Aaron\tof Aaron\n1984\ta novel\n1984\ta film\n")
    read = [one for _, one in passages_of(str(path), {}, WORDS).found]
    assert [(one.title, one.text) for one in read] == [("Aaron", "of Aaron"), ("1984", "a novel"), ("1984", "a film")]
    assert len({one.id for one in read}) == 3
    path.write_text("1\tone\n2\ttwo\n")
    assert [(one.id, one.text) for _, one in passages_of(str(path), {}, WORDS).found] == [("1", "one"), ("2", "two")]


def asked_of(path: Path) -> list[Asked]:
    found = [one for _, one in questions_of(str(path), "train", {}).found]
    assert all(isinstance(one, Asked) for one in found), found
    return found


def test_paragraphs_without_text_are_left_out_and_counted(tmp_path: Path) -> None:
    """HotpotQA has titles with an empty list of sentences, MuSiQue and MS MARCO empty texts."""
    hotpot = {
        "_id": "h",
        "question": "q?",
        "answer": "a",
        "context": [["Oak", ["An oak."]], ["Fir", []], ["Elm", [" "]]],
        "supporting_facts": [["Oak", 0], ["Fir", 0]],
    }
    musique = {
        "id": "2hop__m",
        "question": "q?",
        "answer": "a",
        "answerable": True,
        "paragraphs": [
            {"idx": 0, "title": "Oak", "paragraph_text": "An oak.", "is_supporting": True},
            {"idx": 1, "title": "Fir", "paragraph_text": "", "is_supporting": True},
            {"idx": 2, "title": "Elm", "paragraph_text": " ", "is_supporting": False},
        ],
    }
    marco = {
        "query_id": 7,
        "query": "q?",
        "answers": ["a"],
        "passages": [
            {"is_selected": 1, "passage_text": "An oak."},
            {"is_selected": 1, "passage_text": ""},
            {"is_selected": 0, "passage_text": " "},
        ],
    }
    for name, record in (("hotpot", hotpot), ("musique", musique), ("marco", marco)):
        (one,) = asked_of(lines(tmp_path / f"{name}.jsonl", record))
        assert [passage.text for passage in one.passages] == ["An oak."], name
        assert one.example.positive_ids == (one.passages[0].id,), name
        assert one.notes.count(EMPTY) == 2, name


def test_kilt_provenance_with_an_open_end_is_one_paragraph(tmp_path: Path) -> None:
    place = {"wikipedia_id": "12", "start_paragraph_id": 3, "end_paragraph_id": None}
    record = {"id": "k", "input": "q?", "output": [{"answer": "a", "provenance": [place]}]}
    (one,) = asked_of(lines(tmp_path / "kilt.jsonl", record))
    assert one.example.positive_ids == ("12:3",)
    assert one.notes == ("places without their last paragraph are taken as one paragraph",)


@pytest.mark.parametrize("sign", [",", "\t"])
@pytest.mark.parametrize("header", ["Question Answer", "QUESTION ANSWER Topic Difficulty", "Question answer ID"])
def test_a_header_is_one_in_any_case(tmp_path: Path, sign: str, header: str) -> None:
    (path := tmp_path / "q.csv").write_text(f"{header}\nq?{' a' * header.count(' ')}\n".replace(" ", sign))
    reading = questions_of(str(path), "train", {})
    assert reading.format == "NQ-open"
    assert [(one.example.question, one.example.answers) for _, one in reading.found] == [("q?", ("a",))]


@pytest.mark.parametrize("sign", [",", "\t"])
def test_so_is_that_of_passages(tmp_path: Path, sign: str) -> None:
    path = tmp_path / "p.csv"
    for rows, passage in (
        ("ID,Text\n7,an oak\n", Passage("7", "", "an oak")),
        ("Title,Text\nOak,old\n", Passage("1", "Oak", "old")),
        ("Id,Text,Title,text\n7,no,Oak,old\n", Passage("1", "", "old")),  # one name twice: as they are written
    ):
        path.write_text(rows.replace(",", sign))
        assert [one for _, one in passages_of(str(path), {}, WORDS).found] == [passage]
    columns = {"text": "Text", "title": "Name"}
    path.write_text("Name,Text\nOak,old\n".replace(",", sign))  # in the case that the user names it
    assert [(one.title, one.text) for _, one in passages_of(str(path), columns, WORDS).found] == [("Oak", "old")]


@pytest.mark.parametrize(
    "rows", ["Frage,Antwort\nq?,a\n", "1,factoid,q?,a\n", "1984,George Orwell\n", "a,b,c\nd,e,f\n"]
)
def test_columns_between_commas_that_nothing_names_are_not_guessed(tmp_path: Path, rows: str) -> None:
    (path := tmp_path / "t.csv").write_text(rows)
    with pytest.raises(UnknownFormatError, match=r"question format is not known.*a row of.*Set data\.columns"):
        questions_of(str(path), "train", {})
    with pytest.raises(UnknownFormatError, match=r"passage format is not known.*a row of.*text:NAME"):
        passages_of(str(path), {}, WORDS)


def test_a_text_between_tabs_that_is_a_columns_name_is_a_text(tmp_path: Path) -> None:
    (path := tmp_path / "my_knowledge.tsv").write_text(f"Label\tA label is {'very ' * 10}old\nOak\tAn oak is old\n")
    assert [one.title for _, one in passages_of(str(path), {}, WORDS).found] == ["Label", "Oak"]


def test_paragraphs_without_a_question_are_passages(tmp_path: Path) -> None:
    whole = json.loads(samples.squad("v2.0"))
    whole["data"][0]["paragraphs"] += [{"context": "nobody asks .", "qas": []}, {"context": " ", "qas": []}]
    whole["data"].append({"title": "omega", "paragraphs": [{"context": "nor here ."}]})
    (path := tmp_path / "squad.json").write_text(json.dumps(whole))
    texts = [text for _, text in list(samples.PASSAGES.values())[:3]]
    expected = {
        ("alpha", "nobody asks ."),
        ("omega", "nor here ."),
        *zip(("alpha", "gamma", "kappa"), texts, strict=True),
    }
    corpus = convert_passages(str(path), tmp_path / "cache", columns={}, splitter=WORDS).passages
    for carried in (True, False):
        made = convert_questions(
            str(path), tmp_path / "cache", split="train", columns={}, answered=False, carried=carried
        )
        assert made.report["questions"] == 3 and (made.passages is not None) is carried
        if carried:
            assert made.passages is not None and corpus is not None
            assert made.passages.read_bytes() == corpus.read_bytes()
            assert {(one.title, one.text) for one in read_passages(made.passages)} == expected


def test_a_paragraph_is_positive_where_it_answers(tmp_path: Path) -> None:
    (path := tmp_path / "squad.json").write_text(samples.squad("v2.0"))
    assert [len(one.example.positive_ids) for one in asked_of(path)] == [1, 1, 0]


def test_what_would_be_no_line_is_refused_where_it_comes_from(tmp_path: Path) -> None:
    """At the limit a line is read again; over it the user's own file is named, not the one in the cache."""
    title, text = "t", "é" * 490_000
    at_limit = MAX_LINE_BYTES - len(json.dumps({"id": "1", "title": title, "text": text}, ensure_ascii=False).encode())
    records = [{"id": "1", "title": title, "contents": f"{title}\n{text}{'x' * n}"} for n in (at_limit, at_limit + 1)]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(records[:1]))
    made = convert_passages(str(path), tmp_path / "cache", columns={}, splitter=WORDS)
    assert made.passages is not None and check_passages(made.passages) == 1
    path.write_text(json.dumps(records[1:]))
    with pytest.raises(OpenBookError, match=r"a passage is too long \(.*p\.json:1\): got 1,000,001 bytes.*1 records"):
        convert_passages(str(path), tmp_path / "cache", columns={}, splitter=WORDS)
    path.write_text(json.dumps([{"question": "q" * 1_100_000, "answer": ["a"]}]))
    with pytest.raises(OpenBookError, match=r"a question is too long \(.*p\.json:1\)"):
        convert_questions(str(path), tmp_path / "cache", split="train", columns={}, answered=True)


@pytest.mark.parametrize("record", ['{"question": "q?", "answer": ["a"], "n": %s}', '[{"question": "q?", "n": %s}]'])
def test_a_number_of_too_many_digits(tmp_path: Path, record: str) -> None:
    (path := tmp_path / "q.json").write_text(record % ("1" * 5000) + "\n")
    with pytest.raises(OpenBookError, match=r"malformed JSON \(.*q\.json:1\): got a number of thousands of digits"):
        convert_questions(str(path), tmp_path / "cache", split="train", columns={}, answered=True)
