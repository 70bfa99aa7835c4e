"""What the store of a corpus will take on the disk, told before it is built; refused where the disk has no room."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from openbook.data.inputs import token_ids
from openbook.data.readers.checked_lines import read_lines
from openbook.data.readers.compressed import packing
from openbook.data.store.tokens import Tokens
from openbook.errors import OpenBookError
from openbook.utils.console import say

_SAMPLE = 512  # lines of the file that are looked at
_TOLD = 100_000_000  # bytes; what is smaller is not worth a line


class Size(NamedTuple):
    """About how many passages there are, and the bytes of all arrays, once built and at most while they are."""

    n_passages: int
    built: int
    building: int


def store_size(passages: Path, asked: Sequence[Tokens], with_texts: bool) -> Size:
    """Estimated from the file's first lines; of a packed one from how these lines would pack."""
    lines = [line for _, _, line in islice(read_lines(passages), _SAMPLE)]
    n_bytes = sum(len(line) + 1 for line in lines)
    if not lines:  # refused when it is read
        return Size(0, 0, 0)
    size = passages.stat().st_size
    if packing(passages):
        size = int(size * n_bytes / len(zlib.compress(b"\n".join(lines))))
    n = len(lines) if size <= n_bytes + 1 else round(size * len(lines) / n_bytes)
    texts = [_text(line) for line in lines]
    # Of 3 offsets, a hash and its row, 8 bytes each; of an offset and a title's length, 8 and 4.
    of_texts = n * (sum(len(text.encode()) for text in texts) // len(texts) + 40)
    of_tokens = [
        n * (sum(map(len, token_ids(one.tokenizer, texts))) * one.dtype.itemsize // len(texts) + 12) for one in asked
    ]
    built = sum(of_tokens) + (of_texts if with_texts else 0)
    return Size(n, built, built + max(of_tokens, default=0))


def announce(passages: Path, cache: Path, size: Size, kept: int = 0) -> None:
    """Say what will be built where; OpenBookError where there is less room. kept: bytes that an interrupted build has
    written of it."""
    folder = next((one for one in (cache, *cache.resolve().parents) if one.exists()), Path("."))
    free = shutil.disk_usage(folder).free
    if size.building - kept > free:
        raise OpenBookError(
            "the disk has no room for the corpus store",
            where=f"data.cache={cache}",
            got=f"{_bytes(free)} free",
            expected=f"about {_bytes(size.building)} for some {size.n_passages:,} passages of {passages}",
            action="Set data.cache to a folder on a larger disk.",
        )
    if size.built >= _TOLD:
        say(
            f"building the store of {passages}: some {size.n_passages:,} passages, about {_bytes(size.built)} on disk, "
            f"{_bytes(size.building)} while it is built; {_bytes(free)} are free in {cache}"
        )


def _text(line: bytes) -> str:
    """What of a line is stored, near enough to measure it."""
    text = line.decode(errors="replace")
    if text.startswith("{"):
        try:
            return " ".join(str(value) for value in json.loads(text).values())
        except (ValueError, AttributeError):
            pass
    return text


def _bytes(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
