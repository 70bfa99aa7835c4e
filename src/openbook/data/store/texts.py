"""Texts of a passage file as arrays, checked and written in one pass over the file."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from openbook.batch import Passage
from openbook.data.readers.checked_lines import file_fingerprint
from openbook.data.readers.formats import check_passages
from openbook.data.store.arrays import GrowingArray, new_folder
from openbook.errors import OpenBookError
from openbook.utils.console import progress

_CHUNK = 1 << 22  # bytes of text written at once


def build_texts(target: Path, passages: str | Path, content: str, cache: Path, expected: int) -> None:
    """Make the folder: id, title and text of all passages in one UTF-8 blob, [3 n + 1] offsets, ids sorted by hash.
    expected: about how many passages there are, 0 for unknown. Raises OpenBookError on bad input,
    and where the file's content is another by the end."""
    facts: dict[str, str | int] = {"content": content, "n_passages": 0}
    with new_folder(target, cache, facts) as new:
        hashes, bytes_of = array("Q"), array("i")
        with (
            GrowingArray(new / "blob.npy", np.dtype(np.uint8)) as blob,
            progress("reading passages", "passages", brief=True) as told,
        ):
            written = bytearray()

            def write(passage: Passage, hashed: int) -> None:
                for part in (passage.id.encode(), passage.title.encode(), passage.text.encode()):
                    bytes_of.append(len(part))
                    written.extend(part)
                hashes.append(hashed)
                if len(written) >= _CHUNK:
                    blob.append(np.frombuffer(bytes(written), np.uint8))
                    written.clear()
                if len(hashes) % 1000 == 0:
                    told(len(hashes), expected if expected > len(hashes) else 0)

            facts["n_passages"] = check_passages(passages, write)
            blob.append(np.frombuffer(bytes(written), np.uint8))
            told(len(hashes), len(hashes))
        if file_fingerprint(passages, cache) != content:
            raise OpenBookError("the file was changed while it was read", where=passages, action="Start again.")
        offsets = np.zeros(len(bytes_of) + 1, dtype=np.int64)
        np.cumsum(np.frombuffer(bytes_of, np.int32), out=offsets[1:])
        np.save(new / "offsets.npy", offsets)
        by_id = np.frombuffer(hashes, np.uint64)
        order = np.argsort(by_id, kind="stable")
        np.save(new / "id_hashes.npy", by_id[order])
        np.save(new / "id_rows.npy", order)
