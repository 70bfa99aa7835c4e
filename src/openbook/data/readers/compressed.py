"""Bytes of a file, whatever packs it: gzip, bzip2, xz and zstd are known by their first bytes, not by a name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from openbook.errors import OpenBookError

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
_CHUNK = 1 << 17


def must_exist(path: Path) -> None:
    if not path.is_file():
        raise OpenBookError("there is no such file", where=path, action="Check the path; nothing is downloaded.")


def packing(path: Path) -> str:
    """What packs a file ("gzip", "bzip2", "xz", "zstd"); "" for a plain one."""
    must_exist(path)
    with open(path, "rb") as handle:
        head = handle.read(6)
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file without what packs them. Raises OpenBookError where it is damaged or cut off, and where zstd
    is not installed."""
    kind = packing(path)
    if kind == "zstd":
        handle: Any = io.BufferedReader(_ZstdReader(path), _CHUNK)
    else:
        openers: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
        handle = openers.get(kind, open)(path, "rb")
    try:
        yield cast("IO[bytes]", handle)
    except _DAMAGED as error:
        raise _damaged(path, kind, error) from None
    except OSError as error:  # bzip2 has no exception of its own
        if kind != "bzip2" or error.errno is not None:
            raise
        raise _damaged(path, kind, error) from None
    finally:
        handle.close()


def _damaged(path: Path, kind: str, error: BaseException) -> OpenBookError:
    action = "Fetch or pack it again."
    return OpenBookError(f"the {kind or 'packed'} file is damaged", where=path, got=str(error), action=action)


class _ZstdReader(io.RawIOBase):
    """All frames of a zstd file. zstandard's own reader ends quietly where a file is cut off; this one says so."""

    def __init__(self, path: Path):
        try:
            import zstandard
        except ImportError:
            raise OpenBookError(
                "zstd files need the package zstandard", where=path, action="pip install 'openbook[formats]'."
            ) from None
        self._new, self._error = zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError
        self._file, self._frame, self._ready = open(path, "rb"), self._new(), b""  # noqa: SIM115  (closed in close)
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._ready:
            packed = self._frame.unused_data if self._frame.eof else b""
            packed = packed or self._file.read(_CHUNK)
            if not packed:
                if self._begun and not self._frame.eof:
                    raise EOFError("it ends within a frame")
                return 0
            if self._frame.eof:
                self._frame = self._new()
            self._begun = True
            try:
                self._ready = self._frame.decompress(packed)
            except self._error as error:
                raise EOFError(str(error)) from None
        n = min(len(target), len(self._ready))
        target[:n], self._ready = self._ready[:n], self._ready[n:]
        return n

    def close(self) -> None:
        self._file.close()
        super().close()
