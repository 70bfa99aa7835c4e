"""Commands that only read files answer without torch, Lightning and transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.test_answers import RIGHT, WRONG, run_of

HEAVY = {"torch", "lightning", "transformers", "faiss", "wandb", "bm25s"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["answers", "{run}"], "What is the capital of Togo?"),
        (["report", "{run}"], "report.html"),
        (["compare", "tiny", "bm25", "--dry-run", "--runs", "{runs}"], "2 to train"),
    ],
)
def test_reading_files_imports_nothing_heavy(words: list[str], said: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "runs" / "tiny" / "one", RIGHT, WRONG)
    words = [word.format(run=run, runs=tmp_path / "runs") for word in words]
    code = (
        f"import sys\nfrom openbook.__main__ import main\nassert main({words}) == 0\n"
        f"print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "[]\n" and said in done.stdout
