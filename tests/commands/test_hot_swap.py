"""Knowledge hot-swap: the table by hand, and the command end to end on a tiny run and two small corpora."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from openbook.__main__ import main
from openbook.commands.evaluate import evaluate
from openbook.commands.hot_swap import hot_swap
from openbook.commands.train import train
from openbook.errors import OpenBookError
from openbook.metrics.matching import exact_match
from openbook.metrics.prediction import Prediction
from openbook.reporting.hot_swap_table import summarize, table
from openbook.reporting.published import HOT_SWAP
from tests.conftest import LETTERS
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(path: Path, content: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


# The table


def said(id_: str, answer: str, relation: str = "capital", phrasing: str = "trained") -> Prediction:
    return Prediction(id_, f"{id_}?", ("-",), answer, relation, phrasing, (), 0.0, 0.0, ())


FACTS = {
    "original_facts": {"q1": ["Rome"], "q2": ["Oslo"], "q3": ["lira"], "h1": ["Rome"]},
    "changed_facts": {"q1": ["Oslo"], "q2": ["Rome"], "q3": ["euro"], "h1": ["Oslo"]},
}


def answers(q1: str, q2: str, q3: str, h1: str) -> list[Prediction]:
    return [said("q1", q1), said("q2", q2), said("q3", q3, "currency"), said("h1", h1, phrasing="held_out")]


def test_the_table_by_hand() -> None:
    """Three questions count. From the original: two right, one as the other corpus has it. From the changed: one right,
    one as the original has it, one neither."""
    answered = {
        "original_index": answers("rome", "the Oslo", "euro", "no"),
        "changed_index": answers("Oslo.", "Oslo", "no", "oslo"),
    }
    found = summarize(answered, FACTS)
    third = pytest.approx(1 / 3)
    assert found["table"] == {
        "original_index": {"original_facts": pytest.approx(2 / 3), "changed_facts": third},
        "changed_index": {"original_facts": third, "changed_facts": third},
    }
    assert (found["matched"], found["mismatched"], found["n_questions"]) == (pytest.approx(1 / 2), third, 3)
    assert found["by_relation"]["currency"] == {"matched": 0.0, "mismatched": 0.5, "n_questions": 1}
    assert found["by_relation"]["capital"] == {"matched": 0.75, "mismatched": 0.25, "n_questions": 2}
    assert (found["held_out"]["matched"], found["held_out"]["n_questions"]) == (0.5, 1)
    # Matched, both indexes of a question taken together: 1, 1/2, 0. Of the 27 draws one is 1 and one is 0 throughout.
    assert found["intervals"]["matched"] == [0.0, 1.0]
    # Mismatched 0, 1/2, 1/2: no draw says more than 1/2, though two answers of six are wrong in this way.
    assert found["intervals"]["mismatched"] == [0.0, 0.5]
    assert summarize(answered, FACTS, resamples=0)["intervals"] == {}


def test_answers_that_are_patterns_are_matched_as_patterns() -> None:
    facts = {"original_facts": {"q1": ["Rom[ea]"]}, "changed_facts": {"q1": ["Osl(o|a)"]}}
    answered = {"original_index": [said("q1", "Roma")], "changed_index": [said("q1", "Oslo")]}
    assert [summarize(answered, facts, regex)["matched"] for regex in (True, False)] == [1.0, 0.0]


def test_held_out_phrasings_count_where_there_are_no_others() -> None:
    only = [said("h1", "Rome", phrasing="held_out")]
    found = summarize({"original_index": only, "changed_index": only}, FACTS)
    assert (found["matched"], found["mismatched"], found["n_questions"], found["held_out"]) == (0.5, 0.5, 1, {})


def test_the_papers_figures_stand_beside_ours() -> None:
    assert HOT_SWAP["original_index"]["original_facts"] == 0.70
    same = answers("rome", "oslo", "lira", "rome")
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table({"experiment": "x", **summarize({"original_index": same, "changed_index": same}, FACTS)}))
    text = console.export_text()
    for part in ("100.0 %", "0.0 %", "70.0 %", "4.0 %", "12.0 %", "68.0 %", "69.0 %", "8.0 %", "matched", "mismatched"):
        assert part in text


# The command


@pytest.fixture(scope="module")
def run(small_system: SmallSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBOOK_RUN_DIR", "")
        folder = tmp_path_factory.mktemp("runs") / "first"
        return train(small_system.config(folder, "evaluate.before_training=false"))


@pytest.fixture(scope="module")
def swap(small_system: SmallSystem, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for another corpus in which every capital is the next letter, and the test questions about it."""
    folder = tmp_path_factory.mktemp("other")
    questions = rows(small_system.data / "test.jsonl")
    next_one = {word: LETTERS[(place + 1) % len(LETTERS)] for place, word in enumerate(LETTERS)}
    passages = rows(small_system.data / "passages.jsonl")
    asked = {question["positive_ids"][0]: question["answers"][0] for question in questions}
    for passage in passages:
        if passage["id"] in asked:
            city = asked[passage["id"]]
            passage["text"] = passage["text"].replace(f" is {city} .", f" is {next_one[city]} .")
    changed = [{**question, "answers": [next_one[question["answers"][0]]]} for question in questions]
    return [
        f"hot_swap.corpus={written(folder / 'passages.jsonl', passages)}",
        f"hot_swap.facts={small_system.data / 'test.jsonl'}",
        f"hot_swap.changed_facts={written(folder / 'changed.jsonl', changed)}",
    ]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def value(swap: list[str], key: str) -> str:
    return next(word.partition("=")[2] for word in swap if word.startswith(f"hot_swap.{key}="))


