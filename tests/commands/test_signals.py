"""Signals in and outside of training: the command ends with their code, says so, and what was begun can be resumed."""

import json
import os
import signal
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from openbook.__main__ import main
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")

# Where a signal arrives: what is called there, and at which of its calls.
PHASES = {
    "reading the data": ("openbook.commands.train.prepare", 1),
    "planning": ("openbook.setup.prepare.Prepared.plan", 1),
    "the first index": ("openbook.retrieval.corpus_encoder.PassageCoder.passes", 2),
    "the test before training": ("openbook.inference.answering.Answering.__call__", 1),
    "training": ("openbook.training.rag_module.RagModule.training_step", 2),
    "a refresh": ("openbook.refresh.rebuild.RebuildRefresh.run", 2),
    "validation": ("openbook.training.rag_module.RagModule.validation_step", 1),
    "saving": ("openbook.tracking.checkpoint_io.WholeCheckpoints.save_checkpoint", 1),
    "the test after training": ("openbook.commands.stages.Stages._load_best", 1),
    "the report": ("openbook.commands.stages.write_report", 1),
}
BEFORE_THE_FOLDER = {"reading the data"}


@pytest.fixture(scope="module")
def straight(small_system: SmallSystem, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    run = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBOOK_RUN_DIR", "")
        assert main(["train", *small_system.words(run)]) == 0
    return answers(run)


def answers(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def signalled(monkeypatch: pytest.MonkeyPatch, phase: str, number: int) -> None:
    """The process sends itself the signal when it comes to the phase."""
    address, at = PHASES[phase]
    owner, name = resolve_name(address.rpartition(".")[0]), address.rpartition(".")[2]
    original, calls = getattr(owner, name), list[int]()

    def wrapped(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_ends_the_command_with_its_code_and_the_run_can_be_resumed(
    small_system: SmallSystem,
    straight: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    phase: str,
    number: signal.Signals,
) -> None:
    run = tmp_path / "run"
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with monkeypatch.context() as patch:
        signalled(patch, phase, number)
        assert main(["train", *small_system.words(run)]) == 128 + number
    assert f"stopped by {number.name}" in capfd.readouterr().err
    assert handlers == [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    if phase in BEFORE_THE_FOLDER:
        assert not run.exists()
        return
    summary = run / "summary.json"
    assert not summary.exists() or json.loads(summary.read_text())["status"] != "running"
    monkeypatch.setenv("OPENBOOK_RUN_DIR", "")
    assert main(["resume", str(run)]) == 0
    assert json.loads(summary.read_text())["status"] == "finished"
    assert answers(run) == straight
