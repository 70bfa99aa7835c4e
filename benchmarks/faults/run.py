"""`make faults`: plant every kind of fault, count what was survived as documented, and write docs/faults.json and
docs/reliability.md.

--quick plants a part of each kind, --only NAME one kind, whose counts replace the ones that stand there. Ends with 1
where a fault was not survived.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ROOT = Path(__file__).parent.parent.parent
TARGET, PAGE = ROOT / "docs/faults.json", ROOT / "docs/reliability.md"
OTHERS = ("__init__", "run", "small")  # modules of this folder that plant nothing
BEGIN, END = "<!-- counts -->\n", "<!-- end of counts -->\n"


def modules() -> list[ModuleType]:
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in OTHERS)
    return [import_module(f"benchmarks.faults.{name}") for name in names]


def plant(module: ModuleType, folder: Path, quick: bool) -> dict[str, Any]:
    """{tried, survived, full, seconds, not_survived: the names of those that were not}."""
    started, tried, failed = time.monotonic(), 0, []
    for name, attempt in module.tries(folder / module.NAME, module.QUICK if quick else module.FULL):
        tried += 1
        try:
            attempt()
        except Exception as error:  # an error of another kind is no survival either
            failed.append(name)
            print(f"  not survived: {name}: {str(error)[:1500]}", file=sys.stderr)
    seconds = round(time.monotonic() - started)
    print(f"{module.NAME}: {tried - len(failed)} of {tried} in {seconds} s", flush=True)
    return {
        "tried": tried,
        "survived": tried - len(failed),
        "full": module.FULL,
        "seconds": seconds,
        "not_survived": failed,
    }


def controls(folder: Path) -> dict[str, dict[str, Any]]:
    """What the same tests find of saving and sampling without this project's own: they must find it."""
    from benchmarks.faults.checkpoints import by_stock_loading
    from benchmarks.faults.kills import by_stock_sampler

    return {
        "torch.save and torch.load, a flipped bit": {
            "tried": 1000,
            "wrong": by_stock_loading(folder / "control", 1000),
            "what": "loaded with other numbers and no error",
        },
        "torch's sampler, stopped in mid-epoch": {
            "tried": 23,
            "wrong": by_stock_sampler(),
            "what": "examples of the epoch that come twice or never",
        },
    }


def table(counts: dict[str, Any]) -> str:
    lines = ["| fault | tried | survived | in full |", "|---|---|---|---|"]
    for name, one in sorted(counts["faults"].items()):
        lines.append(f"| {name} | {one['tried']} | {one['survived']} | {one['full']} |")
    lines += ["", "| negative control | tried | wrong | |", "|---|---|---|---|"]
    for name, one in counts["controls"].items():
        lines.append(f"| {name} | {one['tried']} | {one['wrong']} | {one['what']} |")
    lost = [f"- {fault}: {name}" for fault, one in counts["faults"].items() for name in one["not_survived"]]
    return "\n".join(lines) + "\n" + ("\nNot survived:\n\n" + "\n".join(lost) + "\n" if lost else "")


def write(counts: dict[str, Any]) -> None:
    """Both files, after each kind: what was measured stays where a later one is stopped."""
    TARGET.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(counts) + END + rest.partition(END)[2], encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"  # for tiny models a second one is in the way
    torch.set_num_threads(1)
    counts = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.is_file() else {}
    faults = counts.get("faults", {})
    chosen = [module for module in modules() if asked.only in ("", module.NAME)]
    if not chosen:
        parser.error(f"no such fault: {asked.only}; one of {', '.join(module.NAME for module in modules())}")
    with tempfile.TemporaryDirectory(prefix="openbook-faults-") as folder:
        found = controls(Path(folder))
        for module in chosen:
            faults[module.NAME] = plant(module, Path(folder), asked.quick)
            write({"faults": faults, "controls": found})
    return int(
        not all(one["wrong"] for one in found.values()) or any(faults[one.NAME]["not_survived"] for one in chosen)
    )


if __name__ == "__main__":
    sys.exit(main())
