"""Versions, commit and hardware of a run, for environment.json."""

import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from openbook.utils.hardware import n_cores

PACKAGES = ("openbook", "torch", "lightning", "transformers", "faiss-cpu", "faiss-gpu", "omegaconf", "wandb", "numpy")


def describe() -> dict[str, Any]:
    """Versions, commit and hardware, for environment.json. No path, no host name, no environment variable."""
    import torch

    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "versions": versions,
        "commit": _commit(),
        "cpu": _cpu_name(),
        "cores": n_cores(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"


def _commit() -> str:
    """The git commit of the working directory, with '+' if files have changed; empty outside a repository."""
    try:
        commit, changes = (
            subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if changes else "")
