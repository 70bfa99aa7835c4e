"""make takes the variables that it reads and refuses all others: exp=tiny would train rag_token without a word."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("given", "meant"),
    [("exp=tiny", "EXP"), ("ARG=seed=1", "ARGS"), ("args=seed=1", "ARGS"), ("SEED=1", "SEEDS"), ("COLOUR=1", "")],
)
def test_an_unknown_variable_is_refused_and_the_near_one_named(given: str, meant: str) -> None:
    done = make("train", given)
    assert done.returncode == 2 and done.stdout == ""
    assert f"unknown variable {given.split('=')[0]}: expected one of " in done.stderr
    assert ("Did you mean " in done.stderr) == bool(meant) and (f"Did you mean {meant}?" in done.stderr or not meant)


def test_every_variable_of_the_file_is_known() -> None:
    used = set(re.findall(r"\$\(([A-Z_]+)\)", MAKEFILE)) | set(re.findall(r"\$\(if \$\(([A-Z_]+)\)", MAKEFILE))
    made = set(re.findall(r"^([A-Z_]+)\s*:?=", MAKEFILE, re.MULTILINE)) | {"OPENBOOK_QUIET", "MAKEFILE_LIST"}
    inner = {"PY", "READY", "OTHER_FAISS", "COMPARED", "OVERRIDES", "SBATCH", "KNOWN", "GIVEN", "UNKNOWN"}
    for name in sorted((used | made) - inner - {"OPENBOOK_QUIET", "MAKEFILE_LIST"}):
        assert make("help", f"{name}=cpu").returncode == 0, name


def test_what_a_program_reads_of_the_environment_may_be_given() -> None:
    assert make("help", "OMP_NUM_THREADS=1", "CUDA_VISIBLE_DEVICES=0").returncode == 0


@pytest.mark.parametrize(("words", "quiet"), [([], ""), (["QUIET=1"], "1"), (["QUIET=0"], "")])
def test_quiet_reaches_the_command(words: list[str], quiet: str) -> None:
    """Of a target that needs no environment."""
    script = "include Makefile\nsaid: ; @echo quiet=$$OPENBOOK_QUIET\n"
    done = subprocess.run(
        ["make", "--no-print-directory", "-f", "-", "said", *words],
        cwd=ROOT,
        input=script,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"quiet={quiet}\n"
