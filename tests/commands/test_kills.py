"""Killed at any moment, again and again, and resumed: weights, optimizer and curves of the run that was left alone.

OPENBOOK_KILLS=60 kills as often, spread over the ways to train; without it each way is killed once.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.tracking.checkpoint import read_checkpoint
from tests.commands.test_resume import rows
from tests.small_system import SmallSystem

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

WAYS = {
    "blocking": ("refresh.every=3",),
    "amortized": ("refresh.mode=amortized", "refresh.every=4", "refresh.spread=3"),
    "rolling": ("refresh.mode=rolling", "refresh.every=3"),
    "hot": ("refresh.mode=hot", "refresh.every=3"),
    "accumulated": ("trainer.accumulate=2", "trainer.batch_size=2", "trainer.reduction=token", "refresh.every=3"),
    "two ranks": ("trainer.devices=2", "trainer.batch_size=2", "refresh.every=3"),
}
COMMON = ("trainer.max_steps=14", "trainer.checkpoint_every=2", "trainer.validate_every=3", "evaluate.bootstrap=0")
N_KILLS = int(os.environ.get("OPENBOOK_KILLS", len(WAYS)))


def killed(process: subprocess.Popen[str], run: Path, after: float) -> bool:
    """Kill the process and its ranks `after` seconds behind its first checkpoint; whether it was still running."""
    before = written(run)
    deadline = time.monotonic() + 240
    while process.poll() is None and written(run) == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(after)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return running


def written(run: Path) -> int:
    """When the last checkpoint was written."""
    last = run / "checkpoints" / "last.ckpt"
    return last.stat().st_mtime_ns if last.is_file() else 0


@pytest.mark.parametrize("way", WAYS)
def test_the_run_that_was_left_alone(small_system: SmallSystem, tmp_path: Path, way: str) -> None:
    """Each attempt is killed within a second of its first checkpoint, so that 14 steps last for several kills."""
    draw, n_kills = random.Random(way), max(1, N_KILLS // len(WAYS))
    (tmp_path / "straight").mkdir()
    straight = tmp_path / "straight" / "run"
    words = [*COMMON, *WAYS[way], "evaluate.before_training=false"]

    def finish(*command: str) -> None:
        done = small_system.command(*command)
        assert done.returncode == 0, done.stdout[-3000:]

    finish("train", *small_system.words(straight, *words))
    kills = 0
    for attempt in range(2 * n_kills):
        if kills >= n_kills:
            break
        folder = tmp_path / f"killed-{attempt}"
        folder.mkdir()
        run = folder / "run"
        command = ("train", *small_system.words(run, *words))
        while kills < n_kills and killed(small_system.start(*command), run, draw.uniform(0, 0.6)):
            kills, command = kills + 1, ("resume", str(run))
        finish("resume", str(run))
        same(straight, run)
    assert kills >= n_kills


def equal(one: Any, other: Any) -> bool:
    """Plain values and tensors, bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def same(straight: Path, run: Path) -> None:
    assert rows(run) == rows(straight)
    for name in ("last.ckpt", "best.ckpt"):
        first, second = (read_checkpoint(folder / "checkpoints" / name) for folder in (straight, run))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks"):  # the index is a callback's
            assert equal(first[part], second[part]), f"{name}: {part}"
