"""Every part of `make bench` runs in its quick form and writes what it measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LOOP = re.search(r"OUT=benchmarks/latest.json; for part in ([^;]+);", (ROOT / "Makefile").read_text(encoding="utf-8"))
PARTS = [part.strip('"') for part in LOOP[1].split() if not part.startswith("--")] if LOOP else []


def test_the_parts_are_found() -> None:
    assert {"training.step", "index.search", "training.cost_model", "index.plan"} <= set(PARTS)


@pytest.mark.slow
@pytest.mark.parametrize("part", [*PARTS, "decoding.decode"])
def test_a_part_runs(part: str, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{part}", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(json.loads(out.read_text(encoding="utf-8"))) > 3
