from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from openbook.__main__ import main
from openbook.commands.parsers import parse
from openbook.commands.trained.answers import show_answers
from openbook.errors import OpenBookError
from openbook.metrics.prediction import Prediction, ReadPassage, TokenProvenance
from openbook.reporting.report import write_report

HOSTILE = "[/bold] [red]x :smile: \x1b[2J"
LONG = "much that says nothing about it " * 7
PASSAGES = (
    ReadPassage("p1", "Togo", 0.75, 0.125, False, f"{LONG} Lomé-Tokoin and LOMÉ itself. {LONG}"),
    ReadPassage("p2", "", 0.25, 0.875, True, f"Some {HOSTILE} words"),
)
RIGHT = Prediction(
    id="q1",
    question="What is the capital of Togo?",
    answers=("Lomé", "Lome"),
    prediction="lomé",
    relation="capital",
    phrasing="trained",
    passages=PASSAGES,
    exact_match=1.0,
    f1=1.0,
    hits=(True, False),
    logprob=-0.625,
    candidates=(("lomé", -0.625), ("accra", -3.5)),
    gold_logprob=-0.75,
    closed_book_logprob=-9.5,
    tokens=(
        TokenProvenance("lo", (0.25, 0.75)),
        TokenProvenance("##mé", (0.004, 0.996)),
        TokenProvenance("(end)", (1.0, 0.0)),
    ),
)
WRONG = replace(RIGHT, id="q2", question=f"And of Ghana {HOSTILE}?", answers=("Accra",), exact_match=0.0, f1=0.5)
NOTHING = replace(
    RIGHT,
    id="q3",
    question="Who?",
    passages=(),
    tokens=(),
    candidates=(),
    logprob=None,
    gold_logprob=None,
    prediction="",
    exact_match=0.0,
    f1=0.0,
    hits=(False,) * 20,
)
UNANSWERED = replace(NOTHING, id="q4", question="Where?", exact_match=None, f1=None, passages=PASSAGES)
LATER = ("logprob", "candidates", "tokens", "answer_hits", "gold_hits", "gold_logprob", "closed_book_logprob", "label")


def run_of(folder: Path, *predictions: Prediction, without: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{key: value for key, value in one.to_json().items() if key not in without} for one in predictions]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "predictions.jsonl").write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text("objective: rag_token\n", encoding="utf-8")
    return folder


def shown(*words: str, width: int = 100, terminal: bool = False) -> str:
    written = io.StringIO()
    parsed = parse(["answers", *words])
    run, *text = parsed.words
    console = Console(file=written, width=width, force_terminal=terminal, highlight=False)
    show_answers(run, " ".join(text), parsed.n, console)
    return written.getvalue()


def test_an_answer_with_everything(tmp_path: Path) -> None:
    text = shown(str(run_of(tmp_path / "run", RIGHT)))
    lines = text.splitlines()
    assert lines[0].startswith("1 of 1 questions; passages: prior → posterior")
    assert "What is the capital of Togo?  (capital · trained)" in lines
    assert "gold    Lomé | Lome  (log p -0.75, without passages -9.50)" in lines
    assert "answer  lomé  log p -0.62  (right)" in lines
    assert "best    lomé -0.62 | accra -3.50" in lines
    first, second = (line for line in lines if "→" in line and line[0] in "12" and "of" not in line[:6])
    assert first.startswith("1  · Togo: …") and "«Lomé»-Tokoin" in first, "not relevant, but holds the answer"
    assert second.startswith("2 ✓  p2: Some [/bold] [red]x :smile:"), "relevant without it; the id without a title"
    assert first.split("…")[-1].split()[-5:] == ["0.75", "████", "→", "0.12", "█"]
    assert second.split()[-5:] == ["0.25", "██", "→", "0.88", "█████"]
    grid = [line.split() for line in lines[lines.index(second) + 1 :]]
    assert grid == [["token", "1", "2"], ["lo", "0.25", "0.75"], ["##mé", "0.00", "1.00"], ["(end)", "1.00", "0.00"]]


