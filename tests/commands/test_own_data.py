"""Data of one's own: never worse than the start, from questions or from the corpus alone, and said in the last line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openbook.batch import MISSING_ROW
from openbook.commands.evaluate import evaluate
from openbook.commands.train import resume, train
from openbook.config.load import load_resolved
from openbook.data.question_file import QuestionFile
from openbook.errors import OpenBookError
from openbook.setup.prepare import prepare
from openbook.tracking.checkpoint import read_checkpoint
from tests.small_system import SmallSystem, column

BEST = ("evaluate.checkpoint=auto", "retriever.teacher=auto")


def summary_of(run: Path) -> dict[str, dict[str, object]]:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def test_training_that_ruins_the_encoders_ends_with_those_it_started_with(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ruin = ("optim.lr_question_encoder=30", "optim.lr_passage_encoder=30", "optim.lr_generator=1e-9")
    run = train(small_system.config(tmp_path / "run", *BEST, *ruin, "trainer.monitor=mrr", "optim.clip=0"))
    summary = summary_of(run)
    mrr = column(run, "validation/mrr")
    assert sorted(mrr) == [0, 3, 6] and mrr[0] > max(mrr[3], mrr[6]), "the ruin must be one"
    assert summary["best"] == {"metric": "mrr", "value": pytest.approx(mrr[0]), "step": 0}
    assert summary["tested_step"] == 0
    assert summary["test"]["recall_at_1"] == summary["before_training"]["recall_at_1"]
    told = summary["improved"]["recall_at_1"]
    assert told["difference"] == told["changed"] == 0 and not (told["improved"] or told["worsened"])
    assert "training has not measurably improved on its start" in capsys.readouterr().out.splitlines()[-1]
    again = json.loads(evaluate(str(run), []).read_text())["test"]
    assert again["mrr"] == summary["test"]["mrr"]


def test_the_better_checkpoint_is_tested(small_system: SmallSystem, tmp_path: Path) -> None:
    run = train(small_system.config(tmp_path / "run", *BEST, "trainer.monitor=f1+mrr"))
    summary = summary_of(run)
    watched = {
        step: value + column(run, "validation/f1")[step] for step, value in column(run, "validation/mrr").items()
    }
    assert summary["best"]["value"] == pytest.approx(max(watched.values()))
    assert summary["tested_step"] == min(step for step, value in watched.items() if value == max(watched.values()))
    assert read_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"] == summary["tested_step"]
    config = load_resolved(run / "config.yaml")
    assert (config.evaluate.checkpoint, config.retriever.teacher) == ("best", "both")
    assert any("encoders also learned from passages" in str(text) for text in summary["disclosures"])
    assert column(run, "train/positive_nll").keys() == column(run, "train/gate").keys() == set(range(1, 7))


def test_passes_over_the_questions_instead_of_steps(small_system: SmallSystem, tmp_path: Path) -> None:
    words = ("trainer.max_epochs=0.5", "evaluate.before_training=false")
    run = train(small_system.config(tmp_path / "run", *words))
    assert summary_of(run)["steps"] == 3  # 23 questions, 4 a step
    assert load_resolved(run / "config.yaml").trainer.max_steps == 3
    assert summary_of(resume(str(run), ["trainer.max_steps=5"]))["steps"] == 5
    assert summary_of(resume(str(run)))["steps"] == 5


@pytest.fixture
def corpus(small_system: SmallSystem, tmp_path: Path) -> Path:
    """Passages whose names begin with capitals, as masked spans need them."""
    lines = [json.loads(line) for line in (small_system.data / "passages.jsonl").read_text().splitlines()]
    plain = "the capital of is a river flows through .".split()
    for line in lines:
        line["text"] = " ".join(word if word in plain else word.capitalize() for word in line["text"].split())
    path = tmp_path / "passages.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_corpus_without_any_question_is_trained_on(corpus: Path, small_system: SmallSystem, tmp_path: Path) -> None:
    files = (f"data.corpus={corpus}", "data.train=spans", "data.validation=spans", "data.test=")
    run = train(small_system.config(tmp_path / "run", *BEST, *files))
    summary = summary_of(run)
    assert summary["steps"] == 6 and summary["questions"]["train"] > 25
    assert summary["test"] == {} and summary["best"]["metric"] == "f1+mrr"


def test_spans_are_mixed_into_the_training_questions(corpus: Path, small_system: SmallSystem, tmp_path: Path) -> None:
    config = small_system.config(tmp_path / "run", f"data.corpus={corpus}", "data.spans.share=0.5")
    questions = prepare(config).questions.questions
    assert len(questions["train"]) == 46
    assert sum(example.relation == "name" for example in questions["train"]) == 23
    assert not any(example.relation == "name" for example in questions["validation"])


def test_without_named_passages_those_that_bm25_finds_stand_for_them(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in (small_system.data / "train.jsonl").read_text().splitlines()]
    gold = [line.pop("positive_ids")[0] for line in lines]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    module = prepare(small_system.config(tmp_path / "run", *BEST, f"data.train={tmp_path / 'train.jsonl'}")).module()
    passages = module.teacher.passages  # type: ignore[union-attr]
    found = [passages.positive_of(example) for example in QuestionFile(tmp_path / "train.jsonl")]
    assert MISSING_ROW not in found
    assert sum(passages.corpus.passage(row).id == identity for row, identity in zip(found, gold, strict=True)) > 15
    assert "weak supervision: 23 of 23 training questions name no passage" in capsys.readouterr().out


def test_text_without_a_span_is_read_without_masked_ones(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generator.model=minilm", "warmup.steps=2", "warmup.spans=0.5", "warmup.held_out=", "data.validation="]
    prepared = prepare(small_system.config(tmp_path / "run", *words))
    assert prepared.config.warmup.spans == 0
    assert "the reader's warm-up reads the questions alone" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(OpenBookError, match=r"no masked span can be made .*warmup\.spans=0 and data\.spans\.share=0"):
        prepare(small_system.config(tmp_path / "run", *words, "warmup.spans=1"))
