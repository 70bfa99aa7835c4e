"""What waits for processes says why they did not end."""

import subprocess
import sys
import time

import pytest

from benchmarks.common.processes import ends_of, free_port


def started(*scripts: str) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen([sys.executable, "-u", "-c", one], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for one in scripts
    ]


def test_codes_and_outputs_in_their_order() -> None:
    assert ends_of(started("print('one'); exit(3)", "print('two')")) == [(3, "one\n"), (0, "two\n")]


def test_what_each_has_said_where_one_hangs() -> None:
    begun = time.monotonic()
    with pytest.raises(AssertionError, match=r"process 0, exit code None: waits\n+process 1, exit code 1: .*why"):
        ends_of(started("print('waits'); import time; time.sleep(60)", "import sys; sys.exit('why')"), timeout=2)
    assert time.monotonic() - begun < 30


def test_ports_are_below_those_of_connections() -> None:
    assert {free_port() for _ in range(20)} <= set(range(20_000, 32_768))
