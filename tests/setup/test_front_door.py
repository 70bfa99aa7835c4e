"""No other library's exception, and no folder left, where something outside the data is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openbook.commands.train import train
from openbook.errors import OpenBookError
from openbook.metrics.matching import exact_match, has_answer
from openbook.models.pretrained import check_model_folder
from openbook.utils.hardware import n_cores
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")


def test_wandb_without_a_login(small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBOOK_RUN_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OpenBookError, match=r"wandb has no login on this machine \(wandb\.mode\)"):
        train(small_system.config(tmp_path / "run", "wandb.mode=online"))
    assert not (tmp_path / "run").exists()


def test_a_hub_name_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    with pytest.raises(OpenBookError, match=r"hub cannot be reached \(retriever\.passage_encoder\)"):
        check_model_folder("someone/some-encoder", "retriever.passage_encoder")
    assert time.monotonic() - started < 10  # transformers tries for a minute


def test_more_devices_than_there_are(small_system: SmallSystem, tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match=rf"more devices .*expected at most {n_cores()}, the cores of this node"):
        train(small_system.config(tmp_path / "run", "trainer.devices=99"))


def test_more_workers_than_the_machine_can_hold_are_refused(small_system: SmallSystem, tmp_path: Path) -> None:
    """Each is a process of half a gigabyte; none is started to find out."""
    with pytest.raises(OpenBookError, match=rf"more workers .*expected at most {4 * n_cores()} in all"):
        train(small_system.config(tmp_path / "run", "data.workers=999"))


def test_a_pattern_that_never_ends() -> None:
    for look in (has_answer, exact_match):
        with pytest.raises(OpenBookError, match=r"a regular expression takes too long \(evaluate\.regex_answers\)"):
            look("a" * 60 + "b", [r"(a|aa)+$"], regex=True)
    assert has_answer("the oak grows in the valley", [r"v.lley"], regex=True)


@pytest.mark.parametrize(("answer", "said"), [("(beta", "not a regular expression"), ("(a|aa)+$", "takes too long")])
def test_patterns_are_tried_before_training(small_system: SmallSystem, tmp_path: Path, answer: str, said: str) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps({"question": "what ?", "answers": ["fine", answer]}) + "\n", encoding="utf-8")
    words = [f"data.test={file}", "evaluate.regex_answers=true"]
    with pytest.raises(OpenBookError, match=rf"an answer cannot be looked for.*{said}.*test\.jsonl:1"):
        train(small_system.config(tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


def test_more_workers_than_the_node_can_run(small_system: SmallSystem, tmp_path: Path) -> None:
    most = 4 * n_cores()
    with pytest.raises(OpenBookError, match=rf"\(data\.workers\).*expected at most {most} in all"):
        train(small_system.config(tmp_path / "run", f"data.workers={most + 1}"))
    with pytest.raises(OpenBookError, match=r"\(trainer\.devices\): got 0, expected more than 0"):
        small_system.config(tmp_path / "run", "trainer.devices=0")


def test_a_terminal_that_knows_ascii_only(small_system: SmallSystem, tmp_path: Path) -> None:
    done = small_system.command(
        "train", *small_system.words(tmp_path / "run", "trainer.max_steps=1", "data.validation=", "refresh.every=0")
    )
    assert done.returncode == 0, done.stdout[-3000:]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = subprocess.run(
        [sys.executable, "-m", "openbook", "answers", str(tmp_path / "run"), "--n", "2"],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert b"2 of" in shown.stdout and shown.stdout.isascii()
