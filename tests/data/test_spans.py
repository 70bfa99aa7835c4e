"""Masked spans of a corpus: what is masked, what is asked, and that the same corpus gives the same questions."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest

from openbook.batch import Passage
from openbook.data.question_file import QuestionFile
from openbook.data.spans.files import SPLITS, Limit, build_spans, mixed
from openbook.data.spans.masking import Span, SpanOptions, question_of, spans_of, spans_of_passage
from openbook.errors import OpenBookError

TEXT = (
    "In March 2003 the World Health Organization warned of SARS [12, 13]. The virus had reached 29 countries by then. "
    "About 8,098 people fell ill. Nobody knows why it went away. Dr. Carlo Urbani described it in Hanoi on 28 February."
)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("The treaty was signed on 4 July 1776 in Paris.", {("4 July 1776", "date"), ("Paris", "name")}),
        ("It fell by 12.5% to 3 million.", {("12.5%", "number"), ("3 million", "number")}),
        ("In the Republic of Korea 51 patients died.", {("Republic of Korea", "name"), ("51", "number")}),
        ("Today cases of SARS-CoV-2 rose [3, 14].", {("SARS-CoV-2", "name")}),
        ("The 1990s were long.", {("1990s", "date")}),
        ("Both were tested (see Table 4).", set()),
        ("However, nothing happened.", set()),
        ("Москва стала столицей в 1918 году.", {("1918", "date")}),
        ("Она живёт в Москве.", {("Москве", "name")}),
        ("el niño nació en 1998.", {("1998", "date")}),
    ],
)
def test_dates_numbers_and_names_are_spans(sentence: str, expected: set[tuple[str, str]]) -> None:
    found = spans_of(sentence)
    assert {(sentence[span.start : span.stop], span.kind) for span in found} == expected
    assert all(one.stop <= other.start for one, other in pairwise(found))


def test_a_question_is_made_of_the_words_around_the_span() -> None:
    sentence = "alpha beta gamma delta Paris epsilon zeta eta theta"
    whole = SpanOptions(question_words=(8, 8), dropped=0.0)
    asked = {question_of(sentence, Span(23, 28, "name"), whole, random.Random(seed)) for seed in range(20)}
    assert asked == {
        "what alpha beta gamma delta epsilon zeta eta theta?",
        "alpha beta gamma delta what epsilon zeta eta theta?",
    }
    assert question_of(sentence, Span(23, 28, "date"), SpanOptions(dropped=1.0), random.Random(0)) == "when?"


def test_a_passage_gives_questions_whose_answers_stand_in_it() -> None:
    rows = list(spans_of_passage(Passage("p", "", TEXT), SpanOptions(per_passage=50)))
    answers = {str(row["answers"][0]) for row in rows}  # type: ignore[index]
    assert {"March 2003", "SARS", "29", "8,098", "Hanoi", "28 February"} <= answers
    assert not answers & {"12", "13", "The", "About"}
    assert all(answer in TEXT for answer in answers)
    assert all(row["positive_ids"] == ["p"] for row in rows)
    assert all(str(row["answers"][0]) not in str(row["question"]) for row in rows)  # type: ignore[index]
    assert len(list(spans_of_passage(Passage("p", "", TEXT), SpanOptions(per_passage=3)))) == 3


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    lines = [
        {"id": str(n), "title": f"t{n}", "text": f"In {1900 + n} the town of Q{n}ville had {n * 37} people."}
        for n in range(90)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return tmp_path / "p.jsonl"


def test_the_files_are_made_once_split_by_passage_and_the_same_everywhere(corpus: Path, tmp_path: Path) -> None:
    here, there = (build_spans(corpus, SpanOptions(), tmp_path / name) for name in ("a", "b"))
    texts = [[files.paths[split].read_bytes() for split in SPLITS] for files in (here, there)]
    assert texts[0] == texts[1] and all(texts[0])
    written = here.paths["train"].stat().st_mtime_ns
    assert build_spans(corpus, SpanOptions(), tmp_path / "a") == here
    assert here.paths["train"].stat().st_mtime_ns == written
    asked = [{example.positive_ids[0] for example in QuestionFile(here.paths[split])} for split in SPLITS]
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]
    assert sum(here.kinds.values()) == sum(len(QuestionFile(here.paths[split])) for split in SPLITS)


def test_a_limit_keeps_an_even_sample(corpus: Path, tmp_path: Path) -> None:
    files = build_spans(corpus, SpanOptions(most=40), tmp_path / "c")
    assert sum(files.kinds.values()) == 40
    rows = [example.positive_ids[0] for split in SPLITS for example in QuestionFile(files.paths[split])]
    assert len(set(rows)) > 25
    assert any(int(row) < 30 for row in rows) and any(int(row) > 60 for row in rows)


def test_questions_that_are_too_long_are_left_out_and_counted(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = build_spans(corpus, SpanOptions(), tmp_path)
    short = Limit(lambda texts: [len(text) < 30 for text in texts], "under 30 signs")
    some = build_spans(corpus, SpanOptions(), tmp_path, limit=short)
    asked = [one.question for split in SPLITS for one in QuestionFile(some.paths[split])]
    n_whole = sum(whole.kinds.values())
    assert 0 < len(asked) < n_whole and max(map(len, asked)) < 30
    assert f"{n_whole - len(asked)} of {n_whole} masked spans are left out" in capsys.readouterr().out


def test_spans_are_mixed_with_questions_by_a_share(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"question": f"what {n} ?", "answers": ["x", "y"]}) for n in range(30)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    spans = build_spans(corpus, SpanOptions(), tmp_path).paths["train"]
    both = QuestionFile(mixed(tmp_path / "q.jsonl", spans, 0.25, tmp_path))
    assert [one.question for one in both][:30] == [f"what {n} ?" for n in range(30)]
    assert len(both) == 40 and [one.id for one in both][30:] == [one.id for one in QuestionFile(spans)][:10]
    assert "the corpus gives" not in capsys.readouterr().out
    more = QuestionFile(mixed(tmp_path / "q.jsonl", spans, 0.99, tmp_path))
    assert len(more) == 30 + len(QuestionFile(spans))
    assert "data.spans.share=0.99 would take 2,970 masked spans" in capsys.readouterr().out


def test_a_corpus_without_spans_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "1", "title": "", "text": "nothing at all happens here today"}\n')
    with pytest.raises(OpenBookError, match=r"no masked span.*a name, a date or a number"):
        build_spans(tmp_path / "p.jsonl", SpanOptions(), tmp_path)
    assert not list(tmp_path.glob("spans-*"))
