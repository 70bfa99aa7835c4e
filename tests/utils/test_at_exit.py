"""A process that was connected to other ranks ends only when its threads are idle."""

import hashlib
import threading
import time
from pathlib import Path

import pytest

from benchmarks.common.processes import ends_of, start_ranks
from openbook.utils import at_exit

PAIRS = 12  # without the wait one process of five dies: all of 24 end well once in 200 times

RANK = """
import torch
import torch.distributed as dist
from openbook.utils.at_exit import end_at_rest
end_at_rest()
dist.init_process_group("gloo")
held = dist.group.WORLD, dist.new_group([0, 1])
for group in held:
    for _ in range(20):
        dist.all_reduce(torch.ones(10), group=group)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are looked at in /proc")
def test_a_thread_that_runs_is_waited_for() -> None:
    done = []

    def work() -> None:  # without the interpreter's lock, as a thread of gloo
        for _ in range(4):
            hashlib.sha256(bytes(40_000_000))
        done.append(time.monotonic())

    thread = threading.Thread(target=work)
    thread.start()
    at_exit._rest()
    assert done, "the process would have ended under its thread"
    thread.join()


def test_a_thread_that_never_rests_is_left_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_exit, "_any_runs", lambda: True)
    monkeypatch.setattr(at_exit, "_LONGEST", 0.1)
    started = time.monotonic()
    at_exit._rest()
    assert time.monotonic() - started >= 0.1


def test_no_rank_dies_of_its_own_end() -> None:
    for _ in range(0, PAIRS, 3):
        processes = [process for _ in range(3) for process in start_ranks(RANK, 2)]
        ends = ends_of(processes, 120)
        assert [code for code, _ in ends] == [0] * 6, ends
