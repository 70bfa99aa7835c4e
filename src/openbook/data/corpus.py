"""The corpus as memory-mapped arrays: every passage is tokenised once, and looked up by its row ever after.

On disk, under `cache/corpus-<content fingerprint>/`:

    texts/              id, title and text of all passages in one UTF-8 blob, [3 n + 1] offsets, ids sorted by hash
    tokens-<tokenizer>/ one flat array of token ids, [n + 1] offsets, [n] title lengths; two roles with the same
                        tokenizer share one, unless an encoder's format writes title and text in another way

Each folder is written under a temporary name and renamed, so that a half-written one never bears the name. A manifest
holds size and sha256 of every file (data/store/arrays.py); a folder that does not match it is rebuilt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from openbook.batch import Passage
from openbook.data.readers.checked_lines import id_hash


@dataclass(frozen=True)
class PassageTokens:
    """Token ids of all passages under one tokenizer, without special tokens.

    flat: [n_tokens] uint16 or uint32, each passage's title and then its text. offsets: [n_passages + 1] int64 into it.
    title_lengths: [n_passages] int32. For the generator the text is tokenised with one space before it, as it follows
    its title; byte-level and sentencepiece vocabularies write a word differently there, WordPiece does not. For an
    encoder its format decides (data/encoder_inputs.py): a prefix counts as part of the title, and where title and text
    are joined all is text.
    """

    flat: np.ndarray
    offsets: np.ndarray
    title_lengths: np.ndarray

    def length(self, rows: ArrayLike) -> np.ndarray:
        """Tokens of title and text for each of the rows, in the shape of `rows`. Raises IndexError on a row that is not
        in the corpus, MISSING_ROW included."""
        rows = np.asarray(rows, dtype=np.int64)
        n_passages = len(self.title_lengths)
        wrong = rows[(rows < 0) | (rows >= n_passages)].tolist()
        if wrong:
            raise IndexError(
                f"rows {wrong[:5]} are not in the corpus of {n_passages} passages; a missing hit has no passage"
            )
        return self.offsets[rows + 1] - self.offsets[rows]

    @property
    def lengths(self) -> np.ndarray:
        """[n_passages] int64: tokens of title and text."""
        return np.diff(self.offsets)


class Corpus:
    """Passages by row, ids to rows, and token ids per role. Pickles as its path, so that workers map it themselves."""

    def __init__(self, folder: Path, roles: Mapping[str, str]):
        """folder: `corpus-<fingerprint>`. roles: from a role's name to the first 12 digits of its tokenizer's
        fingerprint."""
        self.folder, self._roles = Path(folder), dict(roles)
        texts = self.folder / "texts"
        manifest = json.loads((texts / "manifest.json").read_text())
        self.fingerprint: str = manifest["content"]
        self.n_passages: int = manifest["n_passages"]
        self._blob = _mapped(texts / "blob.npy")
        self._ends = _mapped(texts / "offsets.npy")
        self._hashes = _mapped(texts / "id_hashes.npy")
        self._hash_rows = _mapped(texts / "id_rows.npy")
        self._tokens: dict[str, PassageTokens] = {}

    def __reduce__(self) -> tuple[type[Corpus], tuple[Path, dict[str, str]]]:
        return Corpus, (self.folder, self._roles)

    def __len__(self) -> int:
        return self.n_passages

    def passage(self, row: int) -> Passage:
        """The passage at a row. Raises IndexError on a row that is not in the corpus, MISSING_ROW included."""
        if not 0 <= row < self.n_passages:
            raise IndexError(
                f"row {row} is not in the corpus of {self.n_passages} passages; a missing hit has no passage"
            )
        bounds = self._ends[3 * row : 3 * row + 4].tolist()
        raw = self._blob[bounds[0] : bounds[3]].tobytes()
        identity, title, text = (raw[start - bounds[0] : end - bounds[0]].decode() for start, end in pairwise(bounds))
        return Passage(identity, title, text)

    def passages(self, rows: Sequence[int] | np.ndarray) -> list[Passage]:
        """The passages at the rows, in their order. Raises IndexError like `passage`."""
        return [self.passage(int(row)) for row in rows]

    def row_of(self, identity: str) -> int | None:
        """The row of the passage with this id, None where there is none."""
        key = np.uint64(id_hash(identity))
        first, last = (int(np.searchsorted(self._hashes, key, side=side)) for side in ("left", "right"))
        return next((row for row in self._hash_rows[first:last].tolist() if self.passage(row).id == identity), None)

    def tokens(self, role: str) -> PassageTokens:
        """The token ids for a role that the corpus was built with."""
        if role not in self._roles:
            raise KeyError(f"the corpus was built for the roles {sorted(self._roles)}, not for {role!r}")
        name = self._roles[role]
        if name not in self._tokens:
            folder = self.folder / f"tokens-{name}"
            arrays = (_mapped(folder / f"{part}.npy") for part in ("flat", "offsets", "title_lengths"))
            self._tokens[name] = PassageTokens(*arrays)
        return self._tokens[name]


def _mapped(path: Path) -> np.ndarray:
    """A plain array over the mapped file: numpy's memmap class would cost a microsecond at every access."""
    return np.load(path, mmap_mode="r").view(np.ndarray)
