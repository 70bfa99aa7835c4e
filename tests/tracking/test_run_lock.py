"""One writer per run folder, named; a kill leaves the lock harmless."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from openbook.errors import OpenBookError
from openbook.tracking import run_lock
from openbook.tracking.run_folder import RunFolder

HOLDER = """
import sys, time
from pathlib import Path
from openbook.tracking import run_lock
print(run_lock.take(Path(sys.argv[1])) is not None, flush=True)
time.sleep(60)
"""


def start_holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline().strip() == "True"
    return process


def test_the_live_process_is_named_until_it_is_killed(tmp_path: Path) -> None:
    process = start_holder(tmp_path)
    try:
        name = f"process {process.pid} on {socket.gethostname()}"
        assert run_lock.holder(tmp_path) == name
        assert run_lock.take(tmp_path) is None
        with pytest.raises(OpenBookError, match=f"a run is at work in this folder .*got {name}, expected one writer"):
            RunFolder(tmp_path).lock()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / run_lock.NAME).exists() and run_lock.holder(tmp_path) == ""
    run = RunFolder(tmp_path)
    run.lock()
    assert run_lock.holder(tmp_path) == f"process {os.getpid()} on {socket.gethostname()}"
    run.release()
    assert not (tmp_path / run_lock.NAME).exists() and run_lock.holder(tmp_path) == ""


def test_a_lock_that_was_given_back_while_another_waited_is_not_taken_for_the_new_one(tmp_path: Path) -> None:
    """Two would hold it: one the removed file's, one that of the file in its place."""
    handle = run_lock.take(tmp_path)
    assert handle is not None
    waiting = os.open(tmp_path / run_lock.NAME, os.O_RDWR)
    run_lock.give_back(tmp_path, handle)
    assert run_lock._lock(waiting) and not run_lock._is_file(waiting, tmp_path / run_lock.NAME)
    second = run_lock.take(tmp_path)
    assert second is not None
    os.close(waiting)
    run_lock.give_back(tmp_path, second)


def test_without_locks_a_running_process_of_this_host_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_lock, "_lock", lambda _: None)
    (tmp_path / run_lock.NAME).write_text(f"process {os.getppid()} on {socket.gethostname()}")
    assert run_lock.take(tmp_path) is None and run_lock.holder(tmp_path)
    (tmp_path / run_lock.NAME).write_text(f"process {os.getppid()} on elsewhere")
    assert run_lock.holder(tmp_path) == ""
    handle = run_lock.take(tmp_path)
    assert handle is not None and "without locks" in capsys.readouterr().out
    run_lock.give_back(tmp_path, handle)


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / run_lock.NAME).symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic link"):
        run_lock.take(tmp_path)
    assert (tmp_path / "target").read_text() == "precious"
