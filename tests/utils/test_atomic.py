"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from openbook.utils import atomic
from openbook.utils.disk import DiskError


def test_a_file_is_replaced_whole_and_text_keeps_its_newlines(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    atomic.write_json(target, {"é": [1]})
    assert target.read_bytes() == '{\n  "é": [\n    1\n  ]\n}\n'.encode()
    atomic.write_text(target, "1\r\n2\n")
    assert target.read_bytes() == b"1\r\n2\n"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "a.npy"
    target.write_text("old")
    if step == "rename":
        monkeypatch.setattr("openbook.utils.atomic.os.replace", full)

    def write() -> None:
        with atomic.replacing(target) as temporary:
            assert (temporary.parent, temporary.suffix) == (tmp_path, ".npy")
            temporary.write_text("ne")
            if step == "write":
                full()

    with pytest.raises(DiskError, match=r"the disk is full \(.*a\.npy\)"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_planted_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, target = tmp_path / "victim", tmp_path / "a.txt"
    victim.write_text("mine")
    target.symlink_to(victim)
    atomic.write_text(target, "new")
    assert (victim.read_text(), target.read_text(), target.is_symlink()) == ("mine", "new", False)

    monkeypatch.setattr("openbook.utils.atomic.uuid.uuid4", lambda: UUID(int=0))
    (tmp_path / ".a.00000000.txt").symlink_to(victim)
    with pytest.raises(DiskError):
        atomic.write_text(target, "newer")
    assert (victim.read_text(), target.read_text()) == ("mine", "new")


def test_of_two_processes_that_write_one_folder_the_first_wins(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with atomic.replacing_folder(target) as second:
        (second / "a").write_text("second")
        with atomic.replacing_folder(target) as first:
            (first / "a").write_text("first")
    assert (target / "a").read_text() == "first"
    assert list(target.parent.iterdir()) == [target]


def test_an_incomplete_folder_is_replaced_and_a_failed_one_removed(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "half").write_text("")
    with pytest.raises(ValueError, match="stop"), atomic.replacing_folder(target, lambda _: False):
        raise ValueError("stop")
    assert [path.name for path in target.iterdir()] == ["half"]
    with atomic.replacing_folder(target, lambda folder: (folder / "done").exists()) as new:
        (new / "done").write_text("")
    assert [path.name for path in target.iterdir()] == ["done"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "folder"
    old.mkdir()
    (old / "file").write_text("old")
    replace, calls = os.replace, []

    def failing(source: object, target: object) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no")
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no"), atomic.replacing_folder(old, lambda folder: False) as new:
        (new / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (old / "file").read_text() == "old"


def test_a_kill_between_two_renames_loses_neither_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("old")
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom openbook.utils.atomic import replacing_folder\n"
        "replace, calls = os.replace, []\n"
        "def killed(source, target):\n"
        "    calls.append(target)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(source, target)\n"
        "os.replace = killed\n"
        "with replacing_folder(Path(sys.argv[1]) / 'folder', lambda folder: False) as new:\n"
        "    (new / 'file').write_text('new')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.read_text() for path in tmp_path.glob(".folder*/file")) == ["new", "old"]