def test_lines_stay_in_the_terminal_and_plain_text_stays_plain(tmp_path: Path) -> None:
    many = tuple(replace_passage(number) for number in range(23))
    wide = replace(
        RIGHT,
        passages=many,
        tokens=(TokenProvenance("x" * 40, (0.5, *[0.5 / 22] * 22)),),
        question="why " * 61,
        answers=("so " * 53,),
    )
    run = run_of(tmp_path / "run", WRONG, wide)
    for width in (100, 79):
        lines = shown(str(run), width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert not any("\x1b" in line for line in lines)
        assert any(line.startswith("token") and line.rstrip().endswith(" to 23") for line in lines)
        row = next(line.split() for line in lines if line.startswith("xxx"))
        alone = {100: 14, 79: 10}[width]  # the others have no room
        assert row == ["x" * 16, "0.50", *["0.02"] * (alone - 1), f"{(23 - alone) * 0.5 / 22:.2f}"]
    coloured = shown(str(run), terminal=True)
    assert "\x1b[1m" in coloured and "\x1b[2J" not in coloured and "«" not in coloured


def replace_passage(number: int) -> ReadPassage:
    return ReadPassage(f"p{number}", "Title " * 9, 1 / 23, 1 / 23, False, "word\nword\t " * 41)


def test_right_and_wrong_are_mixed_and_told(tmp_path: Path) -> None:
    right = [replace(RIGHT, id=f"r{number}") for number in range(7)]
    wrong = [replace(WRONG, id=f"w{number}") for number in range(5)]
    run = str(run_of(tmp_path / "run", *right, *wrong))
    text = shown(run, "--n", "4")
    assert (text.count("(right)"), text.count("(wrong, F1 0.50)")) == (2, 2)
    assert text.startswith("4 of 12 questions")
    only = shown(run, "of", "GHANA")
    assert (only.count("(right)"), only.count("(wrong")) == (0, 5)
    assert only.startswith("5 of 5 matching questions")


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    text = shown(str(run_of(tmp_path / "run", NOTHING, UNANSWERED)))
    assert "answer  (empty)  (wrong, F1 0.00)\nno passages were used" in text
    assert "first passage not relevant\n1  · Togo" in text and text.count("answer  ") == 1
    old = shown(str(run_of(tmp_path / "old", RIGHT, without=LATER)))
    assert "answer  lomé  (right)\n1  ·" in old and "log p" not in old and "token" not in old


def test_patterns_are_looked_for_as_patterns(tmp_path: Path) -> None:
    one = replace(RIGHT, answers=(r"Lom\S+-T\w+",), f1=None, exact_match=0.0)
    run = run_of(tmp_path / "run", one)
    (run / "config.yaml").write_text("evaluate:\n  regex_answers: true\n", encoding="utf-8")
    text = shown(str(run))
    assert "1  · Togo" in text and "«Lomé-Tokoin»" in text and "(wrong)" in text
    evaluation = run_of(run / "evaluations" / "1", one)
    (evaluation / "config.yaml").unlink()
    assert shown(str(evaluation)) == text, "an evaluation is read as its run is"


def test_what_cannot_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path / "run", RIGHT)
    with pytest.raises(OpenBookError, match=r"not a run folder \(.*gone\): got no config.yaml in it"):
        shown(str(tmp_path / "gone"))
    with pytest.raises(OpenBookError, match=r"no question contains this .*got 'Mali', expected a part of one of 1"):
        shown(str(run), "Mali")
    for n in ("0", "many", "-1"):
        with pytest.raises(OpenBookError, match=rf"not a number of answers \(N\): got {n}, expected a whole number"):
            shown(str(run), f"--n={n}")
    (run / "predictions.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(OpenBookError, match=r"no answer can be read .*got predictions.jsonl is empty"):
        shown(str(run))
    (run / "predictions.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(OpenBookError, match=r"got predictions.jsonl: 1 lines cannot be read"):
        shown(str(run))
    (run / "predictions.jsonl").unlink()
    assert main(["answers", str(run)]) == 2
    assert "the run has no answers yet" in capsys.readouterr().err
    assert main(["answers"]) == 2
    assert "`answers` needs a run folder" in capsys.readouterr().err


def test_the_command_prints_100_columns_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["answers", str(run_of(tmp_path / "run", RIGHT)), "capital", "--n", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 100 and "answer  lomé  log p -0.62  (right)" in lines


def test_the_report_has_the_tokens_too(tmp_path: Path) -> None:
    page = write_report(run_of(tmp_path / "run", RIGHT)).read_text(encoding="utf-8")
    assert page.count("<caption>share of each passage in each token</caption>") == 1
    assert "<th>##mé</th>" in page and '<td class="share" style="--share: 1.00">1.00</td>' in page
    page = write_report(run_of(tmp_path / "old", RIGHT, without=LATER)).read_text(encoding="utf-8")
    assert "<caption>share of each passage in each token</caption>" not in page
