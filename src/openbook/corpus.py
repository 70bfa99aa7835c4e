"""The corpus as memory-mapped arrays: every passage is tokenised once, and looked up by its row ever after.

On disk, under `cache/corpus-<content fingerprint>/`:

    texts/              id, title and text of all passages in one UTF-8 blob, [3 n + 1] offsets, ids sorted by hash
    tokens-<tokenizer>/ one flat array of token ids, [n + 1] offsets, [n] title lengths; two roles with the same
                        tokenizer share one

Each folder is written under a temporary name and renamed, so that a half-written one never bears the name; when two
processes race, the first rename wins and the other's work is thrown away. A manifest holds the size of every file; a
folder that does not match it is rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from openbook.batch import Passage
from openbook.errors import OpenBookError
from openbook.formats import check_passages, read_passages
from openbook.lines import file_fingerprint, id_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

LAYOUT = 1
"""The version of the files below; raised when they change, so that older ones are rebuilt."""

_CHUNK = 1024  # passages tokenised at once: enough to keep the tokenizer's threads busy, a few MB of memory
_UINT16_RANGE = 1 << 16
_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (passages tokenised so far, passages to tokenise in all); each distinct tokenizer counts its own."""


@dataclass(frozen=True)
class PassageTokens:
    """Token ids of all passages under one tokenizer, without special tokens.

    flat: [n_tokens] uint16 or int32, each passage's title and then its text. offsets: [n_passages + 1] int64 into it.
    title_lengths: [n_passages] int32. The text is tokenised with one space before it, as it follows its title;
    byte-level and sentencepiece vocabularies write a word differently there, WordPiece does not.
    """

    flat: np.ndarray
    offsets: np.ndarray
    title_lengths: np.ndarray

    def title(self, row: int) -> np.ndarray:
        """[title tokens]. Raises IndexError on a row that is not in the corpus, MISSING_ROW included."""
        start = self.offsets[_checked(row, len(self.title_lengths))]
        return self.flat[start : start + self.title_lengths[row]]

    def text(self, row: int) -> np.ndarray:
        """[text tokens]. Raises IndexError like `title`."""
        start = self.offsets[_checked(row, len(self.title_lengths))] + self.title_lengths[row]
        return self.flat[start : self.offsets[row + 1]]

    def length(self, rows: ArrayLike) -> np.ndarray:
        """Tokens of title and text for each of the rows, in the shape of `rows`."""
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size:
            _checked(int(rows.min()), len(self.title_lengths))
            _checked(int(rows.max()), len(self.title_lengths))
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
        row = 3 * _checked(row, self.n_passages)
        bounds = self._ends[row : row + 4].tolist()
        raw = self._blob[bounds[0] : bounds[3]].tobytes()
        identity, title, text = (raw[start - bounds[0] : end - bounds[0]].decode() for start, end in pairwise(bounds))
        return Passage(identity, title, text)

    def passages(self, rows: Sequence[int] | np.ndarray) -> list[Passage]:
        """The passages at the rows, in their order. Raises IndexError like `passage`."""
        return [self.passage(int(row)) for row in rows]

    def row_of(self, identity: str) -> int | None:
        """The row of the passage with this id, None where there is none."""
        wanted = np.uint64(id_hash(identity))
        first, last = (int(np.searchsorted(self._hashes, wanted, side=side)) for side in ("left", "right"))
        for row in self._hash_rows[first:last].tolist():
            if self.passage(row).id == identity:
                return int(row)
        return None

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


def build_corpus(
    passages: str | Path, tokenizers: Mapping[str, Tokenizer], cache: str | Path, progress: Progress | None = None
) -> Corpus:
    """The corpus of a passage file: opened where the cache holds it, otherwise checked, written and tokenised first.

    tokenizers: from a role's name ("encoder", "generator") to the tokenizer it reads passages with. Of several ranks
    one should call this first; the others find the result. Raises OpenBookError on bad input (see formats).
    """
    content = file_fingerprint(passages)
    folder = Path(cache) / f"corpus-{content[:12]}"
    if not _valid(folder / "texts"):
        n_passages = check_passages(passages)
        with _new_folder(folder / "texts") as new:
            _write_texts(new, passages, n_passages)
            _write_manifest(new, {"content": content, "n_passages": n_passages})
    roles: dict[str, str] = {}
    missing: dict[str, tuple[str, Tokenizer]] = {}
    for role, tokenizer in tokenizers.items():
        fingerprint = tokenizer_fingerprint(tokenizer)
        roles[role] = fingerprint[:12]
        if fingerprint[:12] not in missing and not _valid(folder / f"tokens-{fingerprint[:12]}"):
            missing[fingerprint[:12]] = (fingerprint, tokenizer)
    corpus = Corpus(folder, roles)
    for nth, (name, (fingerprint, tokenizer)) in enumerate(missing.items()):
        with _new_folder(folder / f"tokens-{name}") as new:
            for done in _write_tokens(new, corpus, tokenizer):
                if progress:
                    progress(nth * corpus.n_passages + done, len(missing) * corpus.n_passages)
            _write_manifest(new, {"tokenizer": fingerprint, "n_passages": corpus.n_passages})
    return corpus


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """The sha256 of what decides a tokenizer's ids. Truncation and padding are left out: they are settings of the
    last call, and this project makes both itself."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        described = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    else:
        described = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _mapped(path: Path) -> np.ndarray:
    """A plain array over the mapped file: numpy's memmap class would cost a microsecond at every access."""
    return np.load(path, mmap_mode="r").view(np.ndarray)


