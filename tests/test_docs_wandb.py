"""docs/wandb.md stays true: its commands are make's, its keys are keys, and what it says a run leaves is left."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from openbook.config.schema import keys_of
from openbook.tracking.loggers.predictions_table import PASSAGES

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/wandb.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^make .*$", "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_make_knows_every_command(command: str) -> None:
    words = ["make", "-n", *shlex.split(command)[1:]]
    planned = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stderr
    for given in re.findall(r"(?:SWEEP_ID|COUNT|BACKEND|ARGS)=\"?([\w.=]+)", command):
        assert given in planned.stdout  # a variable that make does not know would be dropped without a word


def test_every_key_and_default_is_one() -> None:
    defaults = keys_of()
    named = dict(re.findall(r"\b((?:wandb|trainer)\.[a-z_]+)(?:=(\d+))?", PAGE))
    assert {"wandb.mode", "wandb.predictions", "wandb.report", "wandb.timeout", "trainer.tensorboard"} <= set(named)
    assert set(named) - {"wandb.json"} <= set(defaults)
    assert PASSAGES == 3 and "the three passages" in PAGE
