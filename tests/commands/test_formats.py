"""One command trains from files in every format, and one measures a BEIR folder without a generator."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from openbook.__main__ import main
from openbook.commands.evaluate import evaluate
from openbook.commands.train import train
from openbook.data.readers.detect import DOCUMENTS, PAIR, PASSAGES, QUESTIONS, RANKING
from openbook.errors import OpenBookError
from tests.data.readers.samples import PASSAGE_FILES, QUESTION_FILES, RANKING_FILES, written
from tests.data.readers.test_formats_of_the_field import CARRY
from tests.small_system import SmallSystem, column

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT = ("trainer.max_steps=2", "data.validation=", "data.test=", "refresh.every=0", "trainer.checkpoint_every=2")
NO_ANSWERS = ("objective=dpr", "warmup.steps=0", "trainer.monitor=auto", "dpr.bm25_negatives=1")


def words(system: SmallSystem, tmp_path: Path, *more: str) -> list[str]:
    """Of two steps, without the small data that the other tests train on."""
    kept = [word for word in system.words(tmp_path / "run") if not word.startswith(("data.corpus", "data.train"))]
    return ["train", *kept, *SHORT, *more]


def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> dict[str, object]:
    monkeypatch.setenv("OPENBOOK_RUN_DIR", "")
    assert main(command) == 0
    losses = column(tmp_path / "run", "train/nll")
    assert sorted(losses) == [1, 2] and all(math.isfinite(loss) for loss in losses.values())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["status"] == "finished"
    return dict(summary)


@pytest.mark.parametrize("name", QUESTION_FILES)
def test_a_run_from_questions(
    name: str, small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the questions carry passages, no corpus is named."""
    files = QUESTION_FILES[name]()
    path = written(tmp_path, files)
    corpus = tmp_path / "corpus.jsonl" if "corpus.jsonl" in files else small_system.data / "passages.jsonl"
    more = [] if name in CARRY else [f"data.corpus={corpus}"]
    more += ["evaluate.regex_answers=true"] if name == "CuratedTREC" else []
    summary = trained(tmp_path, monkeypatch, words(small_system, tmp_path, f"data.train={path}", *more))
    # Of the two patterns one matches nothing in the corpus: there is no text that the generator could learn to write.
    assert summary["questions"] == {"train": {"SQuAD": 3, "CuratedTREC": 1}.get(name, 2)}


