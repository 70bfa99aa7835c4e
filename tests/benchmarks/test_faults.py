"""The quick part of `benchmarks/faults`: faults planted into real runs are survived as documented."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.faults import disk, ranks, run_files, world_size

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: the small system and the runs that nothing happens to are made once."""
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize(
    ("module", "number"),
    [(module, number) for module in (run_files, disk, ranks, world_size) for number in range(module.QUICK)],
    ids=lambda part: part.NAME if isinstance(part, ModuleType) else str(part),
)
def test_a_planted_fault_is_survived(folder: Path, module: ModuleType, number: int) -> None:
    _, attempt = next(islice(module.tries(folder / module.NAME, module.QUICK), number, None))
    attempt()


@pytest.mark.parametrize("module", [run_files, disk, ranks, world_size], ids=lambda module: module.NAME)
def test_there_are_as_many_tries_as_promised(module: ModuleType, tmp_path: Path) -> None:
    names = [name for name, _ in module.tries(tmp_path, module.FULL)]
    assert len(set(names)) == len(names) == module.FULL