def _checked(row: int, n_passages: int) -> int:
    if not 0 <= row < n_passages:
        raise IndexError(f"row {row} is not in the corpus of {n_passages} passages; a missing hit has no passage")
    return row


def _write_texts(folder: Path, passages: str | Path, n_passages: int) -> None:
    offsets = np.zeros(3 * n_passages + 1, dtype=np.int64)
    hashes = np.zeros(n_passages, dtype=np.uint64)
    with open(folder / "blob.raw", "wb") as blob:
        for row, passage in enumerate(read_passages(passages)):
            parts = [part.encode() for part in (passage.id, passage.title, passage.text)]
            offsets[3 * row + 1 : 3 * row + 4] = [len(part) for part in parts]
            hashes[row] = id_hash(passage.id)
            blob.writelines(parts)
    _raw_to_npy(folder / "blob.raw", np.dtype(np.uint8))
    np.save(folder / "offsets.npy", np.cumsum(offsets, out=offsets))
    order = np.argsort(hashes, kind="stable")
    np.save(folder / "id_hashes.npy", hashes[order])
    np.save(folder / "id_rows.npy", order)


def _write_tokens(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> Iterator[int]:
    """Writes the arrays, giving after each chunk how many passages are done."""
    dtype = np.dtype(np.uint16 if len(tokenizer) <= _UINT16_RANGE else np.int32)
    offsets = np.zeros(corpus.n_passages + 1, dtype=np.int64)
    title_lengths = np.zeros(corpus.n_passages, dtype=np.int32)
    with _parallel_tokenizers(), open(folder / "flat.raw", "wb") as flat:
        for start in range(0, corpus.n_passages, _CHUNK):
            rows = range(start, min(start + _CHUNK, corpus.n_passages))
            chunk = corpus.passages(rows)
            strings = [passage.title for passage in chunk] + [f" {passage.text}" for passage in chunk]
            ids = tokenizer(strings, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            for row, title, text in zip(rows, ids[: len(chunk)], ids[len(chunk) :], strict=True):
                title_lengths[row] = len(title)
                offsets[row + 1] = len(title) + len(text)
                np.asarray(title + text, dtype=dtype).tofile(flat)
            yield rows.stop
    _raw_to_npy(folder / "flat.raw", dtype)
    np.save(folder / "offsets.npy", np.cumsum(offsets, out=offsets))
    np.save(folder / "title_lengths.npy", title_lengths)


def _raw_to_npy(raw: Path, dtype: np.dtype) -> None:
    """Put the header of a .npy file before raw numbers whose count was not known while they were written."""
    with open(raw.with_suffix(".npy"), "wb") as target, open(raw, "rb") as source:
        shape = (raw.stat().st_size // dtype.itemsize,)
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(target, header)
        shutil.copyfileobj(source, target, 1 << 20)
    raw.unlink()


def _write_manifest(folder: Path, facts: dict[str, str | int]) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps({"layout": LAYOUT, **facts, "sizes": sizes}, indent=1))


def _valid(folder: Path) -> bool:
    """Whether the folder is there and as its manifest says; says aloud when it is there and is not."""
    if not folder.exists():
        return False
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        sizes = {name: (folder / name).stat().st_size for name in manifest["sizes"]}
        if manifest["layout"] == LAYOUT and sizes == manifest["sizes"]:
            return True
        reason = (
            "files differ from the manifest in size" if manifest["layout"] == LAYOUT else "it is of another version"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    _log.warning("the cached corpus %s is damaged (%s); it is built again", folder, reason)
    return False


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well and vanishes when it does not."""
    new = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        new.mkdir(parents=True)
        yield new
        if target.exists() and not _valid(target):
            os.replace(target, damaged := new.with_suffix(".damaged"))
            shutil.rmtree(damaged)
        try:
            os.replace(new, target)
        except OSError:
            if not _valid(target):  # otherwise another process was first, with the same content
                raise
    except PermissionError as error:
        action = "Choose another cache folder or mend its permissions."
        raise OpenBookError("the corpus cannot be written", where=target, got=str(error), action=action) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def _parallel_tokenizers() -> Iterator[None]:
    """Let the tokenizer use all cores, unless the user has decided; afterwards as before."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ.setdefault(name, "true")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
