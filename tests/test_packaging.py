"""What is declared is what is there: packages, requirements, and which folder may use which library."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SOURCES = {str(path.relative_to(ROOT / "src/openbook").with_suffix("")): path for path in (ROOT / "src").rglob("*.py")}
SOURCES |= {str(path.relative_to(ROOT).with_suffix("")): path for path in (ROOT / "callbacks").glob("*.py")}

# The only folders (or files) that import a library.
OWNERS = {
    "faiss": {"index"},
    "torch.distributed": {"utils/distributed"},
    "omegaconf": {"config/load"},
    "transformers": {"models"},
    "lightning": {"training", "callbacks", "setup", "commands", "tracking", "data/datamodule"},
    "matplotlib": {"reporting"},
    "jinja2": {"reporting/report"},
    "bm25s": {"retrieval/bm25"},
}


def imports_of(path: Path) -> set[str]:
    """Full names of everything a file imports, those for type checking left out."""
    found: set[str] = set()
    for node in _at_run_time(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _at_run_time(node: ast.AST) -> list[ast.AST]:
    nodes: list[ast.AST] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        nodes += [child, *_at_run_time(child)]
    return nodes


@pytest.mark.parametrize("library", OWNERS)
def test_each_library_has_its_owners(library: str) -> None:
    users = {
        name
        for name, path in SOURCES.items()
        if any(found == library or found.startswith(library + ".") for found in imports_of(path))
    }
    owners = OWNERS[library]
    assert {name for name in users if not any(f"{name}/".startswith(f"{owner}/") for owner in owners)} == set()
    assert {owner for owner in owners if not any(f"{name}/".startswith(f"{owner}/") for name in users)} == set()


def test_packages_on_disk_are_the_packages_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    inside = [path.parent.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("__init__.py")]
    assert set(declared["packages"]) == {".".join(path.parts) for path in inside} | {
        "openbook.callbacks",
        "openbook.experiments",
    }
    for package, folder in declared["package-dir"].items():
        assert (ROOT / folder / "__init__.py").is_file(), package


def test_callbacks_have_one_name() -> None:
    code = "import sys; sys.path.insert(0, '.'); import callbacks"
    failed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "import openbook.callbacks, not callbacks" in failed.stderr


def test_conda_users_get_the_same_requirements() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    *plain, block = environment["dependencies"]
    assert {re.split("[=<>]", name)[0] for name in plain} == {"python", "pip", "make", "git"}
    assert block["pip"][0] == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[(.*)\]", block["pip"][1])
    assert extras is not None
    assert set(extras[1].split(",")) == set(project["optional-dependencies"]) - {"cpu"}
    lowest = re.search(r"python=([\d.]+)", " ".join(plain))
    assert lowest is not None and project["requires-python"] == f">={lowest[1]}"


def test_every_requirement_is_pinned_to_a_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    wanted = [
        *project["dependencies"],
        *(r for name, extra in project["optional-dependencies"].items() if name != "gpu" for r in extra),
    ]
    names = {re.split(r"[<>=\[ ]", requirement)[0].lower() for requirement in wanted}
    assert names <= pinned, names - pinned


def test_faiss_comes_from_one_extra_at_a_time() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    with_faiss = {name: [r for r in extra if r.startswith("faiss")] for name, extra in extras.items()}
    assert {name for name, found in with_faiss.items() if found} == {"cpu", "gpu"}
