"""Retrieval of an experiment is measured without a run, as its encoders come."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertModel

from openbook.__main__ import main
from openbook.batch import MISSING_ROW, Retrieved
from openbook.commands.evaluate import evaluate
from openbook.commands.train import train
from openbook.errors import OpenBookError
from openbook.inference.evidence import without_rows
from openbook.tracking.run_folder import RunFolder
from tests.data.readers.samples import RANKING_FILES, written
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")
DPR = (
    "objective=dpr",
    "trainer.monitor=auto",
    "data.max_passage_tokens=0",
    "retriever.pooling=mean",
    "retriever.passage_layout=pair",
)


def words(system: SmallSystem, tmp_path: Path, *more: str) -> list[str]:
    """`EXPERIMENT key=value ...` over a BEIR folder that has judgements for the test alone, without a generator."""
    written(tmp_path / "beir", RANKING_FILES["BEIR"]())
    (tmp_path / "beir" / "qrels" / "train.tsv").unlink(missing_ok=True)
    passed = ("data.corpus", "data.train", "data.validation", "data.test", "generator.model")
    kept = [word for word in system.words(tmp_path / "run", *DPR, *more) if not word.startswith(passed)]
    return [*kept, f"data.corpus={tmp_path / 'beir'}", f"data.test={tmp_path / 'beir'}", "generator.model=nowhere"]


def test_zero_shot_over_a_beir_folder(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranks are those of the mean of transformers' own token states, by cosine."""
    command = words(small_system, tmp_path)
    assert main(["evaluate", *command]) == 0
    run = tmp_path / "run"
    made = {path.name for path in run.iterdir() if path.is_file()}
    assert made == {"config.yaml", "environment.json", "summary.json", "predictions.jsonl", "run.trec", "qrels.trec"}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["experiment"] == "small_untrained" and summary["status"] == "evaluated" and summary["steps"] == 0
    assert "recall_at_100" in capsys.readouterr().out

    model = BertModel.from_pretrained(small_system.encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(small_system.encoder)

    def embed(*texts: str) -> torch.Tensor:
        with torch.no_grad():
            ids = tokenizer(*texts, return_tensors="pt").input_ids  # as DPR, of one token type
            states = model(ids).last_hidden_state
        return torch.nn.functional.normalize(states.mean(1)[0], dim=0)

    rows = [json.loads(line) for line in (tmp_path / "beir" / "corpus.jsonl").read_text().splitlines()]
    passages = torch.stack([embed(row["title"], row["text"]) for row in rows])
    lines = [line.split() for line in (run / "run.trec").read_text().splitlines()]
    gold, ranks = {"q1": "1", "q2": "2"}, []
    for query in map(json.loads, (tmp_path / "beir" / "queries.jsonl").read_text().splitlines()):
        order = (passages @ embed(query["text"])).argsort(descending=True).tolist()
        ranked = [rows[row]["_id"] for row in order]
        assert [line[2] for line in lines if line[0] == query["_id"]] == ranked
        ranks.append(1 + ranked.index(gold[query["_id"]]))
    found = summary["test"]["retrieval"]["by_ids"]
    assert found["mrr_at_100"] == pytest.approx(sum(1 / rank for rank in ranks) / 2)
    assert found["ndcg_at_100"] == pytest.approx(sum(1 / math.log2(1 + rank) for rank in ranks) / 2)
    assert main(["evaluate", *command]) == 2  # a run folder is never written over
    assert "the run folder holds a run already" in capsys.readouterr().err


def test_the_encoders_of_a_run_over_another_corpus(small_system: SmallSystem, tmp_path: Path) -> None:
    short = ("trainer.max_steps=2", "data.validation=", "data.test=", "refresh.every=0", *DPR[-2:])
    trained = train(small_system.config(tmp_path / "trained", *short))
    folder = [f"data.{key}={tmp_path / 'beir'}" for key in ("corpus", "test")]
    first, *overrides = words(small_system, tmp_path, f"retriever.start_from={trained}")
    mine = json.loads(evaluate(first, overrides).read_text())["test"]
    theirs = json.loads(evaluate(trained, ["objective=dpr", *folder]).read_text())["test"]
    assert mine["retrieval"] == theirs["retrieval"]


def test_what_is_refused(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *overrides = words(small_system, tmp_path)
    with pytest.raises(OpenBookError, match=r"measured by its retrieval alone \(objective\): got rag_token"):
        evaluate(first, [*overrides, "objective=rag_token", f"generator.model={small_system.generator}"])
    with pytest.raises(OpenBookError, match=r"there are no test questions \(data\.test\)"):
        evaluate(first, [*overrides, "data.test="])
    with pytest.raises(OpenBookError, match="not a run folder"):
        evaluate("nothing_of_this_name", overrides)
    assert not (tmp_path / "run").exists()
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "dpr", "data.test=nowhere"]) == 2  # an experiment, and no run of it
    assert "questions of your own over the embedded corpus" in capsys.readouterr().err


def test_a_name_that_has_runs_is_its_newest_run_unless_asked_otherwise(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = words(small_system, tmp_path)
    RunFolder(tmp_path / "runs" / "dpr" / "one").create(small_system.config(tmp_path / "run"))
    monkeypatch.setenv("OPENBOOK_RUN_DIR", "")  # which a run sets for its ranks
    overrides = command[1:]
    with pytest.raises(OpenBookError, match="no such checkpoint"):
        evaluate("dpr", overrides)
    assert evaluate("dpr", overrides, untrained=True) == tmp_path / "run" / "summary.json"


@pytest.mark.parametrize(("how", "n"), [("auto", 1), ("ignore", 2), ("keep", 0)])
def test_queries_that_are_passages(
    how: str, n: int, small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """q1 is the passage with its id, q2 has the id of another text by chance; BEIR ignores both."""
    first, *overrides = words(small_system, tmp_path, f"evaluate.identical_ids={how}")
    queries = [json.loads(line) for line in (tmp_path / "beir" / "queries.jsonl").read_text().splitlines()]
    own = [{"_id": "q1", "title": "", "text": queries[0]["text"].upper()}, {"_id": "q2", "title": "", "text": "a b c"}]
    with open(tmp_path / "beir" / "corpus.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in own)
    run = evaluate(first, overrides).parent
    lines = [line.split() for line in (run / "run.trec").read_text().splitlines()]
    assert 2 - sum(line[0] == line[2] for line in lines) == n and len(lines) == 12 - n
    said = " ".join(capsys.readouterr().out.split())
    counted = "1 of 2 questions have the id of a passage, which counts as found" if how == "keep" else f"{n} of 2"
    assert f"{counted}" in said and f"(evaluate.identical_ids={how})" in said


def test_a_row_left_out_by_hand() -> None:
    rows, scores = torch.tensor([[4, 7, 2], [4, 7, 2], [4, 2, MISSING_ROW]]), torch.tensor([[3.0, 2.0, 1.0]] * 3)
    left = without_rows(Retrieved(rows, scores), torch.tensor([4, 5, MISSING_ROW]))
    assert left.rows.tolist() == [[7, 2], [4, 7], [4, 2]]
    assert left.index_scores.tolist() == [[2, 1], [3, 2], [3, 2]]
