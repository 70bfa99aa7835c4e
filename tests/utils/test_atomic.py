"""Files and folders appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from openbook.utils import atomic


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

    with pytest.raises(OSError, match="No space left"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


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
