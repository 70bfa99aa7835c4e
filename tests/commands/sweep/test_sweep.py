"""Sweeps: files in wandb's format, what is refused in them, and trials trained here and continued."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from openbook.__main__ import main
from openbook.commands.sweep.request import SweepFile
from openbook.config.load import EXPERIMENTS
from openbook.errors import OpenBookError
from openbook.reporting.sweep_report import Tried, in_order
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")
METRIC = {"name": "validation/recall_at_1", "goal": "maximize"}
GRID = {
    "method": "grid",
    "metric": METRIC,
    "parameters": {"optim.lr": {"values": [0.001, 0.01]}, "retriever.n_docs": {"values": [2, 3]}},
}


def written(path: Path, content: object = None, **more: object) -> Path:
    path.write_text(yaml.safe_dump(GRID | more if content is None else content), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in (EXPERIMENTS / "sweeps").glob("*.yaml")))
def test_every_shipped_sweep_can_be_trained_by_rag_token(name: str) -> None:
    file = SweepFile.read(name)
    trials = file.trials()
    assert len(trials) >= 3 and len(file.configs("rag_token", (), trials)) == len(trials)


def test_a_grid_is_every_combination_the_last_changing_fastest(tmp_path: Path) -> None:
    file = SweepFile.read(str(written(tmp_path / "grid.yaml")))
    wanted = [(f"optim.lr={lr}", f"retriever.n_docs={n}") for lr in ("0.001", "0.01") for n in (2, 3)]
    assert file.trials() == wanted and file.trials(count=3) == wanted[:3]
    assert file.name == "grid" and file.metric == ("validation/recall_at_1", True)


def test_draws_keep_to_their_distributions_and_their_seed(tmp_path: Path) -> None:
    parameters = {
        "optim.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3},
        "trainer.batch_size": {"min": 2, "max": 9},
        "retriever.temperature": {"min": 0.5, "max": 1.5},
        "retriever.tied": {"values": [True, False], "probabilities": [0.9, 0.1]},
        "trainer.max_steps": {"value": 7},
    }
    file = SweepFile.read(str(written(tmp_path / "draws.yaml", method="random", parameters=parameters)))
    drawn = [dict(word.split("=") for word in trial) for trial in file.trials(400, seed=3)]
    assert file.trials(400, seed=3) == file.trials(400, seed=3) != file.trials(400, seed=4)
    rates = [math.log10(float(one["optim.lr"])) for one in drawn]
    assert -5 <= min(rates) < -4.9 and -3.1 < max(rates) <= -3 and abs(sum(rates) / len(rates) + 4) < 0.1
    assert {int(one["trainer.batch_size"]) for one in drawn} == set(range(2, 10))
    assert all(0.5 <= float(one["retriever.temperature"]) <= 1.5 for one in drawn)
    assert 0.85 < sum(one["retriever.tied"] == "true" for one in drawn) / len(drawn) < 0.95
    assert {one["trainer.max_steps"] for one in drawn} == {"7"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"paramters": {}}, "paramters"),
        ({"method": "gird"}, "an unknown method"),
        ({"metric": {"goal": "maximize"}}, "no metric"),
        ({"parameters": {}}, "no parameters"),
        ({"parameters": {"lr": {"values": [1]}}}, "lr cannot be swept"),
        ({"parameters": {"run.dir": {"values": ["a"]}}}, "run.dir cannot be swept"),
        ({"parameters": {"optim.lr": {"values": []}}}, "value: X, values"),
        ({"parameters": {"optim.lr": {"min": 1.0, "max": 2.0}}}, "in a grid"),
        ({"method": "random", "parameters": {"optim.lr": {"min": "1e-5", "max": 1e-3}}}, "YAML reads 1e-5 as text"),
        (
            {
                "method": "random",
                "parameters": {"optim.lr": {"min": 0.0, "max": 1.0, "distribution": "log_uniform_values"}},
            },
            "min above 0",
        ),
        (
            {"method": "random", "parameters": {"optim.lr": {"values": [1, 2], "probabilities": [0.5, 0.6]}}},
            "one probability",
        ),
        ({"run_cap": -1}, "a number of runs"),
        ({"early_terminate": {"type": "median", "min_iter": 2}}, "ends a trial early"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, "ends a trial early"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 9}}, "ends a trial early"),
        ({"early_terminate": {"type": "hyperband", "min_iters": 2, "min_iter": 2}}, "ends a trial early"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path: Path, more: dict[str, object], said: str) -> None:
    with pytest.raises(OpenBookError, match=said):
        SweepFile.read(str(written(tmp_path / "wrong.yaml", **more)))


def test_a_trial_that_cannot_be_trained_stops_the_sweep_before_it_starts(tmp_path: Path) -> None:
    parameters = {"refresh.mode": {"values": ["blocking", "sometimes"]}, "retriever.n_docs": {"values": [0]}}
    file = SweepFile.read(str(written(tmp_path / "bad.yaml", parameters=parameters)))
    with pytest.raises(OpenBookError, match="2 problems") as caught:
        file.configs("rag_token", (), file.trials())
    assert "sometimes" in str(caught.value) and "retriever.n_docs" in str(caught.value)


def test_a_metric_that_no_run_measures_is_refused(tmp_path: Path) -> None:
    file = SweepFile.read(str(written(tmp_path / "m.yaml", metric={"name": "validation/rouge_l", "goal": "maximize"})))
    with pytest.raises(OpenBookError, match="do not measure the metric"):
        file.configs("rag_token", (), file.trials())
    file = SweepFile.read(str(written(tmp_path / "m.yaml")))
    with pytest.raises(OpenBookError, match="expected one of train/nll"):
        file.configs("rag_token", ("data.validation=",), file.trials())


def test_data_of_ones_own_are_validated_as_often_as_the_index_is_refreshed(tmp_path: Path) -> None:
    file = SweepFile.read("n_docs")
    own = tuple(f"data.{name}={tmp_path}/{name}.jsonl" for name in ("corpus", "train", "validation", "test"))
    assert {config.trainer.validate_every for config in file.configs("rag_token", own, file.trials())} == {0}


def test_an_endless_or_foreign_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match="no end of its own"):
        SweepFile.read(str(written(tmp_path / "a.yaml", method="random"))).trials()
    with pytest.raises(OpenBookError, match="wandb's own search"):
        SweepFile.read(str(written(tmp_path / "b.yaml", method="bayes"))).trials()
    with pytest.raises(OpenBookError, match="one of learning_rates, n_docs, refresh"):
        SweepFile.read("refersh")


def test_trials_without_a_value_come_last() -> None:
    tried = [Tried({"a": str(n)}, value, {}, "") for n, value in enumerate((0.2, None, 0.9, 0.5))]
    assert [one.value for one in in_order(tried, ("m", True))] == [0.9, 0.5, 0.2, None]
    assert [one.value for one in in_order(tried, ("m", False))] == [0.2, 0.5, 0.9, None]


def test_a_sweep_is_trained_tabulated_and_continued(
    small_system: SmallSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "rates.yaml", parameters={"optim.lr_generator": {"values": [0.01, 0.0001]}})
    experiment, *words = (word for word in small_system.words(tmp_path / "run") if not word.startswith("run."))
    words = [word for word in words if not word.startswith("optim.lr_generator")]
    command = ["sweep", experiment, str(file), *words, "--runs", str(tmp_path / "runs")]
    assert main([*command, "--dry-run", "--quiet"]) == 0  # which leaves what was asked for
    assert "2 to train" in capfd.readouterr().out and not (tmp_path / "runs").exists()
    assert main(command) == 0
    folder = tmp_path / "runs" / "small" / "sweeps" / "rates"
    found = json.loads((folder / "trials.json").read_text())
    assert found["metric"] == {"name": "validation/recall_at_1", "goal": "maximize"}
    assert {one["settings"]["optim.lr_generator"] for one in found["trials"]} == {"0.01", "0.0001"}
    values = [one["value"] for one in found["trials"]]
    assert values == sorted(values, reverse=True) and all(0 <= value <= 1 for value in values)
    for one in found["trials"]:
        config = yaml.safe_load((Path(one["run"]) / "config.yaml").read_text().split("\n#")[0])
        assert str(config["optim"]["lr_generator"]) == one["settings"]["optim.lr_generator"]
    assert (folder / "parallel.png").stat().st_size > 5000 and f"SWEEP={file} ARGS=" in (
        folder / "table.md"
    ).read_text()
    capfd.readouterr()
    assert main(command) == 0
    assert "2 finished, 0 to train" in capfd.readouterr().out


def test_the_file_for_wandb_says_what_its_agents_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    words = ["sweep", "rag_token", "refresh", "seed=3", "--backend", "wandb", "--runs", str(tmp_path), "--dry-run"]
    assert main([*words, "--quiet"]) == 0
    content = yaml.safe_load(capfd.readouterr().out.split("nothing is sent")[0])
    tail = [str(tmp_path / "rag_token"), "rag_token", "seed=3", "wandb.mode=online", "${args_no_hyphens}"]
    assert content["command"] == ["${env}", sys.executable, "-m", "openbook.commands.sweep.trial", *tail]
    shipped = yaml.safe_load((EXPERIMENTS / "sweeps" / "refresh.yaml").read_text())
    assert {key: content[key] for key in shipped} == shipped
    assert main([*words[:4], "--sweep-id", "abc"]) == 2 and "local sweeps have no id" in capfd.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    words = [sys.executable, "-m", "openbook", "keys"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    assert process.wait(timeout=60) == 0
