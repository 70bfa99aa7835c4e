"""The architecture: imports go downwards, each library has one owner, what is declared is what is there."""

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
SOURCES = {path.stem: path for path in (ROOT / "src/openbook").glob("*.py")} | {
    f"callbacks.{path.stem}": path for path in (ROOT / "callbacks").glob("*.py")
}

# From the ground up; a module imports only from lines above its own.
LAYERS = [
    "errors",  # words
    "batch config_training __init__ factbook_relations panels matching intervals paper",
    "config text_metrics compare_table",
    "objectives dpr metrics beams distributed optim schedule hardware lines plots staleness "
    "fused_loss factbook_questions_government compare_plot cpu_flat",
    "ranges progress weights formats factbook_text factbook_questions run_files gpu_flat factories fresh memory",
    "recompute calibration experiment factbook_facts reader_layers attention stream text families corpus",
    "factbook reader encoders collate mips index_store",
    "generator encode_corpus retriever lexical report comparison factbook_edition",  # composed
    "refresh decode contexts likelihood preflight runs logs negatives found",
    "run_search child sequence_decode rolling look plan timing starting show_answers docs_page",
    "compare_request compare_files fits",
    "upkeep",
    "trainer",
    "answering warmup question_module",
    "module dpr_module datamodule",  # shells
    "callbacks.collapse callbacks.index_refresh callbacks.provenance callbacks.resumable callbacks.throughput "
    "callbacks.staleness",
    "callbacks.__init__",
    "build planning",  # entry
    "prepare",
    "train evaluate",
    "hot_swap compare",
    "__main__",
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split("  ")[0].split()}

OWNERS = {
    "faiss": {"factories", "families", "gpu_flat"},
    "torch.distributed": {"distributed"},
    "omegaconf": {"experiment"},
    "transformers": {"weights", "encoders", "generator", "attention", "recompute"},
    "lightning": {"question_module", "datamodule", "logs", "train", "trainer", "evaluate", "prepare"}
    | {name for name in SOURCES if name.startswith("callbacks.")} - {"callbacks.__init__"},
    "matplotlib": {"plots", "compare_plot"},
    "jinja2": {"report"},
    "bm25s": {"lexical"},
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


def modules_imported(path: Path) -> set[str]:
    names = {name.removeprefix("openbook.") for name in imports_of(path) if name.startswith("openbook.")}
    names = {"callbacks.__init__" if name == "callbacks" else name for name in names}
    return {name for name in names if name in SOURCES}


def test_every_module_has_its_layer() -> None:
    assert set(LEVEL) == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_imports_go_downwards(name: str) -> None:
    upwards = {other for other in modules_imported(SOURCES[name]) if LEVEL[other] >= LEVEL[name]}
    assert not upwards, f"{name} imports {upwards}"


@pytest.mark.parametrize("library", OWNERS)
def test_each_library_has_its_owners(library: str) -> None:
    users = {name for name, path in SOURCES.items()
             if any(found == library or found.startswith(library + ".") for found in imports_of(path))}  # fmt: skip
    assert users == OWNERS[library]


def test_packages_on_disk_are_the_packages_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert declared["packages"] == ["openbook", "openbook.callbacks"]
    for package, folder in declared["package-dir"].items():
        assert (ROOT / folder / "__init__.py").is_file(), package
    inside = [path for folder in ("src/openbook", "callbacks") for path in (ROOT / folder).rglob("__init__.py")]
    assert len(inside) == len(declared["packages"])


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


def test_files_stay_readable() -> None:
    long = {name: count for name, path in SOURCES.items() if (count := len(path.read_text().splitlines())) > 300}
    assert not long