def test_two_corpora_are_answered_and_the_run_is_as_before(run: Path, swap: list[str]) -> None:
    before = digests(run)
    words = [*swap, "evaluate.n_docs=20"]  # of 37: some that differ are among them
    path = hot_swap(str(run), words)
    found = json.loads(path.read_text())
    assert path == run / "hot_swap" / "summary.json"
    assert {name: digest for name, digest in digests(run).items() if not name.startswith("hot_swap")} == before
    original, changed = (rows(path.parent / f"predictions_{name}_index.jsonl") for name in ("original", "changed"))
    assert [row["id"] for row in original] == [row["id"] for row in changed]
    assert found["n_questions"] == len(original) == 7
    facts = {row["id"]: row["answers"] for row in rows(Path(value(swap, "changed_facts")))}
    assert {row["id"]: row["answers"] for row in changed} == facts
    for index, predictions in (("original_index", original), ("changed_index", changed)):
        right = [exact_match(row["prediction"], facts[row["id"]]) for row in predictions]
        assert found["table"][index]["changed_facts"] == pytest.approx(sum(right) / 7)
    # what is read from the other index is the other corpus
    texts = {row["id"]: row["text"] for row in rows(Path(value(swap, "corpus")))}
    read = [passage for row in changed for passage in row["passages"]]
    assert read and all(passage["text"] == texts[passage["id"]] for passage in read)
    first = {passage["id"]: passage["text"] for row in original for passage in row["passages"]}
    assert any(texts[id_] != text for id_, text in first.items()), "the original's passages, not the other's"
    # once more takes the place of the first
    assert json.loads(hot_swap(str(run), words).read_text()) == found
    assert not [name.name for name in run.iterdir() if name.name.startswith(".")]


