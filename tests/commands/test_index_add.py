"""`index add`: a run answers from a corpus that has grown, exactly as from one that was built whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openbook.__main__ import main
from openbook.commands import index_add as adding
from openbook.commands.api import load_run
from openbook.commands.evaluate import evaluate, load_trained
from openbook.commands.index_add import index_add
from openbook.commands.train import train
from openbook.commands.trained.answers import show_answers
from openbook.errors import OpenBookError
from openbook.retrieval.corpus_encoder import PassageCoder
from openbook.setup.inputs.own_files import was_cut
from openbook.tracking.added_passages import newest
from openbook.tracking.run_folder import RunFolder
from openbook.tracking.search.run_search import Runs
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def files_of(run: Path) -> dict[str, bytes]:
    """All of the run but what is added to it."""
    found = (path for path in run.rglob("*") if path.is_file())
    return {
        str(path): path.read_bytes()
        for path in found
        if path.relative_to(run).parts[0] not in ("corpus", "evaluations")
    }


def index_of(run: Path, *overrides: str) -> np.ndarray:
    """The vectors that the run searches."""
    folder = RunFolder(run)
    module, _, refresh, *_ = load_trained(folder, folder.load_config(list(overrides), training=False))
    assert refresh is not None
    refresh.manager.ensure(module.retriever, 0)  # type: ignore[arg-type]
    return module.retriever.snapshot.index.stored().view(np.float32).copy()  # type: ignore[union-attr]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the passages that are encoded, as they are."""
    seen: list[int] = []
    start = PassageCoder.start

    def counted(self: PassageCoder, rows: np.ndarray) -> Any:
        seen.extend(rows.tolist())
        return start(self, rows)

    monkeypatch.setattr(PassageCoder, "start", counted)
    return seen


@pytest.fixture
def run(small_system: SmallSystem, tmp_path: Path) -> Path:
    return train(small_system.config(tmp_path / "run", "evaluate.before_training=false"))