@pytest.mark.parametrize("name", PASSAGE_FILES)
def test_a_run_over_passages(
    name: str, small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_file = f"data.train={written(tmp_path / 'q', QUESTION_FILES['NQ-open']())}"
    corpus = written(tmp_path, PASSAGE_FILES[name]())
    trained(tmp_path, monkeypatch, words(small_system, tmp_path, train_file, f"data.corpus={corpus}"))


@pytest.mark.parametrize("name", RANKING_FILES)
def test_a_run_from_judgements_alone(
    name: str, small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RANKING_FILES[name]()
    written(tmp_path / "f", files)
    train_file, corpus = ("", "") if name == "BEIR" else ("queries.train.tsv", "collection.tsv")
    named = (f"data.train={tmp_path / 'f' / train_file}", f"data.corpus={tmp_path / 'f' / corpus}")
    trained(tmp_path, monkeypatch, words(small_system, tmp_path, *NO_ANSWERS, *named))


def test_every_format_is_among_them() -> None:
    """What the readers know is what is trained on here."""
    known = {one.name for one in (*QUESTIONS, *PASSAGES)} | {RANKING, DOCUMENTS, PAIR}
    there = {*QUESTION_FILES, *PASSAGE_FILES} | {RANKING, "ColBERT and MS MARCO queries"}  # those of RANKING_FILES
    assert known <= there


def test_hard_negatives_of_a_file_are_trained_on(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No BM25 index is built where every question names its own."""
    path = written(tmp_path, QUESTION_FILES["DPR training files"]())
    trained(tmp_path, monkeypatch, words(small_system, tmp_path, *NO_ANSWERS, f"data.train={path}"))
    said = capsys.readouterr().out
    assert "BM25" not in said and "DPR training files: 2 questions and 4 passages" in said


def test_a_beir_folder_is_measured_without_a_generator(small_system: SmallSystem, tmp_path: Path) -> None:
    """By a run that trained a generator; and the numbers are those of its run.trec and qrels.trec."""
    run = train(small_system.config(tmp_path / "run", *SHORT, "evaluate.before_training=false"))
    written(tmp_path / "beir", RANKING_FILES["BEIR"]())
    folder = (f"data.corpus={tmp_path / 'beir'}", f"data.test={tmp_path / 'beir'}")
    with pytest.raises(OpenBookError, match=r"none of 2 questions has an answer.*objective=dpr"):
        evaluate(str(run), folder)
    result = evaluate(str(run), [*folder, "objective=dpr"])
    found = json.loads(result.read_text())["test"]["retrieval"]
    assert found.keys() == {"by_ids"} and found["by_ids"]["n_questions"] == 2
    assert found["by_ids"]["recall_at_100"] == found["by_ids"]["success_at_100"] == 1.0  # there are four passages
    lines = [line.split() for line in (result.parent / "run.trec").read_text().splitlines()]
    assert [line[0] for line in lines] == ["q1"] * 4 + ["q2"] * 4 and all(line[1] == "Q0" for line in lines)
    qrels = (result.parent / "qrels.trec").read_text().splitlines()
    assert qrels == ["q1 0 1 2", "q2 0 2 1"]
    rank = {line[0]: int(line[3]) for line in lines if (line[0], line[2]) in (("q1", "1"), ("q2", "2"))}
    assert found["by_ids"]["mrr_at_100"] == pytest.approx((1 / rank["q1"] + 1 / rank["q2"]) / 2)
    assert found["by_ids"]["ndcg_at_100"] == pytest.approx(sum(1 / math.log2(one + 1) for one in rank.values()) / 2)
    predictions = [json.loads(line) for line in (result.parent / "predictions.jsonl").read_text().splitlines()]
    assert "ranking" not in predictions[0] and predictions[0]["answer_hits"] == []


def test_a_ranking_beside_answers(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run", "trainer.max_steps=1", "data.validation=", "refresh.every=0"))
    assert not (run / "run.trec").exists()
    result = evaluate(str(run), ["evaluate.depth=30"])
    test = json.loads(result.read_text())["test"]
    assert test["retrieval"]["by_ids"]["success_at_5"] == pytest.approx(test["gold_recall_at_5"])
    assert test["retrieval"]["by_answers"]["success_at_20"] == pytest.approx(test["answer_recall_at_20"])
    assert {key: value for key, value in test.items() if key != "retrieval"} == json.loads(
        (run / "summary.json").read_text()
    )["test"]


def test_long_questions(small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (small_system.data / "train.jsonl").read_text().splitlines()
    long = json.loads(lines[3]) | {"question": "what is the capital of " + "alpha " * 70 + "?"}
    (tmp_path / "t.jsonl").write_text("\n".join([*lines[:3], json.dumps(long), *lines[4:]]) + "\n")
    more = (f"data.train={tmp_path / 't.jsonl'}", *SHORT)
    with pytest.raises(OpenBookError, match=r"longer than the limit \(.*t\.jsonl:4\).*long_questions=cut or drop"):
        train(small_system.config(tmp_path / "error", *more))
    for how, n, said in (("cut", 23, "are cut at their end"), ("drop", 22, "are left out")):
        run = train(small_system.config(tmp_path / how, *more, f"data.long_questions={how}"))
        assert json.loads((run / "summary.json").read_text())["questions"] == {"train": n}
        assert f"1 of 23 questions have more than 64 tokens and {said}" in " ".join(capsys.readouterr().out.split())


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, QUESTION_FILES["HotpotQA and 2WikiMultihopQA"]())
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["passages.jsonl", "questions.jsonl"]
    assert "HotpotQA and 2WikiMultihopQA: 2 questions and 4 passages" in capsys.readouterr().out
    assert main(["convert", str(path), str(tmp_path / "out")]) == 2
    assert "the file is there already" in capsys.readouterr().err
    folder = written(tmp_path, PASSAGE_FILES[DOCUMENTS]())
    assert main(["convert", str(folder), str(tmp_path / "cut"), "data.split.size=3", "data.split.overlap=1"]) == 0
    first = [json.loads(line) for line in (tmp_path / "cut" / "passages.jsonl").read_text().splitlines()][:2]
    assert [one["text"] for one in first] == ["the capital of", "of alpha is"]
    written(tmp_path / "c", RANKING_FILES["MS MARCO ranking"]())
    both = ["convert", str(tmp_path / "c" / "collection.tsv"), str(tmp_path / "both")]
    assert main(both) == 2
    assert "Say which: --only questions or --only passages" in capsys.readouterr().err
    assert main([*both, "--only", "passages"]) == 0
    assert main(["convert", str(path)]) == 2 and "needs a folder to write to" in capsys.readouterr().err
