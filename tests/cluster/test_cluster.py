"""The scripts for clusters, with stand-ins for SLURM's and torchrun's programs on the path."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "experiments" / "cluster"


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    """srun, scontrol, torchrun and sbatch that write down how they were called; srun ends with $CODE."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, more in (("srun", 'exit "$CODE"'), ("torchrun", ""), ("sbatch", ""), ("scontrol", "echo node7")):
        script = (
            f'#!/bin/bash\necho "{name} $* | $MASTER_ADDR:$MASTER_PORT | $OPENBOOK" >> "{tmp_path}/calls"\n{more}\n'
        )
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_NTASKS_PER_NODE": "4", **job}


def call(tmp_path: Path, words: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """The exit code, and what was called meanwhile."""
    calls = tmp_path / "calls"
    calls.unlink(missing_ok=True)
    code = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, check=False).returncode
    return code, calls.read_text().splitlines() if calls.exists() else []


def test_a_job_trains_and_the_same_job_resumes(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    words = ["bash", str(CLUSTER / "slurm.sh"), "rag_token", "seed=3"]
    code, calls = call(tmp_path, words, {**stand_ins, "CODE": "0"})
    assert code == 0 and calls[1:] == [
        "srun --kill-on-bad-exit=1 openbook train rag_token trainer.devices=4 trainer.nodes=2 seed=3 | node7:24711 | "
    ]
    run = tmp_path / "runs" / "rag_token" / "job-4711"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    code, calls = call(tmp_path, words, {**stand_ins, "CODE": "0", "OPENBOOK": "container.sh"})
    assert calls[1].startswith("srun --kill-on-bad-exit=1 container.sh resume runs/rag_token/job-4711 |")


@pytest.mark.parametrize(("code", "requeued"), [(138, True), (0, False), (2, False), (143, False)])
def test_a_job_whose_time_is_over_is_queued_again(
    tmp_path: Path, stand_ins: dict[str, str], code: int, requeued: bool
) -> None:
    found, calls = call(tmp_path, ["bash", str(CLUSTER / "slurm.sh"), "tiny"], {**stand_ins, "CODE": str(code)})
    assert found == code
    assert any(one.startswith("scontrol requeue 4711") for one in calls) == requeued


def test_torchrun_trains_and_resumes(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    settings = {**stand_ins, "NAME": "first", "NODES": "2", "GPUS": "8", "HEAD": "10.0.0.1"}
    words = ["bash", str(CLUSTER / "torchrun.sh"), "rag_token", "seed=3"]
    _, (line,) = call(tmp_path, words, settings)
    started = "--nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=10.0.0.1:29400 --rdzv-id=first"
    tail = "-m openbook train rag_token trainer.devices=8 trainer.nodes=2 seed=3"
    assert line.startswith(f"torchrun {started} --max-restarts=0 {tail} |")
    run = tmp_path / "runs" / "rag_token" / "job-first"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    _, (line,) = call(tmp_path, words, settings)
    assert "-m openbook resume runs/rag_token/job-first |" in line
    del settings["NAME"]
    assert call(tmp_path, words, settings) == (1, [])


def test_make_submit_hands_over_the_experiment(tmp_path: Path, stand_ins: dict[str, str]) -> None:
    words = [
        "make",
        "-C",
        str(ROOT),
        "-o",
        ".venv/.ready-cpu",
        "submit",
        "EXP=tiny",
        "GPUS=2",
        "ARGS=seed=1",
        "TIME=1:00",
    ]
    code, calls = call(tmp_path, words, stand_ins)
    assert code == 0
    (line,) = calls
    asked = "--job-name=openbook-tiny --nodes=1 --ntasks-per-node=2 --gpus-per-node=2 --time=1:00 --export=ALL"
    assert line.startswith(f"sbatch {asked} experiments/cluster/slurm.sh tiny seed=1 |")
    assert line.endswith("/.venv/bin/python -m openbook")
    code, calls = call(tmp_path, [*words[:-1], "ARGS=sed=1"], stand_ins)
    assert code != 0 and calls == []  # what cannot be trained is not submitted
