"""BM25 against the formula in loops, its edges, and runs that retrieve with it."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from openbook.__main__ import main
from openbook.batch import MISSING_ROW, Batch, Example, Retrieved
from openbook.commands.evaluate import evaluate
from openbook.commands.train import resume, train
from openbook.config.checks import has_index
from openbook.errors import OpenBookError
from openbook.retrieval.bm25 import BM25Index, BM25Retriever
from openbook.tracking.checkpoint import read_checkpoint
from tests.small_system import SmallSystem, column, train_until

STOP = {"the", "of", "a", "is"}
TEXTS = (
    "Ghana The capital of Ghana is Accra",
    "Togo The capital of Togo is Lomé",
    "Rivers a river is long; a long, LONG river",
    "Empty",
    "the of",
)


def bm25_in_loops(texts: list[str], question: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Lucene's BM25 (without its constant factor k1 + 1), a word of the question counted as often as it is there."""
    split = [[word for word in re.findall(r"\w\w+", text.lower()) if word not in STOP] for text in texts]
    mean_length = sum(map(len, split)) / len(split)
    scores = []
    for words in split:
        score = 0.0
        for word in re.findall(r"\w\w+", question.lower()):
            if word not in STOP:
                having = sum(word in other for other in split)
                idf = math.log(1 + (len(split) - having + 0.5) / (having + 0.5))
                count = words.count(word)
                score += idf * count / (count + k1 * (1 - b + b * len(words) / mean_length))
        scores.append(score)
    return scores


def in_order(scores: list[float], top_k: int) -> list[int]:
    rows = sorted((row for row, score in enumerate(scores) if score > 0), key=lambda row: (-scores[row], row))
    return (rows + [MISSING_ROW] * top_k)[:top_k]


def retriever(temperature: float = 1.0) -> BM25Retriever:
    return BM25Retriever(BM25Index(TEXTS), len(TEXTS), temperature)


def test_scores_are_lucenes() -> None:
    draw = random.Random(0)
    vocabulary = [f"w{number}" for number in range(23)] + ["the", "of", "é", "Ünder"]
    texts = [" ".join(draw.choices(vocabulary, k=draw.randint(1, 13))) for _ in range(41)]
    questions = [" ".join(draw.choices(vocabulary, k=draw.randint(1, 7))) for _ in range(17)]
    rows, scores = BM25Index(texts).search(questions, 11)
    assert rows.dtype == np.int64 and scores.dtype == np.float32
    for place, question in enumerate(questions):
        expected = [round(score, 5) for score in bm25_in_loops(texts, question)]
        for row, score in zip(rows[place], scores[place], strict=True):
            assert score == (-np.inf if row == MISSING_ROW else pytest.approx(expected[row], abs=2e-5))
        highest = sorted((score for score in expected if score > 0), reverse=True)[:11]
        assert scores[place][: len(highest)].tolist() == pytest.approx(highest, abs=2e-5)
        assert (rows[place] != MISSING_ROW).sum() == len(highest)
        assert (np.diff(scores[place][: len(highest)]) <= 0).all()


def test_equal_scores_are_in_the_order_of_the_corpus() -> None:
    index = BM25Index(["accra", "lome", "accra", "accra accra", "lome", "accra", "accra"])
    assert index.search(["accra"], 3)[0].tolist() == [[3, 0, 2]]
    assert index.search(["accra"], 5)[0].tolist() == [[3, 0, 2, 5, 6]]
    assert index.search(["lome"], 1)[0].tolist() == [[1]]


def test_what_shares_no_word_is_no_hit() -> None:
    rows, scores = BM25Index(TEXTS).search(["Accra?", "the of a", "", "Paris", "LOMÉ capital"], 4)
    assert rows.tolist() == [[0, -1, -1, -1], [-1] * 4, [-1] * 4, [-1] * 4, [1, 0, -1, -1]]
    assert (np.isneginf(scores) == (rows == MISSING_ROW)).all()


def test_more_asked_for_than_there_is() -> None:
    rows, _ = BM25Index(["ghana"]).search(["ghana"], 20)
    assert rows.tolist() == [[0] + [MISSING_ROW] * 19]
    assert BM25Index(["ghana"]).search([], 3)[0].shape == (0, 3)


def test_the_same_corpus_gives_the_same_numbers() -> None:
    questions = ["capital river Togo", "long capital of Ghana"]
    first, second = (BM25Index(list(TEXTS)).search(questions, 3) for _ in range(2))
    assert all((one == other).all() for one, other in zip(first, second, strict=True))


def test_passages_without_words_are_refused() -> None:
    with pytest.raises(OpenBookError, match="BM25 finds no word"):
        BM25Index(["the of", "?", "a"])


