"""How much memory and disk there is, and how much this process has taken. None where a system does not say."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

_ROOT = Path("/")

_CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")


def available_memory(root: Path = _ROOT) -> int | None:
    """Bytes of RAM that this process may still take: what the machine has available, or what its control group (a
    container's or a job's limit, version 1 or 2) leaves, whichever is less.

    Without Linux's /proc: free memory where the system tells it, else all its memory (macOS), which is an upper
    bound. root: where /proc and /sys are found.
    """
    machine = _kib(root / "proc/meminfo", "MemAvailable")
    machine = _from_sysconf() if machine is None else machine
    known = [*_left_in_groups(root), *([] if machine is None else [machine])]
    return max(0, min(known)) if known else None


def gpu_free_memory() -> int | None:
    """Bytes free on this rank's GPU, those that torch keeps for itself left out; None without a GPU."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def disk_free(path: Path | str) -> int | None:
    """Bytes that may still be written at path, which need not be there yet."""
    path = Path(path).absolute()
    for folder in (path, *path.parents):
        if folder.exists():
            return shutil.disk_usage(folder).free
    return None


def current_memory() -> int | None:
    """Bytes of RAM this process holds now, mapped files it has touched included."""
    return _kib(_ROOT / "proc/self/status", "VmRSS")


def peak_memory() -> int | None:
    """The most bytes of RAM this process has held, since its start or since reset_peak_memory."""
    linux = _kib(_ROOT / "proc/self/status", "VmHWM")
    if linux is not None or sys.platform != "darwin":
        return linux
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak_memory() -> bool:
    """Let peak_memory start again from now; False where the system does not allow it."""
    try:
        (_ROOT / "proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def human(n_bytes: float) -> str:
    """1610612736 -> 1.5 GiB."""
    size, units = float(n_bytes), iter("B KiB MiB GiB TiB PiB".split())
    unit = next(units)
    while abs(size) >= 1023.95 and unit != "PiB":  # 1023.96 KiB would be written 1024.0 KiB
        size, unit = size / 1024, next(units)
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each control group above this process leaves: its limit minus its use, page cache it can drop at once not
    counted as use."""
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, name = line.split(":", 2)
        if "memory" in controllers.split(","):
            bases, files = [root / "sys/fs/cgroup/memory"], _CGROUP_V1
        elif not controllers:
            bases, files = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"], _CGROUP_V2
        else:
            continue
        # In a container the name may be the host's, of which only the mounted root is to be seen.
        parts = [part for part in name.split("/") if part not in ("", "..")]
        for base in bases:
            for depth in range(len(parts) + 1):
                left = _left_in(base.joinpath(*parts[:depth]), *files)
                if left is not None:
                    yield left


def _left_in(folder: Path, limit_name: str, use_name: str, cache_name: str) -> int | None:
    limit, use = (_text(folder / name) for name in (limit_name, use_name))
    if limit is None or use is None or not limit.strip().isdigit():  # "max" is no limit
        return None
    stat = dict(line.split(" ", 1) for line in (_text(folder / "memory.stat") or "").splitlines() if " " in line)
    return int(limit) - int(use) + int(stat.get(cache_name, 0))


def _kib(path: Path, name: str) -> int | None:
    """Bytes from a line like `MemAvailable:  24177472 kB`."""
    for line in (_text(path) or "").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return None


def _from_sysconf() -> int | None:
    for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        if name in getattr(os, "sysconf_names", {}):
            pages, size = os.sysconf(name), os.sysconf("SC_PAGE_SIZE")
            return pages * size if pages > 0 and size > 0 else None
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
