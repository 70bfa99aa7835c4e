"""docs/openbook.ipynb: every cell runs, in order, here with tiny models; its settings are those of an experiment."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

import openbook
from openbook.config.load import load_experiment
from openbook.config.schema import Config
from tests.small_system import SmallSystem

PAGE = Path(__file__).parent.parent / "docs/openbook.ipynb"
CELLS = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_it_is_a_notebook_without_outputs() -> None:
    notebook = json.loads(PAGE.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in CELLS}) == len(CELLS)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS if "outputs" in cell)


@pytest.mark.filterwarnings("ignore")
def test_every_cell_runs(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a cell sets is checked against the experiment that it names, and then set on the tiny system."""
    asked: list[Sequence[str]] = []

    def small(name: str, words: Sequence[str] = ()) -> Config:
        load_experiment(name, words)  # raises what a reader would meet
        asked.append(words)
        return small_system.config(tmp_path / f"run-{len(asked)}", *words)

    monkeypatch.setattr(openbook, "load_experiment", small, raising=False)
    monkeypatch.setenv("OPENBOOK_RUN_DIR", "")
    scope: dict[str, object] = {}
    for number, code in enumerate(CODE):
        exec(compile(code, f"cell {number}", "exec"), scope)
    said = capsys.readouterr().out
    assert "Did you mean optim.lr?" in said
    assert asked[0] == ["retriever.n_docs=3"] and len(asked) == 2
    rates = r"exact_match  \d\.\d{3} -> \d\.\d{3}\nf1 "
    assert re.search(rates, said) and re.search(r"^step \S+ generation \S+ overlap \S+$", said, re.MULTILINE)
    assert len(re.findall(r"^  \d\.\d\d -> \d\.\d\d  ", said, re.MULTILINE)) == 2 * 3  # questions x passages
    assert re.search(r"^\[[\d.]+, [\d.]+\] \['objective'\]$", said, re.MULTILINE)  # two steps of one's own objective


def test_the_numbers_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """0.648 and 0.01 are the two passages' likelihoods: 0.329 of equal priors, a posterior of 0.985 for the first."""
    exec(compile(CODE[0], "cell 0", "exec"), {})
    numbers = [float(one) for one in re.findall(r"-?\d+\.\d+", capsys.readouterr().out)]
    token = -sum(math.log(mean) for mean in (0.5, 0.65, 0.55))
    assert numbers[:2] == pytest.approx([-math.log(0.329), token], abs=1e-5)
    assert numbers[2:] == pytest.approx([0.5 - 0.648 / 0.658, 0.5 - 0.01 / 0.658], abs=1e-5)
