"""By what wandb knows a run: an agent's word, what the folder has, or for older runs the hash of its path."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from openbook.tracking.loggers.identity import RUN_ID, SWEEP_ID, Identity


def test_new_runs_are_different_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_ID, "left-over")  # of no sweep: every run started from here would be the same one
    monkeypatch.delenv(SWEEP_ID, raising=False)
    one, other = Identity.of(tmp_path, resumed=False), Identity.of(tmp_path, resumed=False)
    assert one.id != other.id and "left-over" not in (one.id, other.id) and one.sweep == ""
    one.keep(tmp_path)
    assert Identity.of(tmp_path, resumed=False) == Identity.of(tmp_path, resumed=True) == one


def test_a_trial_is_what_its_agent_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_ID, "abc")
    monkeypatch.setenv(SWEEP_ID, "xyz")
    assert Identity.of(tmp_path, resumed=False) == Identity("abc", "xyz")


def test_a_resumed_run_of_an_older_version_is_the_one_it_was(tmp_path: Path) -> None:
    by_path = hashlib.sha256(str(tmp_path.resolve()).encode()).hexdigest()[:12]
    assert Identity.of(tmp_path, resumed=True) == Identity(by_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"id": 3}', '{"sweep": "x"}'])
def test_a_damaged_file_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "wandb.json").write_text(content, encoding="utf-8")
    assert Identity.read(tmp_path) is None
