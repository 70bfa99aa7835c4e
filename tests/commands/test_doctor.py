"""`doctor`: every line of a sound experiment, what fails, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from openbook.__main__ import main
from openbook.commands import doctor as module
from openbook.commands.doctor import devices, packages, ports, space
from openbook.config.load import load_experiment
from openbook.config.schema import Config
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")


def examined(capfd: pytest.CaptureFixture[str], words: Sequence[str]) -> tuple[int, dict[str, dict[str, str]]]:
    code = main(["doctor", *words, "--json"])
    return code, {one["what"]: one for one in json.loads(capfd.readouterr().out)}


def test_a_sound_experiment_is_looked_through(
    small_system: SmallSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    code, found = examined(capfd, small_system.words(run))
    assert code == 0 and {one["status"] for one in found.values()} <= {"ok", "warning"}
    expected = {"environment", "faiss", "configuration", "devices", "wandb", "network", "data", "models", "plan"}
    assert expected <= set(found) and not run.exists()
    assert found["data"]["found"].startswith("37 passages") and "trained" in found["models"]["found"]
    assert main(["doctor", *small_system.words(run)]) == 0
    said = capfd.readouterr().out
    assert "ok      data: 37 passages" in said and " 0 fails" in said


def test_what_fails_is_said_and_the_rest_is_still_looked_at(
    small_system: SmallSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, found = examined(capfd, small_system.words(tmp_path / "run", "generator.model=/nowhere"))
    assert code == 2 and found["data"]["status"] == "fails" and "/nowhere" in found["data"]["found"]
    assert "models" not in found and found["devices"]["status"] == "ok"
    code, found = examined(capfd, ["tiny", "optim.lr=-1"])
    assert code == 2 and found["configuration"]["status"] == "fails" and "devices" not in found


def changed(section: str, **values: object) -> Config:
    config = load_experiment("tiny", ())
    return replace(config, **{section: replace(getattr(config, section), **values)})


def test_more_devices_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = devices(changed("trainer", devices=999, accelerator="cpu"))
    assert one.status == "fails" and "at most" in one.do


def test_a_folder_that_cannot_be_written_to_or_is_nearly_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = changed("data", cache=str(tmp_path / "not" / "there"))
    assert [one.status for one in space(config)] == ["ok", "ok"]
    monkeypatch.setattr(module, "disk_free", lambda path: 5 << 20)
    assert [one.status for one in space(config)] == ["warning", "warning"]
    assert "5.0 MiB" in space(config)[0].found
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    assert [one.status for one in space(config)] == ["fails", "fails"]


def test_two_builds_of_faiss_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_installed", lambda name: True)
    assert {one.what: one.status for one in packages()}["faiss"] == "fails"


def test_ranks_that_cannot_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ports(changed("trainer", devices=2)).status == "ok"
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    assert ports(changed("trainer", devices=2)).status == "fails"
