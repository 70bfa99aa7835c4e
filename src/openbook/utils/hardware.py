"""What this machine computes in: threads, autocast dtype, accelerator. Chosen once and logged. Torch is imported where
it is asked, so that commands that only read files do without it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from openbook.errors import OpenBookError

if TYPE_CHECKING:
    import torch

# What launchers say of a process: torchrun's, Lightning's and SLURM's variables.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "SLURM_PROCID")


def accelerator(wanted: Literal["auto", "cpu", "gpu"]) -> Literal["cpu", "gpu"]:
    """The accelerator that models train on; OpenBookError when a GPU is asked for and there is none."""
    import torch

    if wanted == "gpu" and not torch.cuda.is_available():
        raise OpenBookError(
            "a GPU was asked for and there is none",
            where="trainer.accelerator",
            got=f"torch {torch.__version__}, {torch.cuda.device_count()} CUDA devices",
            expected="a CUDA device",
            action="Set trainer.accelerator=cpu, or install a CUDA build of torch.",
        )
    return "gpu" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def autocast_dtype(precision: Literal["auto", "fp32", "bf16"], on: Literal["cpu", "gpu"]) -> torch.dtype | None:
    """bf16 where the hardware multiplies in it (GPUs from Ampere on, CPUs with avx512_bf16), None for fp32."""
    import torch

    if precision == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if on == "gpu" else _cpu_has_bf16()
        return torch.bfloat16 if fast else None
    return torch.bfloat16 if precision == "bf16" else None


def set_threads(ranks_on_node: int) -> int:
    """Torch's threads per rank: the cores shared out, unless OMP_NUM_THREADS already says. Returns them."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, n_cores() // ranks_on_node))
    # True fp32, by oneDNN instead of MKL: twice as fast on CPUs without matrix units; with AMX it would be less exact.
    if not torch.cuda.is_available() and not torch.cpu._is_amx_tile_supported():
        torch.set_float32_matmul_precision("medium")
    return torch.get_num_threads()


def computing() -> str:
    """Threads and the backend of fp32 matmuls, in words."""
    import torch

    backend = {"highest": "torch's own backend", "medium": "oneDNN"}.get(torch.get_float32_matmul_precision())
    told = "" if torch.cuda.is_available() or backend is None else f", fp32 matmuls by {backend}"
    n = torch.get_num_threads()
    return f"{n} thread{'s' if n > 1 else ''}{told}"


def rank_from_environment() -> int:
    """This process's rank as its launcher set it, also before the ranks are connected; 0 without a launcher.

    Where a launcher tells node and place on it apart, the number is unique and grows with the rank."""
    numbers = {name: int(text) for name in RANKS if (text := os.environ.get(name, "")).isdigit()}
    if "RANK" in numbers:
        return numbers["RANK"]
    if "LOCAL_RANK" in numbers or "NODE_RANK" in numbers:  # Lightning's launcher, perhaps inside a SLURM job
        return numbers.get("NODE_RANK", 0) * numbers.get("WORLD_SIZE", 1) + numbers.get("LOCAL_RANK", 0)
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # started by hand, by Lightning's rule
    return 0 if interactive else numbers.get("SLURM_PROCID", 0)


def n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_has_bf16() -> bool:
    """bf16 matmuls without the instructions are emulated and slower than fp32."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported())
