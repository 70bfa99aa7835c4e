"""Sweeps by wandb against a server on the loopback: its own command line, its agents, and trials that are stopped,
crash or lose their machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
import yaml

from openbook.__main__ import main
from openbook.commands.sweep.request import SweepFile
from openbook.commands.sweep.wandb_sweep import content_of
from openbook.errors import OpenBookError
from openbook.tracking.loggers.identity import Identity
from tests.fake_wandb.server import WandbServer
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")
RATES = [0.01, 0.0001, 0.001]
FILE = {
    "method": "grid",
    "metric": {"name": "validation/recall_at_1", "goal": "maximize"},
    "early_terminate": {"type": "hyperband", "min_iter": 1},
    "parameters": {"optim.lr_generator": {"values": RATES}, "retriever.tied": {"values": [True]}},
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    wandb.teardown()
    with WandbServer().running(monkeypatch) as running:
        yield running
        wandb.teardown()


def words_of(system: SmallSystem, folder: Path, *more: str) -> list[str]:
    """EXPERIMENT SWEEP key=value ... --backend wandb, of trials with two steps."""
    file = folder / "rates.yaml"
    file.write_text(yaml.safe_dump(FILE), encoding="utf-8")
    experiment, *words = system.words(folder / "run", "trainer.max_steps=2", "trainer.validate_every=1", *more)
    kept = [word for word in words if not word.startswith(("run.", "optim.lr_generator", "wandb."))]
    return ["sweep", experiment, str(file), *kept, "--runs", str(folder / "runs"), "--backend", "wandb"]


def status(run: Path) -> str:
    return str(json.loads((run / "summary.json").read_text())["status"])


def test_wandbs_own_commands_take_the_file_and_train_its_trials(
    small_system: SmallSystem, tmp_path: Path, server: WandbServer
) -> None:
    _, experiment, name, *args = words_of(small_system, tmp_path)[:-4]
    folder = tmp_path / "runs" / "small"
    content = content_of(experiment, SweepFile.read(name), args, folder)
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    environment = {**os.environ, "WANDB_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "wandb", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "sweep0" in run("sweep", "--project", "openbook", str(tmp_path / "file.yaml"))
    run("agent", "--count", "1", "tester/openbook/sweep0")
    assert server.refused == [] and set(server.runs) == {"trial0"}
    kept, trial = server.runs["trial0"], folder / "sweep0-trial0"
    assert (kept.sweep, kept.exit_code, status(trial)) == ("sweep0", 0, "finished")
    assert kept.config["optim.lr_generator"]["value"] == RATES[0] and kept.config["retriever.tied"]["value"] is True
    written = yaml.safe_load((trial / "config.yaml").read_text().split("\n#")[0])
    assert written["optim"]["lr_generator"] == RATES[0] and written["retriever"]["tied"] is True
    assert [row["step"] for row in kept.rows if "validation/recall_at_1" in row] == [0, 1, 2]
    assert kept.summary["test/n_questions"] == 7


def test_what_interrupted_trials_become(
    small_system: SmallSystem, tmp_path: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """One command makes the sweep. Its first trial is killed, its second stopped by the sweep, and then the machine is
    taken away. The next agent resumes the first and the third, each in its folder and as the same run."""
    words = words_of(small_system, tmp_path, "trainer.checkpoint_every=1", "trainer.max_steps=5000")
    process = small_system.start(*words)
    killed, stopped, preempted = (tmp_path / "runs" / "small" / f"sweep0-trial{number}" for number in range(3))
    wait_for_step(killed)
    os.kill(owner(killed), signal.SIGKILL)
    wait_for_step(stopped)
    server.to_stop.add("trial1")
    wait_for_step(preempted)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "sweep openbook/sweep0; another agent" in said and "SWEEP_ID=sweep0" in said
    assert "stopped early by its sweep" in said and server.runs["trial1"].exit_code == 0
    assert Identity.read(stopped) == Identity("trial1", "sweep0", stopped=True)
    assert Identity.read(killed) == Identity("trial0", "sweep0") and status(killed) == "running"
    assert Identity.read(preempted) == Identity("trial2", "sweep0") and status(preempted) == "interrupted"
    assert [server.runs[f"trial{number}"].preempting for number in range(3)] == [False, False, True]
    assert server.runs["trial2"].exit_code not in (None, 0)
    for run in (killed, preempted):
        shorten(run)
    assert main([*words, "--sweep-id", "sweep0"]) == 0
    assert "2 interrupted trials of this sweep are resumed first" in capfd.readouterr().out
    assert [status(run) for run in (killed, stopped, preempted)] == ["finished", "interrupted", "finished"]
    for name in ("trial0", "trial2"):
        kept = server.runs[name]
        assert [row["step"] for row in kept.rows] == list(range(len(kept.rows))) and kept.exit_code == 0
        assert kept.summary["test/n_questions"] == 7
    assert len(server.sweeps) == 1 and set(server.runs) == {"trial0", "trial1", "trial2"} and server.refused == []


def test_nothing_is_sent_of_a_sweep_that_cannot_be_trained(
    small_system: SmallSystem, tmp_path: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    words = words_of(small_system, tmp_path)
    assert main([*words, "--dry-run"]) == 0 and "nothing is sent: dry run" in capfd.readouterr().out
    assert main([*words, "trainer.validate_every=0", "data.validation="]) == 2
    assert "do not measure the metric" in capfd.readouterr().err
    file = tmp_path / "rates.yaml"
    parameters = {"optim.lr_generator": {"values": [0.01]}, "retriever.n_docs": {"values": [2, 0]}}
    file.write_text(yaml.safe_dump(FILE | {"parameters": parameters}), encoding="utf-8")
    assert main(words) == 2 and "retriever.n_docs" in capfd.readouterr().err
    assert not server.sweeps and not (tmp_path / "runs").exists()


def test_a_server_that_takes_no_sweep(
    small_system: SmallSystem, tmp_path: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.broken = True
    started = time.monotonic()
    assert main(words_of(small_system, tmp_path)) == 2 and time.monotonic() - started < 60
    assert "wandb has not taken the sweep" in (said := capfd.readouterr().err) and "--backend local" in said


def test_the_ends_of_every_parameter_are_tried_before_anything_is_sent(tmp_path: Path) -> None:
    parameters = {
        "optim.lr": {"min": 1e-5, "max": 1e-3, "distribution": "log_uniform_values"},
        "retriever.n_docs": {"values": [2, 3, 0]},
        "seed": {"value": 7},
    }
    file = tmp_path / "random.yaml"
    file.write_text(yaml.safe_dump(FILE | {"method": "bayes", "parameters": parameters}), encoding="utf-8")
    corners = SweepFile.read(str(file)).corners()
    assert [corner[0] for corner in corners] == ["optim.lr=1e-05", "optim.lr=0.001", *["optim.lr=1e-05"] * 2]
    assert [corner[1][-1] for corner in corners] == ["2", "2", "3", "0"] and {corner[2] for corner in corners} == {
        "seed=7"
    }
    with pytest.raises(OpenBookError, match=r"retriever\.n_docs"):
        SweepFile.read(str(file)).configs("rag_token", (), corners)


def wait_for_step(run: Path, timeout: float = 90) -> None:
    """Until the run has a checkpoint."""
    until = time.monotonic() + timeout
    while not (run / "checkpoints" / "last.ckpt").is_file():
        assert time.monotonic() < until, f"no checkpoint in {run}"
        time.sleep(0.1)


def owner(run: Path) -> int:
    """The process that trains the run."""
    return int((run / ".lock").read_text().split()[1])


def shorten(run: Path) -> None:
    """The rest of the run is a few steps, whatever the checkpoint's number."""
    from openbook.tracking.checkpoint import read_checkpoint
    from openbook.tracking.run_folder import RunFolder
    from openbook.utils.files.signed import signed_text

    done = read_checkpoint(RunFolder(run).newest)["global_step"]
    text = (run / "config.yaml").read_text().split("\n#")[0] + "\n"
    assert "max_steps: 5000" in text
    (run / "config.yaml").write_text(signed_text(text.replace("max_steps: 5000", f"max_steps: {done + 2}")))
