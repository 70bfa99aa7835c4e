"""Processes of this machine that work together: where they meet, and how they end."""

import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence

# Below the ports that Linux gives to connections (32768 and up): a connection of another process, or of the ranks
# themselves, cannot take it between this look and the first rank's.
_MEETINGS = range(20_000, 32_000)


def free_port() -> int:
    """One that nobody listens at now, by chance, so that two who look at once seldom find the same."""
    for number in random.SystemRandom().sample(_MEETINGS, 100):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", number))
            except OSError:
                continue
            return number
    raise OSError("of 100 ports none is free")


def start_ranks(script: str, n: int, per_node: int = 0) -> list[subprocess.Popen[str]]:
    """The Python script in n processes, one thread each, as a cluster starts ranks. per_node: ranks on each node (all
    of them this machine); 0: one node."""
    per_node = per_node or n
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "WORLD_SIZE": str(n), "OPENBOOK_RUN_DIR": ""}
    places = [{"NODE_RANK": str(rank // per_node), "LOCAL_RANK": str(rank % per_node)} for rank in range(n)]
    return [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**shared, **place, "RANK": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank, place in enumerate(places)
    ]


def ends_of(processes: Sequence[subprocess.Popen[str]], timeout: float = 240) -> list[tuple[int, str]]:
    """(exit code, output) of each, once all have ended. Where one does not in time all are killed, and what each has
    said stands in the AssertionError: why one waits is often said by another."""
    said, ended = [], []
    try:
        for process in processes:
            said.append(process.communicate(timeout=timeout)[0])
    except subprocess.TimeoutExpired:
        ended = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
    said += [process.communicate()[0] for process in processes[len(said) :]]
    assert not ended, "\n".join(
        f"process {number}, exit code {code}: {text[-2500:]}"
        for number, (code, text) in enumerate(zip(ended, said, strict=True))
    )
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]
