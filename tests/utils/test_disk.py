"""What a disk refuses becomes one sentence, whoever was writing; space and rights are asked for before."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from openbook.errors import OpenBookError
from openbook.utils import atomic, disk
from openbook.utils.disk import DiskError, Need, check_space, check_writable, size_of, writing


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 8 KiB.

    A block and no fixture: pytest writes the test's dot before fixtures end, and its own log may be longer.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def with_torch(path: Path) -> None:
    with open(path, "wb") as file:
        torch.save({"weights": torch.zeros(10_000)}, file)


WRITERS: dict[str, Callable[[Path], object]] = {
    "python": lambda path: path.write_bytes(bytes(20_000)),
    "numpy": lambda path: np.save(path, np.zeros(20_000)),
    "numpy's raw": lambda path: np.zeros(20_000).tofile(path),
    "torch": with_torch,
    "safetensors": lambda path: save_file({"weights": torch.zeros(10_000)}, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whoever_writes_the_target_is_named_and_stays_as_it_was(tmp_path: Path, writer: str) -> None:
    target = tmp_path / "target.npy"
    target.write_text("old")
    said = r"(the file grows beyond|the disk is full).*target\.npy.* free there.*resumed"
    with pytest.raises(DiskError, match=said), atomic.replacing(target) as new, small_files():
        WRITERS[writer](new)
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "there is no permission"),
        (errno.EIO, "the disk fails"),
        (errno.ENOTDIR, "a file stands where a folder is needed"),
    ],
)
def test_numbers_of_the_system_in_words(tmp_path: Path, number: int, said: str) -> None:
    with pytest.raises(DiskError, match=rf"{said} \({tmp_path}/file\)"), writing(tmp_path / "file"):
        raise OSError(number, os.strerror(number), str(tmp_path / ".file.1234"))
    with pytest.raises(DiskError, match=rf"{said} \(/elsewhere/read\.jsonl\)"), writing(tmp_path / "file"):
        raise OSError(number, os.strerror(number), "/elsewhere/read.jsonl")


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no"), ValueError("x"), OSError("who knows"), RuntimeError("")])
def test_what_is_not_the_disk_is_raised_as_it_is(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, writing(tmp_path / "file"):
        raise error
    assert caught.value is error


def test_needs_of_one_disk_are_added_and_of_two_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbook.utils.host_memory.disk_free", lambda _: 1000)
    needs = [Need(tmp_path / "a", 700, "vectors", "data.cache"), Need(tmp_path / "b", 400, "checkpoints", "run.dir")]
    with pytest.raises(
        OpenBookError, match=r"too small.*data\.cache: .*run\.dir: .*got 1000 B free, expected 1\.1 KiB"
    ):
        check_space(needs)
    check_space(needs[:1])
    monkeypatch.setattr(disk, "device_of", hash)
    check_space(needs)


def test_a_folder_that_nothing_can_be_written_to_names_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OpenBookError, match=r"nothing can be written here.*a file stands.*data\.cache"):
        check_writable(tmp_path / "file" / "cache", "data.cache")

    def read_only(path: Path, content: bytes) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_bytes", read_only)
    with pytest.raises(OpenBookError, match=r"nothing can be written here: the file system is read-only"):
        check_writable(tmp_path / "cache", "data.cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_sizes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(70))
    (tmp_path / "c").write_bytes(bytes(7))
    assert size_of(tmp_path) == 77 and size_of(tmp_path / "nowhere") == 0


def test_a_plan_knows_both_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints on another disk than the cache are asked of that disk, less those that are there already."""
    from openbook.setup.resources import space

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(bytes(300))
    monkeypatch.setattr("openbook.utils.host_memory.disk_free", lambda _: 1000)
    space.check_checkpoints(1300, tmp_path)
    with pytest.raises(OpenBookError, match=r"1001 B of checkpoints|1\.0 KiB of checkpoints"):
        space.check_checkpoints(1301, tmp_path)
    settings = SimpleNamespace(keep_checkpoints=1, monitor="")
    config = SimpleNamespace(trainer=settings, data=SimpleNamespace(validation=""), objective="rag_token")
    assert space.n_checkpoints(config) == 2  # type: ignore[arg-type]