def test_a_grown_corpus_is_as_one_built_whole(
    run: Path,
    small_system: SmallSystem,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    encoded: list[int],
) -> None:
    """One passage edited, one unchanged, two new: three are encoded. Then the same again: nothing is."""
    before, passages = files_of(run), rows(small_system.data / "passages.jsonl")
    new = [
        {"id": "n1", "title": "new", "text": "the capital of kappa is sigma ."},
        passages[2],
        passages[4] | {"text": "a river flows through omega ."},
        {"id": "n2", "title": "newer", "text": "the king of omega ."},
    ]
    file = written(tmp_path / "more.jsonl", new)
    encoded.clear()
    assert main(["index", "add", str(run), str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "2 passages added, 1 edited, 1 unchanged" in said
        and f"3 passages were encoded; the vectors of {len(passages) - 1:,}" in said
    )
    assert sorted(encoded) == [4, len(passages), len(passages) + 1]
    assert files_of(run) == before

    whole = [*passages[:4], new[2], *passages[5:], new[0], new[3]]
    grown = newest(run)
    assert grown is not None and grown.number == 1 and rows(grown.passages) == whole
    assert {key: grown.report[key] for key in ("added", "edited", "unchanged", "removed", "encoded", "n_passages")} == {
        "added": 2,
        "edited": 1,
        "unchanged": 1,
        "removed": 0,
        "encoded": 3,
        "n_passages": len(whole),
    }
    built = written(tmp_path / "whole.jsonl", whole)
    fresh = ("index.keep_vectors=0",)  # everything is encoded there
    there = index_of(run, f"data.corpus={built}", *fresh)
    here = index_of(run, f"data.corpus={grown.passages}")
    assert here.shape == there.shape
    np.testing.assert_allclose(here, there, rtol=0, atol=2e-6)

    encoded.clear()
    result = evaluate(str(run))
    assert not encoded, "the vectors are kept"
    with_new, with_whole = (
        json.loads(path.read_text()) for path in (result, evaluate(str(run), [f"data.corpus={built}"]))
    )
    assert with_new["data"]["corpus"] == with_whole["data"]["corpus"]
    assert with_new["test"] == with_whole["test"]
    assert with_new["before_training"] == {}, "another corpus is no comparison"

    assert index_add(str(run), [str(file)]) is None  # all is there already
    assert newest(run) == grown and not encoded


def test_answers_are_those_of_the_grown_corpus_once_there_are_any(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_answers(str(run))
    assert "openbook evaluate" not in capsys.readouterr().out
    file = written(tmp_path / "more.jsonl", [{"id": "n1", "title": "new", "text": "the capital of kappa ."}])
    assert index_add(str(run), [str(file)])
    show_answers(str(run))
    assert f"`openbook evaluate {run}` answers from its passages" in " ".join(capsys.readouterr().out.split())
    result = evaluate(str(run), ["evaluate.n_docs=2"])
    lines = (result.parent / "predictions.jsonl").read_text().splitlines()
    (result.parent / "predictions.jsonl").write_text("\n".join(lines[:1]) + "\n")
    show_answers(str(run))
    assert "1 of 1 questions" in " ".join(capsys.readouterr().out.split())
    show_answers(os.path.relpath(run))  # the same run by another path
    assert "1 of 1 questions" in " ".join(capsys.readouterr().out.split())
    (found,) = [one for one in Runs(tmp_path.parent).of(tmp_path.name) if one.path == run]
    assert found.tested(["evaluate.n_docs=2"]) is None, "a table of runs has what each was trained over"
    evaluate(str(run), ["evaluate.n_docs=2", f"data.corpus={found.values['data.corpus']}"])
    assert found.tested(["evaluate.n_docs=2"]) is not None
    assert load_run(run).answer(["what is the capital of kappa ?"], n_docs=3)[0].passages


def test_a_document_that_has_become_shorter_loses_the_rest(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("kappa lambda omega sigma")
    (folder / "b.txt").write_text("sigma omega")
    words = [str(folder), "data.split.size=2"]
    assert index_add(str(run), words)
    (folder / "a.txt").write_text("kappa lambda")
    second = index_add(str(run), words)
    assert second is not None and second.name == "2" and was_cut(second / "passages.jsonl")
    ids = [row["id"] for row in rows(second / "passages.jsonl")]
    assert "a.txt#1" in ids and "a.txt#2" not in ids and "b.txt#1" in ids and len(ids) == len(set(ids))
    assert "0 edited, 2 unchanged, 1 removed" in " ".join(capsys.readouterr().out.split())
    shutil.rmtree(second)  # back to the corpus before
    grown = newest(run)
    assert grown is not None and grown.number == 1 and "a.txt#2" in [row["id"] for row in rows(grown.passages)]


def test_what_fails_leaves_no_half_of_a_corpus(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "more.jsonl", [{"id": "n1", "title": "new", "text": "the capital of kappa ."}])

    def dies(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adding, "_encode", dies)
        with pytest.raises(KeyboardInterrupt):
            index_add(str(run), [str(file)])
    assert newest(run) is None and list((run / "corpus").iterdir()) == []
    twice = written(tmp_path / "twice.jsonl", [{"id": "n1", "title": "", "text": one} for one in ("a", "b")])
    for words, said in (
        ([str(twice)], "twice"),
        ([str(tmp_path / "none.jsonl")], "no passages to add"),
        ([str(file), "retriever.n_docs=2"], "says nothing of how the passages are read"),
        ([], "needs a file of passages"),
    ):
        with pytest.raises(OpenBookError, match=said):
            index_add(str(run), words)
    assert newest(run) is None and list((run / "corpus").iterdir()) == []
    assert main(["index", "remove", str(run)]) == 2


def test_bm25_reads_what_is_added_and_a_closed_book_nothing(small_system: SmallSystem, tmp_path: Path) -> None:
    file = written(tmp_path / "more.jsonl", [{"id": "n1", "title": "new", "text": "zyzzyva zyzzyva"}])
    quick = ("trainer.max_steps=1", "evaluate.before_training=false", "data.validation=")
    bm25 = train(small_system.config(tmp_path / "bm25", "retriever.kind=bm25", *quick))
    assert index_add(str(bm25), [str(file)])
    (found,) = load_run(bm25).answer(["zyzzyva ?"])
    assert found.passages[0].id == "n1"
    closed = train(small_system.config(tmp_path / "closed", "objective=closed_book", *quick))
    with pytest.raises(OpenBookError, match="the run has no passages"):
        index_add(str(closed), [str(file)])
