"""Building the corpus store: passages validated, written and tokenised once per tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from openbook.data.corpus import Corpus
from openbook.data.encoder_inputs import EncoderFormat
from openbook.data.inputs import token_ids
from openbook.data.prompts import Prompt
from openbook.data.readers.checked_lines import file_fingerprint, id_hash
from openbook.data.readers.formats import check_passages, read_passages
from openbook.errors import OpenBookError
from openbook.utils.atomic import replacing_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


# The version of the files below; raised when they change, so that older ones are rebuilt.
LAYOUT = 1


_CHUNK = 1024  # passages tokenised at once: enough to keep the tokenizer's threads busy, a few MB of memory
_log = logging.getLogger(__name__)

# How the generator's tokens are written: of a format only layout and prefix count here.
_PLAIN = EncoderFormat((), (), (), 0, layout="separated")


# Called with (passages tokenised so far, passages to tokenise in all); each distinct tokenizer counts its own.
Progress = Callable[[int, int], None]


def build_corpus(
    passages: str | Path,
    tokenizers: Mapping[str, Tokenizer],
    cache: str | Path,
    progress: Progress | None = None,
    formats: Mapping[str, EncoderFormat | Prompt] | None = None,
) -> Corpus:
    """The corpus of a passage file: opened where the cache holds it, otherwise checked, written and tokenised first.

    tokenizers: from a role's name ("encoder", "generator") to the tokenizer it reads passages with. formats: how a role
    writes title and text; one without is given both apart, with a space before the text. Of several ranks one should
    call this first; the others find the result. Raises OpenBookError on bad input (see readers).
    """
    content = file_fingerprint(passages)
    folder = Path(cache) / f"corpus-{content[:12]}"
    if not _valid(folder / "texts"):
        n_passages = check_passages(passages)
        with _new_folder(folder / "texts", content=content, n_passages=n_passages) as new:
            _write_texts(new, passages, n_passages)
    formats = formats or {}
    written = {role: (tokenizer, formats.get(role, _PLAIN)) for role, tokenizer in tokenizers.items()}
    names = {role: tokens_fingerprint(*how) for role, how in written.items()}
    corpus = Corpus(folder, {role: name[:12] for role, name in names.items()})
    distinct = {names[role]: how for role, how in written.items()}
    missing = {name: how for name, how in distinct.items() if not _valid(folder / f"tokens-{name[:12]}")}
    for nth, (name, how) in enumerate(missing.items()):
        with _new_folder(folder / f"tokens-{name[:12]}", tokenizer=name, n_passages=corpus.n_passages) as new:
            for done in _write_tokens(new, corpus, *how):
                if progress:
                    progress(nth * corpus.n_passages + done, len(missing) * corpus.n_passages)
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


def tokens_fingerprint(tokenizer: Tokenizer, style: EncoderFormat | Prompt) -> str:
    """The sha256 of what decides a passage's ids: the tokenizer, and how title and text are written where that is not
    apart, with a space before the text; a pair is so too for a tokenizer to which that space is nothing."""
    fingerprint = tokenizer_fingerprint(tokenizer)
    if isinstance(style, Prompt):
        return fingerprint if style.is_plain else hashlib.sha256(f"{fingerprint} {style.spaces}".encode()).hexdigest()
    apart, after_space = token_ids(tokenizer, ["a", " a"])
    if style.is_plain or (style.layout == "pair" and not style.prefix and apart == after_space):
        return fingerprint
    return hashlib.sha256(json.dumps([fingerprint, style.layout, style.prefix]).encode()).hexdigest()


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


def _write_tokens(folder: Path, corpus: Corpus, tokenizer: Tokenizer, style: EncoderFormat | Prompt) -> Iterator[int]:
    """Writes the arrays, giving after each chunk how many passages are done."""
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.int32)
    offsets = np.zeros(corpus.n_passages + 1, dtype=np.int64)
    title_lengths = np.zeros(corpus.n_passages, dtype=np.int32)
    with _parallel_tokenizers(), open(folder / "flat.raw", "wb") as flat:
        for start in range(0, corpus.n_passages, _CHUNK):
            rows = range(start, min(start + _CHUNK, corpus.n_passages))
            for row, (title, text) in zip(rows, style.passage_ids(tokenizer, corpus.passages(rows)), strict=True):
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


def _valid(folder: Path) -> bool:
    """Whether the folder is there and as its manifest says; logs a warning when it is damaged."""
    if not folder.exists():
        return False
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        sizes = {name: (folder / name).stat().st_size for name in manifest["sizes"]}
        same_layout = manifest["layout"] == LAYOUT
        if same_layout and sizes == manifest["sizes"]:
            return True
        reason = "files differ from the manifest in size" if same_layout else "it is of another version"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    _log.warning("the cached corpus %s is damaged (%s); it is built again", folder, reason)
    return False


@contextmanager
def _new_folder(target: Path, **facts: str | int) -> Iterator[Path]:
    """A temporary folder that becomes `target`, with a manifest of these facts, when the block ends well and vanishes
    when it does not."""
    try:
        with replacing_folder(target, complete=_valid) as new:
            yield new
            sizes = {path.name: path.stat().st_size for path in sorted(new.iterdir())}
            (new / "manifest.json").write_text(json.dumps({"layout": LAYOUT, **facts, "sizes": sizes}, indent=1))
    except PermissionError as error:
        action = "Choose another cache folder or mend its permissions."
        raise OpenBookError("the corpus cannot be written", where=target, got=str(error), action=action) from None


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
