"""Several processes that need the same thing built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BUILDER = """
import sys, time
from pathlib import Path
from openbook.utils.turns import in_turn
folder, fails = Path(sys.argv[1]), sys.argv[2]
with in_turn(folder, "thing", fails if fails.startswith("refused") else ""):
    if not (folder / "thing").exists():
        with open(folder / "built", "a") as file:
            file.write("x")
        time.sleep(0.5)
        if fails == "fails":
            raise SystemExit("cannot be built")
        if fails.startswith("refused"):
            from openbook.errors import OpenBookError
            raise OpenBookError("it cannot be built")
        if fails == "killed":
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / "thing").write_text("whole")
print((folder / "thing").read_text())
"""


def start(folder: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(folder), how], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_one_builds_and_the_others_find_it(tmp_path: Path) -> None:
    processes = [start(tmp_path, "") for _ in range(4)]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == ["whole"] * 4
    assert (tmp_path / "built").read_text() == "x"


def test_nobody_waits_for_one_that_failed_or_was_killed(tmp_path: Path) -> None:
    for how in ("fails", "killed"):
        folder = tmp_path / how
        folder.mkdir()
        processes = [start(folder, how) for _ in range(3)]
        for process in processes:
            process.communicate(timeout=60)
        assert all(process.returncode != 0 for process in processes)
        assert (folder / "built").read_text() == "xxx"  # each in its turn, and each knows the reason


def test_those_that_waited_learn_why_it_was_refused(tmp_path: Path) -> None:
    processes = [start(tmp_path, how) for how in ("refused", "refused", "refused", "refused otherwise")]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert all(process.returncode != 0 for process in processes)
    assert all("it cannot be built" in text for text in said)
    # Each work once or, by whoever started late, again; not by those that were waiting.
    assert 2 <= len((tmp_path / "built").read_text()) < 4
    assert start(tmp_path, "").communicate(timeout=60)[0].strip() == "whole", "a later one tries anew"


def test_a_folder_that_cannot_be_written_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    from openbook.utils.turns import in_turn

    with in_turn(tmp_path / "file", "thing"):
        pass