def test_swapping_back_gives_the_first_answers_exactly(run: Path, swap: list[str], small_system: SmallSystem) -> None:
    """A snapshot is a value: what was answered from another one in between leaves no trace."""
    other = [f"data.corpus={value(swap, 'corpus')}", f"data.test={value(swap, 'changed_facts')}"]
    paths = [evaluate(str(run), words) for words in ([], other, [])]
    first, changed, again = (rows(path.parent / "predictions.jsonl") for path in paths)
    # Each says which files it comes from.
    files = [small_system.data / "passages.jsonl", small_system.data / "test.jsonl"]
    others = [Path(value(swap, "corpus")), Path(value(swap, "changed_facts"))]
    for path, used in zip([run / "summary.json", *paths], [files, files, others, files], strict=True):
        corpus, test = (hashlib.sha256(file.read_bytes()).hexdigest() for file in used)
        said = json.loads(path.read_text())["data"]
        assert said.items() >= {"corpus": corpus, "test": test}.items()
    assert first == again == rows(run / "predictions.jsonl")
    assert first != changed and [row["id"] for row in first] == [row["id"] for row in changed]


def test_only_changed_passages_are_encoded(run: Path, swap: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The weights are the run's: of its kept vectors 7 of 37 passages differ."""
    evaluate(str(run), [])
    capsys.readouterr()
    again = Path(value(swap, "corpus")).with_name("again.jsonl")
    passages = rows(Path(value(swap, "corpus")))
    again.write_text(
        "".join(
            json.dumps({**row, "text": row["text"] + (" one" if place < 5 else "")}) + "\n"
            for place, row in enumerate(passages)
        ),
        encoding="utf-8",
    )
    evaluate(str(run), [f"data.corpus={again}"])
    encoded = capsys.readouterr().out
    assert "encoding the corpus: 37 " not in encoded


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("hot_swap.corpus=nowhere.jsonl", r"no such file \(hot_swap.corpus\): got nothing at nowhere.jsonl"),
        ("hot_swap.facts=", r"a hot-swap needs it \(hot_swap.facts\): got nothing"),
        ("hot_swap.corpus=factbook_changed", r"it does not go with a corpus of your own \(hot_swap.corpus\)"),
        ("hot_swap.changed_facts={facts}", r"right by both sets of facts .* got 7 of 7, the first is 'q30'"),
        ("hot_swap.changed_facts={train}", r"ask different questions .* got 30 ids that differ"),
        ("hot_swap.corpus={corpus}", r"both indexes would be of the same corpus \(hot_swap.corpus\)"),
        ("objective=closed_book", r"this run has no index to swap \(objective\): got closed_book"),
        ("hot_swap.corpu=x", r"Did you mean hot_swap.corpus\?"),
    ],
)
def test_bad_input_is_said(
    override: str, expected: str, run: Path, swap: list[str], small_system: SmallSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_models(*_: object) -> None:
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr("openbook.setup.models.rag_module", no_models)
    names = {"facts": "test", "train": "train", "corpus": "passages"}
    override = override.format(**{name: small_system.data / f"{file}.jsonl" for name, file in names.items()})
    with pytest.raises(OpenBookError, match=expected):
        hot_swap(str(run), [*swap, override])


def test_a_broken_second_corpus_is_found_before_a_model_answers(
    run: Path, swap: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_models(*_: object) -> None:
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr("openbook.setup.models.rag_module", no_models)
    (tmp_path / "broken.jsonl").write_text('{"id": "p0", "title": "t", "text": "x"}\n{"id": \n', encoding="utf-8")
    with pytest.raises(OpenBookError, match=r"broken.jsonl:2"):
        hot_swap(str(run), [*swap, f"hot_swap.corpus={tmp_path / 'broken.jsonl'}"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["hot-swap"], "`hot-swap` needs a run folder"),
        (["compare"], "`compare` needs an experiment"),
        (["compare", "--seeds", "0"], "`compare` needs an experiment"),
    ],
)
def test_the_command_names_what_is_missing(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert text in capsys.readouterr().err


def test_patterns_are_not_compared_as_texts(run: Path, swap: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Answered(Exception):  # noqa: N818
        """The checks are over."""

    def stop(*_: object) -> None:
        raise Answered

    monkeypatch.setattr("openbook.commands.hot_swap.answer_test", stop)
    same = f"hot_swap.changed_facts={value(swap, 'facts')}"
    with pytest.raises(Answered):
        hot_swap(str(run), [*swap, same, "evaluate.regex_answers=true"])
