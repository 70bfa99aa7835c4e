"""The quick part of `benchmarks/faults`: faults planted into real runs are survived as documented."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.faults import run as faults_run
from benchmarks.faults.checkpoints import by_stock_loading
from benchmarks.faults.kills import by_stock_sampler

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


MODULES = faults_run.modules()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: the small system and the runs that nothing happens to are made once."""
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize(
    ("module", "number"),
    [(module, number) for module in MODULES for number in range(module.QUICK)],
    ids=lambda part: part.NAME if isinstance(part, ModuleType) else str(part),
)
def test_a_planted_fault_is_survived(folder: Path, module: ModuleType, number: int) -> None:
    _, attempt = next(islice(module.tries(folder / module.NAME, module.QUICK), number, None))
    attempt()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_there_are_as_many_tries_as_promised(module: ModuleType, tmp_path: Path) -> None:
    names = [name for name, _ in module.tries(tmp_path, module.FULL)]
    assert len(set(names)) == len(names) == module.FULL


def test_stock_saving_and_sampling_fail_the_same_tests(tmp_path: Path) -> None:
    assert by_stock_loading(tmp_path / "control", 60) > 0
    assert by_stock_sampler() > 0


def test_what_was_not_survived_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise AssertionError("planted")

    module = ModuleType("one")
    vars(module).update(NAME="one", QUICK=2, FULL=3)
    vars(module)["tries"] = lambda folder, count: iter([("fine", lambda: None), ("bad", fails)][:count])
    counted = faults_run.plant(module, tmp_path, quick=True)
    counted.pop("seconds")
    assert counted == {"tried": 2, "survived": 1, "full": 3, "not_survived": ["bad"]}
    page = faults_run.table({"faults": {"one": counted}, "controls": {}})
    assert "| one | 2 | 1 | 3 |" in page and "- one: bad" in page
    assert "planted" in capsys.readouterr().err


def test_the_page_has_the_counts_that_were_written() -> None:
    counts = json.loads(faults_run.TARGET.read_text(encoding="utf-8"))
    assert faults_run.table(counts) in faults_run.PAGE.read_text(encoding="utf-8")
    assert set(counts["faults"]) == {module.NAME for module in MODULES}
