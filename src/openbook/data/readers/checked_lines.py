"""Lines of text files that users bring: read with bounded memory, decoded strictly, and every fault counted.

A check reports the first line of each kind of fault with the number of lines that share it, all kinds at once.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from openbook.batch import Example, Passage
from openbook.data.readers.compressed import must_exist, unpacked
from openbook.errors import OpenBookError, raise_all
from openbook.utils.files.file_sums import Tick, file_sum

# A longer line is refused: it is a file without line breaks, not a passage of some hundred words.
MAX_LINE_BYTES = 1_000_000

_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "UTF-8 with a byte order mark", "tail -c +4 {0} > {0}.utf8"),
    (b"\xff\xfe", "UTF-16", "iconv -f UTF-16 -t UTF-8 {0} > {0}.utf8"),
    (b"\xfe\xff", "UTF-16", "iconv -f UTF-16 -t UTF-8 {0} > {0}.utf8"),
)


class BadLineError(Exception):
    """What is wrong with one line; where it stands is added by who knows."""

    def __init__(self, what: str, *, got: str = "", expected: str = "", action: str = ""):
        super().__init__(what)
        self.what, self.got, self.expected, self.action = what, got, expected, action

    def at(self, where: str, note: str = "") -> OpenBookError:
        return OpenBookError(
            self.what, where=where, got=self.got, expected=self.expected, action=f"{note} {self.action}".strip()
        )


def id_hash(text: str) -> int:
    """A 64-bit hash of an id, the same in every process (Python's own is salted)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def file_fingerprint(path: str | Path, cache: str | Path | None = None, tick: Tick | None = None) -> str:
    """The sha256 of a file's bytes, in hexadecimal (see utils/file_sums.py)."""
    must_exist(Path(path))
    return file_sum(path, cache, tick)


def read_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, byte offset, line without its end); blank lines are passed over. A line over the limit
    comes cut just above it, so that memory stays bounded."""
    number, start = 0, 0
    with unpacked(path) as handle:
        while raw := handle.readline(MAX_LINE_BYTES + 2):
            number += 1
            if number == 1:
                _refuse_byte_order_mark(path, raw)
            length = len(raw)
            line, rest = raw.rstrip(b"\r\n"), raw
            while not rest.endswith(b"\n") and (rest := handle.readline(MAX_LINE_BYTES)):
                length += len(rest)
            if line.strip():
                yield number, start, line
            start += length


def _refuse_byte_order_mark(path: Path, raw: bytes) -> None:
    for mark, name, command in _BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            raise OpenBookError(
                "the file is not plain UTF-8",
                where=f"{path}:1",
                got=f"the bytes {mark.hex(' ')} at the start, as {name} has them",
                expected="UTF-8 without a byte order mark",
                action=f"Convert it: {command.format(path)}",
            )


def decoded(raw: bytes) -> str:
    if len(raw) > MAX_LINE_BYTES:
        raise BadLineError(
            "a line is too long",
            got=f"more than {MAX_LINE_BYTES:,} bytes",
            expected=f"at most {MAX_LINE_BYTES:,} bytes",
            action="Put each record on a line of its own and split long texts into passages of about 100 words.",
        )
    if b"\0" in raw:
        likely = "the file is likely UTF-16: convert it with iconv -f UTF-16LE -t UTF-8"
        raise BadLineError(
            "a line holds NUL characters",
            got=f"{raw.count(0)} of them, the first at byte {raw.index(0) + 1}",
            action=f"Remove them{'; ' + likely if raw.count(0) * 4 > len(raw) else ''}.",
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLineError(
            "the file is not UTF-8",
            got=f"byte 0x{raw[error.start]:02x} at position {error.start + 1} of the line",
            expected="UTF-8",
            action="It is likely Windows-1252 (or Latin-1); convert it: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW",
        ) from None


def check_records(
    path: Path,
    records: Callable[[], Iterable[tuple[int, Passage | Example | BadLineError]]],
    empty: BadLineError,
    numbered: bool = False,
    seen: Callable[[Any, int], None] | None = None,
) -> int:
    """How many records a file holds, each given with the number of its line or what is wrong with that line. seen:
    called with each sound record and the hash of its id.

    Raises OpenBookError on faults, on an `empty` file, and on an id that comes twice: equal hashes are looked up in a
    second pass over the records, which compares the ids themselves. numbered: a line without an id goes by its number.
    """
    first: dict[str, tuple[int, BadLineError]] = {}
    counts: Counter[str] = Counter()
    hashes = array("Q")
    for number, record in records():
        if isinstance(record, BadLineError):
            first.setdefault(record.what, (number, record))
            counts[record.what] += 1
        else:
            hashed = id_hash(record.id)
            hashes.append(hashed)
            if seen:
                seen(record, hashed)
    n_lines = len(hashes) + counts.total()
    raise_all(
        [
            fault.at(f"{path}:{number}", f"{counts[what]} of {n_lines} lines have this fault.")
            for what, (number, fault) in first.items()
        ]
    )
    if not hashes:
        raise empty.at(str(path))
    ordered = np.sort(np.frombuffer(hashes, dtype=np.uint64))
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if suspects:
        numbered_ids = ((number, record.id) for number, record in records() if not isinstance(record, BadLineError))
        _refuse_duplicates(
            path, [(number, name) for number, name in numbered_ids if id_hash(name) in suspects], numbered
        )
    return len(hashes)


def _refuse_duplicates(path: Path, numbered_ids: Iterable[tuple[int, str]], numbered: bool) -> None:
    lines: dict[str, list[int]] = {}
    for number, identity in numbered_ids:
        lines.setdefault(identity, []).append(number)
    repeats = [(numbers[1], numbers[0], identity) for identity, numbers in lines.items() if len(numbers) > 1]
    if repeats:
        two, one, identity = min(repeats)
        got = f"the id {identity!r} of line {one} again on line {two}"
        if numbered and identity in (str(one), str(two)):
            got = f"{identity!r} for lines {one} and {two} (a line without `id` goes by its number)"
        raise OpenBookError(
            "an id comes twice",
            where=f"{path}:{two}",
            got=got,
            expected="each id once",
            action=f"{sum(map(len, lines.values())) - len(lines)} lines repeat an earlier id. Rename or remove them.",
        )
