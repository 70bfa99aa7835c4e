"""A process's rank before the ranks are connected."""

import pytest

from openbook.utils.hardware import RANKS, rank_from_environment


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"RANK": "3", "LOCAL_RANK": "1", "SLURM_PROCID": "0"}, 3),  # torchrun inside an allocation
        ({"SLURM_PROCID": "2", "SLURM_JOB_NAME": "train"}, 2),  # srun
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, 1),  # an interactive shell
        ({"SLURM_PROCID": "1", "SLURM_JOB_NAME": "bash"}, 0),
        ({"NODE_RANK": "1", "WORLD_SIZE": "4"}, 4),  # the first process of the second node
        ({"RANK": "none"}, 0),
    ],
)
def test_the_launcher_that_started_the_process_says_its_rank(
    environment: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*RANKS, "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rank_from_environment() == rank
