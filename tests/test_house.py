"""The house: folders stand on floors and import only downwards; folders and files stay small enough to read."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"batch", "errors"},
    {"config", "metrics", "objectives", "utils"},
    {"data", "tracking"},
    {"models", "index", "reporting"},
    {"retrieval"},
    {"inference", "refresh"},
    {"training", "callbacks", "exchange"},
    {"setup"},
    {"serving"},
    {"commands"},
    {"__main__", "__init__"},
]
FLOOR = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}
PATHS = {tuple(p.relative_to(ROOT / "src/openbook").with_suffix("").parts): p for p in (ROOT / "src").rglob("*.py")}
PATHS |= {tuple(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / "callbacks").glob("*.py")}


def imported(path: Path) -> set[tuple[str, ...]]:
    """The modules of openbook that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "openbook":
            package = tuple(str(node.module).split(".")[1:])
            found |= {(*package, alias.name) if (*package, alias.name) in PATHS else package for alias in node.names}
    return {name if name in PATHS else (*name, "__init__") for name in found}


@pytest.mark.parametrize("module", PATHS, ids="/".join)
def test_folders_import_from_lower_floors_only(module: tuple[str, ...]) -> None:
    others = {name for name in imported(PATHS[module]) if name[0] != module[0]}
    assert {name for name in others if FLOOR[name[0]] >= FLOOR[module[0]]} == set()


def test_files_of_a_folder_import_each_other_in_one_direction() -> None:
    TopologicalSorter(
        {module: imported(path) - {module} for module, path in PATHS.items()}
    ).prepare()  # raises on a cycle


def test_folders_hold_at_most_12_files_and_files_at_most_250_lines() -> None:
    folders = {path.parent for path in PATHS.values()}
    assert {folder for folder in folders if len(set(folder.glob("*.py")) - {folder / "__init__.py"}) > 12} == set()
    assert {path for path in PATHS.values() if len(path.read_text(encoding="utf-8").splitlines()) > 250} == set()
