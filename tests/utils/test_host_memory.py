"""What memory there is: made-up /proc and /sys trees with numbers by hand, and this process's own."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
import torch

from openbook.utils import host_memory as memory

MIB = 1 << 20
ON_LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


MACHINE = {"proc/meminfo": "MemTotal:  900 kB\nMemFree:  100 kB\nMemAvailable:  700 kB\n"}


def v2(folder: str, limit: str, current: int, inactive: int) -> dict[str, str]:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{current}\n",
        f"{folder}/memory.stat": f"anon 5\ninactive_file {inactive}\nactive_file 9\n",
    }


def v1(folder: str, limit: int, usage: int, inactive: int) -> dict[str, str]:
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{usage}\n",
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {inactive}\n",
    }


def test_without_a_limit_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert memory.available_memory(tree(tmp_path, MACHINE)) == 700 * 1024
    unlimited = {"proc/self/cgroup": "0::/job\n", **v2("sys/fs/cgroup/job", "max", 300_000, 0)}
    assert memory.available_memory(tree(tmp_path, unlimited)) == 700 * 1024


def test_a_group_of_version_two_leaves_its_limit_less_its_use(tmp_path: Path) -> None:
    files = {**MACHINE, "proc/self/cgroup": "0::/job/step\n", **v2("sys/fs/cgroup/job/step", "500000", 310_000, 7000)}
    assert memory.available_memory(tree(tmp_path, files)) == 500_000 - 310_000 + 7000


def test_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    files = {
        **MACHINE,
        "proc/self/cgroup": "0::/job/step\n",
        **v2("sys/fs/cgroup/job/step", "500000", 310_000, 7000),
        **v2("sys/fs/cgroup/job", "400000", 390_000, 11),
    }
    assert memory.available_memory(tree(tmp_path, files)) == 10_011


@pytest.mark.parametrize("name", ["/job", "/on/the/host", "/../../job"])
def test_a_group_of_version_one_also_where_only_its_mounted_root_is_seen(tmp_path: Path, name: str) -> None:
    files = {
        **MACHINE,
        "proc/self/cgroup": f"9:cpuset:/\n4:hugetlb,memory:{name}\n0::/\n",
        **v1("sys/fs/cgroup/memory", 600_000, 200_000, 300),
    }
    assert memory.available_memory(tree(tmp_path, files)) == 400_300


def test_no_limit_of_version_one_is_a_huge_number(tmp_path: Path) -> None:
    files = {**MACHINE, "proc/self/cgroup": "4:memory:/\n", **v1("sys/fs/cgroup/memory", 9223372036854771712, 5, 0)}
    assert memory.available_memory(tree(tmp_path, files)) == 700 * 1024


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {**MACHINE, "proc/self/cgroup": "0::/\n", **v2("sys/fs/cgroup", "1000", 5000, 0)}
    assert memory.available_memory(tree(tmp_path, files)) == 0


def test_without_proc_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 16384}  # as macOS answers
    monkeypatch.setattr(os, "sysconf_names", facts)
    monkeypatch.setattr(os, "sysconf", facts.__getitem__)
    assert memory.available_memory(tmp_path) == 16_384_000
    monkeypatch.setattr(os, "sysconf_names", {})
    assert memory.available_memory(tmp_path) is None


def test_here_it_is_some_of_what_there_is() -> None:
    available = memory.available_memory()
    assert available is not None
    assert 0 < available <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_disk_is_measured_where_the_folder_will_be(tmp_path: Path) -> None:
    found = memory.disk_free(tmp_path / "not" / "yet")
    here = os.statvfs(tmp_path)
    assert found is not None and abs(found - here.f_bavail * here.f_frsize) < 64 * MIB


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_memory_is_unknown() -> None:
    assert memory.gpu_free_memory() is None


@ON_LINUX
def test_the_peak_outlives_what_was_held_until_it_is_reset() -> None:
    before = memory.current_memory()
    held = mmap.mmap(-1, 64 * MIB)  # given back at once, whatever the allocator's settings
    for start in range(0, 64 * MIB, 4096):
        held[start] = 1
    during = memory.current_memory()
    held.close()
    peak, after = memory.peak_memory(), memory.current_memory()
    assert before is not None and during is not None and peak is not None and after is not None
    assert during - before > 60 * MIB
    assert peak >= during - MIB
    assert peak - after > 60 * MIB
    if memory.reset_peak_memory():
        again = memory.peak_memory()
        assert again is not None and again < peak - 50 * MIB


def test_a_peak_that_may_not_be_reset_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    assert not memory.reset_peak_memory()
    assert memory.current_memory() is None


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (1048575, "1.0 MiB"),
        (1610612736, "1.5 GiB"),
        (64_559_075_328, "60.1 GiB"),
        (3 * 2**40, "3.0 TiB"),
        (5000 * 2**50, "5000.0 PiB"),
    ],
)
def test_bytes_for_people(n_bytes: int, text: str) -> None:
    assert memory.human(n_bytes) == text
