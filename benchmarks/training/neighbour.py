"""What waiting threads cost, alone and beside a busy process: OMP_WAIT_POLICY as it comes, PASSIVE and ACTIVE.

    python -m benchmarks.training.neighbour [--rounds N]

Each measurement is a process of its own with two threads: forward and backward of a small transformer in bf16 autocast,
median milliseconds of a step. The busy process is one loop on one core. Settings alternate within each round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

STEP = """
import statistics, time, torch
from torch import nn
torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(384, 12, 1536, dropout=0.0, batch_first=True)
model, states, seconds = nn.TransformerEncoder(layer, 4), torch.randn(16, 96, 384), []
for step in range(14):
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(states).square().mean()
    loss.backward()
    model.zero_grad()
    seconds.append(time.perf_counter() - started)
print(statistics.median(seconds[4:]))
"""
POLICIES = ("", "PASSIVE", "ACTIVE")


def step_seconds(policy: str, busy: bool) -> float:
    """Median seconds of a step under this policy ('': none set), perhaps beside a busy process."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_NUM_THREADS": "2", **({"OMP_WAIT_POLICY": policy} if policy else {})}
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        done = subprocess.run(
            [sys.executable, "-c", STEP], env=environment, check=True, text=True, stdout=subprocess.PIPE
        )
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    found: dict[tuple[str, bool], list[float]] = {}
    for _ in range(rounds):
        for policy in POLICIES:
            for busy in (False, True):
                found.setdefault((policy, busy), []).append(step_seconds(policy, busy))
    alone, beside = (statistics.median(found["", busy]) for busy in (False, True))
    for policy in POLICIES:
        own, company = (statistics.median(found[policy, busy]) for busy in (False, True))
        print(
            f"{policy or 'as it comes':12} alone {1000 * own:5.0f} ms ({own / alone:.2f} times), "
            f"beside a busy process {1000 * company:5.0f} ms ({company / beside:.2f} times)"
        )


if __name__ == "__main__":
    main()
