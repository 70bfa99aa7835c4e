"""`compare`: which runs are the same, what is trained, and what the tables say."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from benchmarks.common.docs_results import main as write_docs
from openbook.commands.child_process import run_command
from openbook.commands.comparison import compare as compare_module
from openbook.commands.comparison.compare import compare as run_compare
from openbook.commands.comparison.request import Request
from openbook.commands.parsers import parse
from openbook.config.load import load_experiment, to_yaml
from openbook.errors import OpenBookError
from openbook.metrics.bootstrap import wilson
from openbook.reporting import comparison_files as compare_files
from openbook.reporting import published as paper
from openbook.reporting.comparison_table import METRICS, Row, Spread, measures, orderings, paired, shown, table
from openbook.tracking.open_keys import left_open
from openbook.tracking.search.found_run import without_effect
from openbook.tracking.search.run_search import Runs, identity_of, unlike
from openbook.utils.signals import Stopped
from tests.small_system import SmallSystem

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
SECONDS = {"total": 400.0, "setup": 20.0, "train": 200.0, "refresh": 100.0, "evaluate": 80.0}


def compare(words: Sequence[str]) -> None:
    run_compare(Request.of(parse(["compare", *words])))


def rates(match: float, **more: Any) -> dict[str, Any]:
    return {"exact_match": match, "f1": match, "recall_at_1": 0.5, "recall_at_5": 0.75, "n_questions": 600, **more}


def make_run(
    root: Path,
    experiment: str,
    name: str,
    overrides: Sequence[str] = (),
    status: str = "finished",
    match: float = 0.5,
    steps: int = 60,
    age: float = 0.0,
    **more: Any,
) -> Path:
    """A run folder as training leaves it, without weights."""
    config = load_experiment(experiment, overrides, EXPERIMENTS)
    folder = root / config.experiment / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    summary = {
        "experiment": config.experiment,
        "status": status,
        "steps": steps,
        "seed": config.seed,
        "seconds": SECONDS,
        "test": rates(match) if status == "finished" else {},
        "before_training": {},
        "index": {"generation": 2},
        **more,
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    for file in (*folder.iterdir(), folder):
        os.utime(file, (time.time() - age, time.time() - age))
    return folder


def make_evaluation(run: Path, number: int, overrides: list[str], match: float) -> None:
    folder = run / "evaluations" / str(number)
    folder.mkdir(parents=True)
    content = {"overrides": overrides, "test": rates(match)}
    (folder / "summary.json").write_text(json.dumps(content), encoding="utf-8")


def make_predictions(folder: Path, matches: Sequence[float | None], held_out: float = 0.0, first: int = 0) -> None:
    """Questions q<first>, ..., and as many in held-out phrasings."""
    lines = [
        {"id": f"q{number}{phrasing}", "phrasing": phrasing, "exact_match": match}
        for phrasing, values in (("trained", matches), ("held_out", [held_out] * len(matches)))
        for number, match in enumerate(values, first)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of runs in a working directory that has the project's experiments."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(EXPERIMENTS)
    return tmp_path / "runs"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[list[str]]:
    """What would have been started; training leaves a finished run, but of seed 13 it fails."""
    started: list[list[str]] = []

    def pretend(words: Sequence[str]) -> int:
        started.append(list(words))
        command, subject, *overrides = words
        if command == "train":
            name = next(word.partition("=")[2] for word in overrides if word.startswith("run.name="))
            failed = "seed=13" in overrides
            make_run(root, subject, name, overrides, "running" if failed else "finished", match=0.25)
            return 1 if failed else 0
        if command == "resume":
            summary = json.loads((Path(subject) / "summary.json").read_text())
            summary |= {"status": "finished", "test": rates(0.75)}
            (Path(subject) / "summary.json").write_text(json.dumps(summary))
        if command == "evaluate":
            make_evaluation(Path(subject), 1 + len(list(Path(subject).glob("evaluations/*"))), overrides, 0.125)
        return 0

    monkeypatch.setattr(compare_module, "run_command", pretend)
    for plot in ("plot_rows", "plot_sweep"):  # which take seconds
        monkeypatch.setattr(compare_files, plot, lambda rows, *paths: None)
    return started


# Which runs are the same


@pytest.mark.parametrize(
    "override",
    [
        "run.name=other",
        "wandb.mode=disabled",
        "data.cache=elsewhere",
        "trainer.accelerator=cpu",
        "shows=nothing",
        "trainer.validate_every=7",
        "evaluate.before_training=false",
        "retriever.override_folder=true",  # which finished runs of before have
    ],
)
def test_keys_without_effect_make_no_other_run(override: str) -> None:
    plain = load_experiment("rag_token", [], EXPERIMENTS)
    assert identity_of(load_experiment("rag_token", [override], EXPERIMENTS)) == identity_of(plain)


@pytest.mark.parametrize("key", ["trainer.validate_every", "evaluate.validation_questions"])
def test_validations_decide_a_run_where_they_choose_its_weights(key: str) -> None:
    for chooses, same in (((), True), (("evaluate.checkpoint=best",), False), (("trainer.patience=2",), False)):
        one, other = (
            identity_of(load_experiment("rag_token", [f"{key}={value}", *chooses], EXPERIMENTS)) for value in (1, 1000)
        )
        assert (one == other) == same


def test_a_run_of_chosen_values_is_not_taken_for_one_that_left_them_open(root: Path) -> None:
    own = [f"data.{name}={name}.jsonl" for name in ("corpus", "train", "validation", "test")]
    settled = ["warmup.steps=200", "refresh.every=30", "trainer.max_steps=60", "retriever.temperature=0.05"]
    chosen = [*own, *settled, "optim.lr=1e-7"]
    asked = load_experiment("rag_token", own, EXPERIMENTS)
    rest = [key for key in left_open(asked) if key not in {word.partition("=")[0] for word in chosen}]
    make_run(root, "rag_token", "quick", chosen, left_open=rest)
    assert Runs(root).find(asked) is None
    found = Runs(root).find(load_experiment("rag_token", chosen, EXPERIMENTS))
    assert found is not None and found.path.name == "quick"
    make_run(root, "rag_token", "whole", chosen, left_open=left_open(asked))
    found = Runs(root).find(asked)
    assert found is not None and found.path.name == "whole"


def test_a_killed_run_goes_on_with_what_it_chose_itself(root: Path, commands: list[list[str]]) -> None:
    words = ["data.corpus=p.jsonl", "data.train=t.jsonl", "data.validation=v.jsonl", "data.test=x.jsonl"]
    make_run(
        root,
        "rag_token",
        "cut",
        [*words, "retriever.temperature=0.05", "warmup.steps=200"],
        status="interrupted",
        steps=9,
        left_open=left_open(load_experiment("rag_token", words, EXPERIMENTS)),
    )
    compare(["rag_token", *words, "retriever.temperature=0", "warmup.steps=-1", "--seeds", "0"])
    assert commands == [["resume", str(Path("runs/rag_token/cut")), *words]]


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "trainer.max_steps=7",
        "optim.clip=0.5",
        "evaluate.n_docs=9",
        "trainer.devices=2",
        "data.test=other.jsonl",
        "decode.beams=3",
    ],
)
def test_every_other_key_does(override: str) -> None:
    plain = load_experiment("rag_token", [], EXPERIMENTS)
    changed = load_experiment("rag_token", [override], EXPERIMENTS, training=False)
    assert identity_of(changed) != identity_of(plain)


def test_two_ranks_of_eight_questions_are_one_of_sixteen() -> None:
    two = load_experiment("rag_token", ["trainer.devices=2", "trainer.batch_size=8"], EXPERIMENTS)
    assert identity_of(two) == identity_of(load_experiment("rag_token", [], EXPERIMENTS))


@pytest.mark.parametrize(
    ("start", "experiment"),
    [
        ("dpr", "dpr"),
        ("runs/dpr/gone", "dpr"),
        ("elsewhere/mine/gone", "mine"),
        ("paper/nq/rag_token", "paper/nq/rag_token"),
        ("/deep/runs/paper/nq/rag_token/gone", "paper/nq/rag_token"),
        ("", ""),
    ],
)
def test_a_run_is_known_by_the_experiment_it_starts_from(start: str, experiment: str) -> None:
    config = load_experiment("rag_token", [f"retriever.start_from={start}"], EXPERIMENTS)
    assert identity_of(config)["retriever.start_from"] == experiment


def test_an_experiment_in_a_folder_is_added_where_others_start_from_it() -> None:
    """By its whole name, and so is the command that makes the table again."""
    request = Request.of(parse(["compare", "paper/webquestions/rag_token", "--seeds", "3"]))
    assert [word for word, _ in request.configs()] == ["paper/webquestions/rag_token", "paper/nq/rag_token"]
    assert 'EXPS="paper/webquestions/rag_token"' in request.command


def test_a_run_that_does_not_know_a_key_had_its_default(root: Path) -> None:
    run = make_run(root, "rag_token", "old")
    text = (run / "config.yaml").read_text()
    assert "decode:" in text
    kept, skipping = [], False
    for line in text.splitlines():
        skipping = line == "decode:" or (skipping and line.startswith(" "))
        kept += [] if skipping else [line]
    (run / "config.yaml").write_text("\n".join(kept))
    assert Runs(root).find(load_experiment("rag_token", [], EXPERIMENTS)) is not None
    assert Runs(root).find(load_experiment("rag_token", ["decode.beams=3"], EXPERIMENTS)) is None


def test_a_finished_run_goes_before_one_that_got_furthest(root: Path) -> None:
    wanted = load_experiment("rag_token", [], EXPERIMENTS)
    make_run(root, "rag_token", "short", status="interrupted", steps=10)
    long = make_run(root, "rag_token", "long", status="interrupted", steps=40)
    make_run(root, "rag_token", "other", ["optim.clip=0.5"])
    found = Runs(root).find(wanted)
    assert found is not None and found.path == long and not found.finished
    over = make_run(root, "rag_token", "over", age=9000)
    found = Runs(root).find(wanted)
    assert found is not None and found.path == over


def test_encoders_must_come_from_the_very_run_that_is_compared(root: Path) -> None:
    dpr = make_run(root, "dpr", "a")
    make_run(root, "dpr_rag_token", "b", [f"retriever.start_from={dpr}"])
    wanted = load_experiment("dpr_rag_token", [], EXPERIMENTS)
    assert wanted.retriever.start_from == "dpr"
    assert Runs(root).find(wanted) is not None
    assert Runs(root).find(wanted, Path("moved/dpr/a")) is not None
    assert Runs(root).find(wanted, root / "dpr" / "c") is None


def test_a_run_whose_origin_is_gone_is_still_known(root: Path) -> None:
    run = make_run(root, "dpr_rag_token", "b", ["retriever.start_from=runs/dpr/gone"])
    found = Runs(root).find(load_experiment("dpr_rag_token", [], EXPERIMENTS))
    assert found is not None and found.path == run


def test_runs_of_other_code_or_data_are_told_apart(root: Path) -> None:
    def made(name: str, commit: str = "", **data: str) -> None:
        run = make_run(root, "rag_token", name, **({"data": data} if data else {}))
        if commit:
            (run / "environment.json").write_text(json.dumps({"commit": commit}))

    made("old")
    made("a", "a" * 40, corpus="c1", test="t1")
    made("b", "a" * 40, corpus="c1")
    assert unlike(Runs(root).of("rag_token")) == ""
    made("c", "b" * 40 + "+", corpus="c2", test="t1")
    runs = Runs(root).of("rag_token")
    assert unlike(runs) == "2 commits (aaaaaaaa, bbbbbbbb+), 2 corpora (c1, c2)"
    assert unlike(run for run in runs if run.path.name != "c") == ""
    evaluation = root / "rag_token" / "a" / "evaluations" / "1"
    make_evaluation(evaluation.parent.parent, 1, [], 0.5)
    again = {**json.loads((evaluation / "summary.json").read_text()), "data": {"test": "t2"}}
    (evaluation / "summary.json").write_text(json.dumps(again))
    assert "2 files of test questions (t1, t2)" in unlike(Runs(root).of("rag_token"))


def test_answers_come_from_where_the_figures_come_from(root: Path) -> None:
    run = make_run(root, "rag_token", "a")

    def found() -> dict[str, float]:
        return Runs(root).of("rag_token")[0].matches()

    assert found() == {}
    make_predictions(run, [1.0, 0.0])
    assert found() == {"q0trained": 1.0, "q1trained": 0.0}
    make_evaluation(run, 1, [], 0.5)
    assert found() == {}
    make_predictions(run / "evaluations" / "1", [0.0, 1.0])
    assert found() == {"q0trained": 0.0, "q1trained": 1.0}
    make_predictions(run / "evaluations" / "1", [None])
    assert found() == {}


def test_what_cannot_be_read_is_named_and_left_out(root: Path) -> None:
    run = make_run(root, "rag_token", "broken")
    (run / "config.yaml").write_text("experiment: rag_token\nno_such_key: 1\n")
    runs = Runs(root)
    assert runs.of("rag_token") == []
    assert "no_such_key" in runs.unreadable[run]


def test_figures_come_from_the_newest_evaluation_without_overrides(root: Path) -> None:
    run = make_run(root, "rag_token", "a", match=0.5)

    def match(*overrides: str) -> float | None:
        found = Runs(root).of("rag_token")[0].evaluation(overrides)
        return found and found["exact_match"]

    assert match() == 0.5
    assert match("evaluate.n_docs=4") == 0.5  # what the run was tested with
    assert match("evaluate.n_docs=8") is None
    make_evaluation(run, 2, ["data.cache=elsewhere"], 0.625)
    make_evaluation(run, 10, [], 0.75)
    make_evaluation(run, 11, ["evaluate.n_docs=8"], 0.125)
    make_evaluation(run, 12, ["evaluate.n_docs=8", "decode.beams=2"], 0.0)
    assert match() == 0.75
    assert match("evaluate.n_docs=8") == 0.125


def test_times_are_those_of_the_runs_most_alike(root: Path) -> None:
    wanted = load_experiment("rag_token", ["trainer.max_steps=30"], EXPERIMENTS)
    assert Runs(root).seconds(wanted) is None
    make_run(root, "closed_book", "a", ["trainer.max_steps=60"])
    assert Runs(root).seconds(wanted) == 20 + 80 + 300 * 30 / 60
    make_run(root, "rag_token", "b", ["trainer.max_steps=90"])
    assert Runs(root).seconds(wanted) == 20 + 80 + 300 * 30 / 90
    make_run(root, "rag_token", "c", ["trainer.max_steps=30", "seed=4"])
    runs = Runs(root)
    assert runs.seconds(wanted) == 400
    assert runs.test_seconds(wanted) == 20 + 80 + 100 / 2
    make_run(root, "rag_token", "d", ["trainer.max_steps=30"], status="interrupted", steps=20)
    left = Runs(root)
    assert left.seconds(wanted, left.find(wanted)) == 20 + 80 + 300 * 10 / 30


# What is done


def test_what_is_there_is_used_and_what_is_missing_is_trained(
    root: Path, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(root, "rag_token", "a", ["seed=0"], match=0.5)
    make_run(root, "rag_token", "b", ["seed=1"], "interrupted", steps=20)
    make_run(root, "rag_token", "c", ["seed=2", "optim.clip=0.5"])  # of another configuration
    compare(["rag_token", "--seeds", "0 1 2"])
    assert commands == [["resume", "runs/rag_token/b"], ["train", "rag_token", "seed=2", "run.name=seed-2"]]
    said = capsys.readouterr().out
    assert "3 runs requested, 1 finished, 2 to train" in said
    assert "runs/rag_token/b at step 20" in said
    assert "2 of 2: train rag_token seed 2" in said
    assert "expected end" in said
    (folder,) = (root / "compare").iterdir()
    written = json.loads((folder / "table.json").read_text())
    row = written["experiments"]["rag_token"]
    assert row["measures"]["exact_match"] == {"mean": 0.5, "min": 0.25, "max": 0.75, "n": 3}
    assert row["runs"] == {"0": "runs/rag_token/a", "1": "runs/rag_token/b", "2": "runs/rag_token/seed-2"}
    assert "0.500 (0.250 to 0.750)" in (folder / "table.md").read_text()
    commands.clear()
    compare(["rag_token", "--seeds", "0 1 2"])
    assert commands == []


def test_a_dry_run_does_nothing(root: Path, commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    make_run(root, "rag_token", "a")
    make_run(root, "rag_token", "b", ["seed=1"], "running", steps=20)
    compare(["rag_token", "bm25", "--seeds", "0,1", "--dry-run", "--test-n-docs", "4 8"])
    assert commands == []
    assert not (root / "compare").exists()
    said = capsys.readouterr().out
    assert "4 runs requested, 1 finished, 3 to train, 3 to test with other numbers of passages" in said
    assert "bm25 seed 1: train, 7 min" in said
    assert "runs/rag_token/b seems to be running" in said
    assert "dry run" in said


def test_arguments_make_runs_of_their_own(root: Path, commands: list[list[str]]) -> None:
    make_run(root, "rag_token", "seed-0", match=0.5)
    words = ["rag_token", "trainer.max_steps=6", "wandb.mode=disabled", "--name", "short"]
    compare(words)
    (first,) = commands
    assert first[:5] == ["train", "rag_token", "seed=0", *words[1:3]]
    assert first[5].startswith("run.name=seed-0-")
    commands.clear()
    compare(words)
    assert commands == []
    assert "wandb" not in (text := (root / "compare/short/table.md").read_text())
    assert 'make compare EXPS="rag_token" SEEDS="0" ARGS="trainer.max_steps=6"' in text


def test_a_failing_run_does_not_stop_the_others(root: Path, commands: list[list[str]]) -> None:
    words = ["rag_token", "closed_book", "--seeds", "13 2", "--name", "some"]
    with pytest.raises(OpenBookError, match=r"(?s)2 of 4 stages failed.*train rag_token seed 13.*ended with code 1"):
        compare(words)
    assert len(commands) == 4
    text = (root / "compare/some/table.md").read_text()
    assert "1 of 2 (seed 13 missing)" in text
    # Its process is known to be over: the next time it is continued at once.
    commands.clear()
    compare(words)
    assert [words[:2] for words in commands] == [
        ["resume", f"runs/{name}/seed-13"] for name in ("rag_token", "closed_book")
    ]


def test_a_run_that_may_be_under_way_is_left_alone(root: Path, commands: list[list[str]]) -> None:
    make_run(root, "rag_token", "a", status="running")
    with pytest.raises(OpenBookError, match=r"seems to be running \(runs/rag_token/a\).*make resume RUN="):
        compare(["rag_token"])
    assert commands == []


def test_a_run_that_was_killed_long_ago_is_continued(root: Path, commands: list[list[str]]) -> None:
    make_run(root, "rag_token", "a", status="running", age=9000)
    compare(["rag_token"])
    assert commands == [["resume", "runs/rag_token/a"]]


def test_encoders_are_trained_before_what_starts_from_them(root: Path, commands: list[list[str]]) -> None:
    compare(["dpr_rag_token", "dpr"])
    assert [words[1] for words in commands] == ["dpr", "dpr_rag_token"]
    assert "retriever.start_from=runs/dpr/seed-0" in commands[1]
    commands.clear()
    with pytest.raises(OpenBookError, match=r"(?s)2 of 2 stages failed.*no run to start from"):
        compare(["dpr_rag_token", "dpr", "--seeds", "13"])
    assert [words[1] for words in commands] == ["dpr"]


def test_encoders_to_start_from_are_made_in_the_same_place(
    root: Path, commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(root, "dpr", "elsewhere")
    compare(["dpr_rag_token", "--seeds", "0 1", "--runs", "mine", "--dry-run"])
    said = capsys.readouterr().out
    assert "4 runs requested, 0 finished" in said and "dpr: added, others start from its encoders" in said
    make_run(root, "dpr", "a", ["seed=1"])
    compare(["dpr_rag_token", "--seeds", "1"])
    assert commands == [["train", "dpr_rag_token", "seed=1", "retriever.start_from=runs/dpr/a", "run.name=seed-1"]]
    commands.clear()
    compare(["rag_token", "retriever.start_from=dpr", "--seeds", "1"])
    (command,) = commands
    assert command[4] == "retriever.start_from=runs/dpr/a"
    commands.clear()
    with pytest.raises(OpenBookError, match=r"cannot start from its own encoders \(retriever.start_from\): got dpr"):
        compare(["dpr", "retriever.start_from=dpr"])
    (tmp_path / "given").mkdir()
    (tmp_path / "given/config.yaml").write_text((root / "dpr/a/config.yaml").read_text())
    compare(["dpr_rag_token", "retriever.start_from=given", "--dry-run"])
    assert "1 runs requested" in capsys.readouterr().out


def test_runs_of_several_commits_are_warned_of(
    root: Path, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, commit in (("rag_token", "a" * 40), ("bm25", "b" * 40)):
        run = make_run(root, name, "x")
        (run / "environment.json").write_text(json.dumps({"commit": commit}))
    compare(["rag_token"])
    assert "warning" not in capsys.readouterr().out
    compare(["rag_token", "bm25"])
    assert "warning: the runs of this table come from 2 commits (aaaaaaaa, bbbbbbbb)\n" in capsys.readouterr().out


def test_verdicts_pair_the_answers_to_the_same_questions(root: Path, commands: list[list[str]]) -> None:
    """0.57 against 0.5 of 100 questions: their ranges overlap, the seven that only one of them answers tell."""
    ahead, behind = [1.0] * 57 + [0.0] * 43, [1.0] * 50 + [0.0] * 50
    for name, matches in (("rag_token", ahead), ("frozen_retriever", behind)):
        make_predictions(make_run(root, name, "a", match=sum(matches) / 100), matches)

    def order() -> dict[str, Any]:
        compare(["rag_token", "frozen_retriever", "--name", "x"])
        written = json.loads((root / "compare/x/table.json").read_text())["order"]
        return next(one for one in written if one["behind"] == "frozen_retriever")

    found = order()
    assert found["verdict"] == "agree"
    mean, low, high = found["difference"]
    assert mean == pytest.approx(0.07) and 0 < low < 0.07 < high < 0.14
    assert "| +0.070 (+0.0" in (root / "compare/x/table.md").read_text()
    make_predictions(root / "rag_token" / "a", ahead, first=1)  # other questions: the ranges decide
    found = order()
    assert (found["verdict"], found["difference"]) == ("not separated", None)


def test_the_sweep_tests_the_same_checkpoints_once(root: Path, commands: list[list[str]]) -> None:
    for name in ("rag_token", "rag_sequence", "n_docs_2"):
        make_run(root, name, "a")
    words = ["rag_token", "rag_sequence", "n_docs_2", "data.cache=there", "--test-n-docs", "1 4", "--name", "x"]
    compare(words)
    assert commands == [
        ["evaluate", f"runs/{name}/a", "evaluate.n_docs=1", "data.cache=there"]
        for name in ("rag_token", "rag_sequence")
    ]
    swept = json.loads((root / "compare/x/table.json").read_text())["n_docs_at_test"]
    assert swept["rag_sequence"]["1"]["exact_match"] == {"mean": 0.125, "min": 0.125, "max": 0.125, "n": 1}
    assert swept["rag_sequence"]["4"]["exact_match"]["mean"] == 0.5
    commands.clear()
    compare(words)
    assert commands == []


def test_a_stop_ends_it_at_once(root: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(words: Sequence[str]) -> int:
        commands.append(list(words))
        raise Stopped(15)

    monkeypatch.setattr(compare_module, "run_command", stopped)
    with pytest.raises(Stopped) as ended:
        compare(["rag_token", "--seeds", "0 1"])
    assert ended.value.code == 143
    assert len(commands) == 1


# What is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], r"nothing to compare \(EXPS\)"),
        (["rag_token", "--seeds", "0 x -1"], r"not whole numbers \(SEEDS\): got x -1, expected numbers from 0"),
        (["rag_token", "--seeds", ""], r"no seeds \(SEEDS\)"),
        (["rag_token", "--test-n-docs", "0 2"], r"not whole numbers \(TEST_N_DOCS\): got 0, expected numbers from 1"),
        (["rag_token", "seed=1"], r"not allowed in a comparison \(ARGS\): got seed=1. Name the seeds with SEEDS"),
        (
            ["rag_token", "run.dir=x", "--name", "../x"],
            r"(?s)2 problems.*ARGS.*the name of a comparison must not be a path \(NAME\)",
        ),
        (["rag_tokn", "optim.clipp=1"], r"(?s)no such experiment.*Did you mean rag_token\?"),
        (["rag_token", "bm25", "optim.clipp=1"], r"\Aunknown key \(optim.clipp\)"),
        (["rag_tokn", "bm25", "optim.clipp=1"], r"(?s)2 problems.*no such experiment.*unknown key"),
        (["rag_token", "experiments/../experiments/rag_token.yaml"], r"two experiments of one name \(EXPS\)"),
    ],
)
def test_bad_input_is_refused_before_anything_trains(
    words: list[str], said: str, root: Path, commands: list[list[str]]
) -> None:
    with pytest.raises(OpenBookError, match=said):
        compare(words)
    assert commands == []


# What the tables say


def test_measures_of_a_run() -> None:
    test = rates(0.5, utility=1.5, by_phrasing={"held_out": {"exact_match": 0.25, "recall_at_1": 0.125}})
    assert measures(test, SECONDS) == {
        "exact_match": 0.5,
        "f1": 0.5,
        "recall_at_1": 0.5,
        "recall_at_5": 0.75,
        "exact_match_held_out": 0.25,
        "recall_at_1_held_out": 0.125,
        "utility": 1.5,
        "train_seconds": 300.0,
        "n_questions": 600.0,
    }
    nothing = measures({"exact_match": None, "recall_at_1": 0.5, "f1": float("nan")})
    assert nothing == {"recall_at_1": 0.5}


def row(experiment: str, *matches: float, questions: int = 600) -> Row:
    return Row(
        experiment, {seed: {"exact_match": match, "n_questions": questions} for seed, match in enumerate(matches)}
    )


def test_a_spread_is_mean_lowest_highest_and_count() -> None:
    spread = row("rag_token", 0.25, 0.5, 0.875).spread("exact_match")
    assert spread == Spread(0.5416666666666666, 0.25, 0.875, 3)
    assert shown(spread, "exact_match") == "0.542 (0.250 to 0.875)"
    assert shown(Spread(1234.4, 1200.0, 1300.0, 2), "train_seconds") == "1,234 (1,200 to 1,300)"
    assert shown(Spread(0.5, 0.5, 0.5, 1), "exact_match") == "0.500"
    assert shown(None, "f1") == "-"


def test_the_table_keeps_the_order_given_and_puts_the_paper_beside() -> None:
    header, first, second, third = table(
        [row("rag_sequence", 0.5), row("emdr2", 0.25, 0.5), Row("dpr", missing=[0, 2])]
    )
    assert header == ["", "exact match", "runs", "the paper: test", "the paper: dev"]
    assert first == ["`rag_sequence`", "0.500", "1", "44.5 / 56.8 / 45.2 / 52.2", "44.0 / 55.8 / 44.9 / 53.4"]
    assert second == ["`emdr2`", "0.375 (0.250 to 0.500)", "2", "-", "-"]
    assert third == ["`dpr`", "-", "0 of 2 (seeds 0, 2 missing)", "-", "-"]


def test_verdicts() -> None:
    rows = [
        row("rag_token", 0.8, 0.9),
        row("frozen_retriever", 0.5, 0.6),
        row("rag_sequence", 0.85, 0.95),
        row("closed_book", 0.91, 0.92),
    ]
    verdicts = {(one.pair.ahead, one.pair.behind): one.verdict for one in orderings(rows)}
    assert verdicts == {
        ("rag_token", "frozen_retriever"): "agree",
        ("rag_token", "bm25"): "missing: bm25",
        ("frozen_retriever", "bm25"): "missing: bm25",
        ("rag_sequence", "rag_token"): "not separated",
        ("rag_token", "closed_book"): "disagree",
    }


def test_a_single_run_is_as_uncertain_as_its_questions() -> None:
    chance = row("rag_token", 0.5, questions=100).chance("exact_match")
    assert chance is not None and (chance.min, chance.max) == pytest.approx(wilson(0.5, 100))
    assert row("rag_token", 1.0, questions=100).chance("exact_match") != Spread(1.0, 1.0, 1.0, 1)
    few = orderings([row("rag_token", 0.5, questions=100), row("frozen_retriever", 0.45, questions=100)])
    many = orderings([row("rag_token", 0.5, questions=9000), row("frozen_retriever", 0.45, questions=9000)])
    assert (few[0].verdict, many[0].verdict) == ("not separated", "agree")


def test_seeds_that_met_the_same_questions_are_paired_as_one() -> None:
    def matches(experiment: str, *by_seed: dict[str, float]) -> Row:
        return Row(experiment, matches=dict(enumerate(by_seed)))

    first = matches("rag_token", {"q": 1.0, "p": 1.0}, {"q": 1.0, "p": 0.0}, {})
    second = matches("bm25", {"p": 0.0, "q": 1.0}, {"q": 0.0, "p": 1.0}, {"q": 1.0})
    # Over both seeds: q is right twice against once, p once against once.
    assert paired(first, second) == (0.25, 0.0, 0.5)
    assert paired(first, matches("bm25", {"q": 0.0}, {})) is None
    assert paired(first, Row("bm25")) is None


def test_the_papers_figures_are_whole() -> None:
    for published in (*paper.COUNTERPARTS.values(), *paper.OTHERS):
        assert len(published.test) == len(published.dev) == len(paper.DATASETS)
        assert any(published.test) or any(published.dev)
    assert [pair.published() for pair in paper.PAIRS] == [
        (43.5, 37.8),
        (43.5, 29.7),
        (37.8, 29.7),
        (44.5, 44.1),
        (44.1, 36.6),
    ]
    assert {name for pair in paper.PAIRS for name in (pair.ahead, pair.behind)} <= set(paper.COUNTERPARTS)


# For real


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_small_system_from_training_to_docs(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    experiment, *overrides = small_system.words(tmp_path / "x" / "run", "trainer.max_steps=2", "evaluate.utility=false")
    overrides = [word for word in overrides if not word.startswith("run.")]
    words = [experiment, *overrides, "--runs", str(tmp_path / "all"), "--test-n-docs", "1", "--name", "small"]
    compare(words)
    assert write_docs(["compare", *words]) == 0
    run = next((tmp_path / "all/small").iterdir())
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished"
    written = json.loads((tmp_path / "all/compare/small/table.json").read_text())
    measured = written["experiments"]["small"]["measures"]
    assert measured["exact_match"]["mean"] == summary["test"]["exact_match"]
    assert measured["recall_at_1"]["n"] == 1
    one = json.loads((run / "evaluations/1/summary.json").read_text())
    assert "evaluate.n_docs=1" in one["overrides"]
    assert written["n_docs_at_test"]["small"]["1"]["f1"]["mean"] == one["test"]["f1"]
    assert "<!-- small: begin -->" in (tmp_path / "docs/results.md").read_text()
    pictures = ("all/compare/small/plot.png", "all/compare/small/n_docs.png", "docs/images/results_small_n_docs.png")
    for picture in pictures:
        assert imread(tmp_path / picture).shape[1] == 1140
    assert "<svg" in (tmp_path / "all/compare/small/plot.svg").read_text()

    def none(words: Sequence[str]) -> int:
        raise AssertionError(words)

    monkeypatch.setattr(compare_module, "run_command", none)
    compare(words)


def test_a_command_in_its_own_process_gives_its_code(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["train", "no_such_experiment"]) == 2
    assert "no such experiment" in capfd.readouterr().err


def test_a_stop_is_handed_on_once_and_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntrap 'echo stopped >> {tmp_path}/said; exit 3' TERM\nsleep 20 & wait\n")
    program.chmod(0o755)
    monkeypatch.setattr("openbook.commands.child_process.sys.executable", str(program))
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Stopped, match="SIGTERM"):
        run_command(["train"])
    assert (tmp_path / "said").read_text() == "stopped\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_every_measure_has_a_heading_and_names_without_effect_are_keys() -> None:
    from openbook.config.schema import keys_of
    from openbook.tracking.search.found_run import WITHOUT_EFFECT

    assert {"exact_match", "recall_at_1", "train_seconds"} <= set(METRICS)
    for name in WITHOUT_EFFECT:
        assert any(key == name or (name.endswith(".") and key.startswith(name)) for key in keys_of()), name
    assert not without_effect("trainer.max_steps")


def test_make_hands_everything_on() -> None:
    words = ["rag_token", "a=b", "--seeds", "0 1", "--test-n-docs", "", "--runs", "x", "--name", "", "--dry-run"]
    request = Request.of(parse(["compare", *words]))
    assert (request.seeds, request.args, request.runs, request.dry_run) == ((0, 1), ("a=b",), Path("x"), True)