def test_scores_are_logits_divided_by_the_temperature() -> None:
    warm = retriever(2.0)
    found = warm.retrieve(["capital of Togo", "nothing known"], 3)
    assert found.rows.tolist() == [[1, 0, -1], [-1, -1, -1]]
    expected = bm25_in_loops(list(TEXTS), "capital of Togo")
    doc_scores = warm.score(["capital of Togo", "nothing known"], found)
    torch.testing.assert_close(doc_scores[0, :2], torch.tensor([expected[1], expected[0]]) / 2)
    assert doc_scores[0, 2] == -math.inf and (doc_scores[1] == -math.inf).all()
    assert doc_scores.dtype == torch.float32
    assert isinstance(found, Retrieved) and warm.index_is_exact()


def test_it_asks_with_strings_and_has_nothing_to_train_or_save() -> None:
    lexical = retriever()
    examples = tuple(Example(str(number), f"question {number}", ("answer",)) for number in range(3))
    ids = torch.ones(3, 2, dtype=torch.int64)
    batch = Batch(ids, ids, ((1,),) * 3, ids, torch.ones(3), examples)
    assert lexical.represent(batch) == ["question 0", "question 1", "question 2"]
    assert not list(lexical.parameters()) and not lexical.state_dict()


# Runs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("objective", ["rag_token", "rag_sequence"])
def test_a_run_trains_resumes_and_is_evaluated(objective: str, small_system: SmallSystem, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    words = (
        "retriever.kind=bm25",
        f"objective={objective}",
        "trainer.max_steps=16",
        "trainer.checkpoint_every=3",
        "evaluate.before_training=false",
    )
    whole = train(small_system.config(tmp_path / "a" / "run", *words))
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["index"] == {"generation": 0, "n_passages": 37, "factory": "BM25"}
    assert summary["seconds"]["refresh"] == 0
    assert summary["test"]["recall_at_5"] > 0.5  # the questions name their passage's title
    assert not (whole / "plan.json").exists() and (whole / "report.html").exists()
    nll = list(column(whole, "train/nll").values())
    assert sum(nll[-4:]) < 0.8 * sum(nll[:4])
    assert not any(column(whole, name) for name in ("train/staleness", "refresh/generation", "train/loss"))
    assert all(
        name.startswith("generator.") for name in read_checkpoint(whole / "checkpoints" / "last.ckpt")["state_dict"]
    )

    train_until(small_system.config(tmp_path / "b" / "run", *words), 4)
    resumed = resume(str(tmp_path / "b" / "run"), [])
    assert column(resumed, "train/nll") == pytest.approx(column(whole, "train/nll"), rel=1e-5)
    result = json.loads(evaluate(str(whole), []).read_text())
    assert result["test"] == summary["test"]
    read = [json.loads(line) for line in (whole / "predictions.jsonl").open()]
    assert all(sum(passage["prior"] for passage in line["passages"]) == pytest.approx(1, abs=1e-5) for line in read)


def test_combinations_that_make_no_sense_are_refused(small_system: SmallSystem, tmp_path: Path) -> None:
    for words, said in (
        (["objective=perplexity_distillation"], "objective.*got 'perplexity_distillation'"),
        (["objective=leave_one_out"], "BM25 does not learn"),
        (["objective=emdr2"], "BM25 does not learn"),
        (["objective=dpr"], "BM25 does not learn"),
        (["retriever.rerank=7"], r"retriever\.rerank"),
        (["retriever.start_from=rag_token"], r"retriever\.start_from"),
    ):
        with pytest.raises(OpenBookError, match=said):
            small_system.config(tmp_path / "run", "retriever.kind=bm25", *words)
    closed = small_system.config(tmp_path / "run", "retriever.kind=bm25", "objective=closed_book", "retriever.rerank=7")
    assert not has_index(closed)


def test_there_is_no_index_to_plan(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *small_system.words(tmp_path / "run", "retriever.kind=bm25")]) == 2
    assert "there is no index to plan" in capsys.readouterr().err


def test_jax_is_left_alone(small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bm25s imports jax where it is installed, and jax takes a GPU's memory when it starts."""
    (tmp_path / "path" / "jax").mkdir(parents=True)
    (tmp_path / "path" / "jax" / "__init__.py").write_text("raise OSError('nobody asked for jax')")
    (tmp_path / "path" / "jax" / "lax.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    assert "nobody asked" in small_system.start_python("import jax").communicate(timeout=60)[0]
    lexical = ("retriever.kind=bm25", "trainer.max_steps=2", "evaluate.before_training=false")
    done = small_system.command("train", *small_system.words(tmp_path / "run", *lexical))
    assert done.returncode == 0, done.stdout[-3000:]
