"""Ranks that start at different times see the same run: the first to be ready changes nothing under the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.common.processes import ends_of
from benchmarks.faults.small import start_ranks
from openbook.commands.train import train
from openbook.config.load import load_resolved
from tests.small_system import SmallSystem

# The second rank has read summary.json, and nothing else of the run, when the first is ready and waits for it.
LATE = """
import time
from pathlib import Path
from openbook.tracking.run_folder import RunFolder
from openbook.training.ranks.strategy import Ranks
ready, read, connect = Path({ready!r}), RunFolder.read_summary, Ranks.setup_environment
def connected(self):
    if rank == 0:
        ready.touch()
    connect(self)
def read_and_late(self):
    found = read(self)
    while rank == 1 and not ready.exists():
        time.sleep(0.01)
    return found
Ranks.setup_environment, RunFolder.read_summary = connected, read_and_late
"""


@pytest.mark.filterwarnings("ignore")
def test_a_late_rank_goes_on_with_a_finished_run_as_the_others_do(small_system: SmallSystem, tmp_path: Path) -> None:
    run = tmp_path / "run"
    short = ("data.validation=", "data.test=", "refresh.every=2", "trainer.max_steps=2")
    train(small_system.config(run, *short))
    words = ["resume", str(run), "trainer.max_steps=4", "trainer.devices=2", "trainer.timeout=60"]
    ends = ends_of(start_ranks(2, words, LATE.format(ready=str(tmp_path / "ready"))), 200)
    assert [code for code, _ in ends] == [0, 0], "\n".join(said[-2500:] for _, said in ends)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 4)
    settings = load_resolved(run / "config.yaml").trainer
    assert (settings.max_steps, settings.devices, settings.batch_size) == (4, 2, 2)
