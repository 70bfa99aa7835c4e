"""Building the corpus store: passages validated, written and tokenised once per tokenizer (data/store/)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from openbook.data.corpus import Corpus
from openbook.data.encoder_inputs import EncoderFormat
from openbook.data.inputs import token_ids
from openbook.data.prompts import Prompt
from openbook.data.readers.checked_lines import file_fingerprint
from openbook.data.store.arrays import is_whole
from openbook.data.store.disk import announce, store_size
from openbook.data.store.leftovers import sweep
from openbook.data.store.texts import build_texts
from openbook.data.store.tokens import Tokens, build_tokens
from openbook.utils.console import progress
from openbook.utils.hardware import n_cores
from openbook.utils.turns import in_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

# How the generator's tokens are written: of a format only layout and prefix count here.
_PLAIN = EncoderFormat((), (), (), 0, layout="separated")


def build_corpus(
    passages: str | Path,
    tokenizers: Mapping[str, Tokenizer],
    cache: str | Path,
    formats: Mapping[str, EncoderFormat | Prompt] | None = None,
    processes: int = 0,
) -> Corpus:
    """The corpus of a passage file: opened where the cache holds it, otherwise checked, written and tokenised first.

    tokenizers: from a role's name ("encoder", "generator") to the tokenizer it reads passages with. formats: how a role
    writes title and text; one without is given both apart, with a space before the text. processes: that tokenise; 0:
    one for each core. A build that was killed is taken up where it was. Of several processes that call this one builds;
    the others find the result, or the reason why there is none. Raises OpenBookError on bad input (see readers), and
    where the disk has no room.
    """
    passages, cache, formats = Path(passages), Path(cache), formats or {}
    written = {role: (tokenizer, formats.get(role, _PLAIN)) for role, tokenizer in tokenizers.items()}
    names = {role: tokens_fingerprint(*how) for role, how in written.items()}
    asked = {names[role]: Tokens(names[role], how[0], how[1].writing) for role, how in written.items()}
    path = hashlib.sha256(str(passages.resolve()).encode()).hexdigest()[:12]
    with in_turn(cache, f"corpus-{path}", work=" ".join([path, *sorted(asked)])):
        with progress(f"looking at {passages}", "MB", brief=True) as told:
            content = file_fingerprint(passages, cache, lambda done, size: told(done >> 20, size >> 20))
        folder = cache / f"corpus-{content[:12]}"
        with in_turn(cache, folder.name) as locked:  # another file may have the same content
            _complete(folder, passages, content, asked, cache, processes or n_cores(), locked)
    return Corpus(folder, {role: name[:12] for role, name in names.items()})


def _complete(
    folder: Path,
    passages: Path,
    content: str,
    asked: Mapping[str, Tokens],
    cache: Path,
    processes: int,
    locked: bool,
) -> None:
    """Build what the folder lacks. locked: whether no other process is at it."""
    texts = folder / "texts"
    has_texts = is_whole(texts, cache)
    missing = {name: one for name, one in asked.items() if not is_whole(folder / f"tokens-{name[:12]}", cache)}
    built = has_texts and not missing
    if not built or any(folder.glob(".*")):
        sweep(cache, folder, locked)
    if built:
        return
    size = store_size(passages, list(missing.values()), not has_texts)
    kept = sum(piece.stat().st_size for piece in folder.glob(".tokens-*.building/*"))
    announce(passages, cache, size, kept)
    if not has_texts:
        build_texts(texts, passages, content, cache, size.n_passages)
    for name, one in missing.items():
        build_tokens(folder / f"tokens-{name[:12]}", texts, one, cache, processes, private=not locked)


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
