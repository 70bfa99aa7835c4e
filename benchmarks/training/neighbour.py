"""What waiting threads cost, alone and beside a busy process, by how long they spin before they sleep.

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
SETTINGS = {
    "as it comes": {},
    "PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "1,000 spins": {"GOMP_SPINCOUNT": "1000"},
    "20,000 spins": {"GOMP_SPINCOUNT": "20000"},
}


def step_seconds(setting: dict[str, str], busy: bool) -> float:
    """Median seconds of a step with these variables, perhaps beside a busy process."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    environment |= {"OMP_NUM_THREADS": "2", **setting}
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
        for name, setting in SETTINGS.items():
            for busy in (False, True):
                found.setdefault((name, busy), []).append(step_seconds(setting, busy))
    alone, beside = (statistics.median(found["as it comes", busy]) for busy in (False, True))
    for name in SETTINGS:
        own, company = (statistics.median(found[name, busy]) for busy in (False, True))
        print(
            f"{name:12} alone {1000 * own:5.0f} ms ({own / alone:.2f} times), "
            f"beside a busy process {1000 * company:5.0f} ms ({company / beside:.2f} times)"
        )


if __name__ == "__main__":
    main()
