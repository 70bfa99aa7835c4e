"""`index add`: passages join the corpus that a trained run answers from, encoded by its own passage encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from openbook.commands.evaluate import load_trained
from openbook.config.checks import has_index
from openbook.config.schema import Config
from openbook.data.readers.checked_lines import file_fingerprint
from openbook.data.readers.detect import DOCUMENTS, exists
from openbook.errors import OpenBookError
from openbook.retrieval.dense import DenseRetriever
from openbook.setup.inputs.data import named_file
from openbook.setup.inputs.grown import Joined, join_passages
from openbook.setup.inputs.own_files import own_passages, unique_passages, was_cut
from openbook.tracking.added_passages import PASSAGES, REPORT, answering_overrides, folder_of, newest
from openbook.tracking.run_folder import RunFolder, read_json
from openbook.utils.atomic import replacing_folder, write_json
from openbook.utils.console import say, say_result
from openbook.utils.turns import in_turn

READING = ("data.columns=", "data.split.")  # what may be said of how the file is read


def index_add(folder: str, words: Sequence[str]) -> Path | None:
    """Add the passages of a file (or folder) to a run's corpus; returns the folder of the new one, None where the
    corpus has them all already.

    words: the file, and perhaps data.columns=... or data.split.*=..., by which it is read. A passage with the id of
    another text takes its place. The new corpus is RUN/corpus/NUMBER/, there once its passages are encoded, or not at
    all; the run's own files stay as they are. Only passages that the run's encoder has not met are encoded: their
    vectors are found by what it reads of them (index/vector_store.py). That data.corpus is another one than the run was
    trained over is said. OpenBookError for a run without passages, and for bad input.
    """
    run = RunFolder.existing(folder)
    if not words or "=" in words[0]:
        raise OpenBookError("`index add` needs a file of passages", action=f"openbook index add {folder} FILE")
    name, overrides = words[0], list(words[1:])
    if other := [one for one in overrides if not one.startswith(READING)]:
        raise OpenBookError(
            "it says nothing of how the passages are read",
            where=other[0],
            expected=" or ".join(f"{one}..." for one in READING),
        )
    if not exists(name):
        raise OpenBookError("there are no passages to add", where=name, expected="a file, a folder, or hf:NAME")
    reading = run.load_config(overrides, training=False)
    if reading.objective == "closed_book":
        raise OpenBookError("the run has no passages", where="objective", got="closed_book")
    with in_turn(reading.data.cache, f"added-{hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:12]}"):
        return _add(run, name, reading)


class _NothingNewError(Exception):
    """Ends the block that writes a new corpus, without one."""


def _add(run: RunFolder, name: str, reading: Config) -> Path | None:
    before = newest(run.path)
    config = run.load_config(answering_overrides(run.path), training=False)
    base = named_file(config, "corpus", config.data.corpus)
    assert base is not None  # a run has a corpus
    if before is None:
        _tell_of_changes(run, config, base)
    joining = own_passages(reading, name)
    target = folder_of(run.path, before.number + 1 if before else 1)
    try:
        with replacing_folder(target) as new:
            passages = new / PASSAGES
            joined = join_passages(base, joining, passages, Path(config.data.cache), was_cut(joining))
            say(f"{name}: {_told(joined)}; {joined.n_passages:,} passages in all")
            if not joined.changes:
                raise _NothingNewError
            report = joined._asdict() | {"encoded": _encode(run, config, passages), "source": name, "base": str(base)}
            cut = was_cut(base) or was_cut(joining)  # then questions may name documents
            report |= {"format": DOCUMENTS if cut else "passages"}
            report |= {"sha256": {"joined": file_fingerprint(joining), "passages": file_fingerprint(passages)}}
            write_json(new / REPORT, report)
    except _NothingNewError:
        return None
    if read_json(target / REPORT) != report:
        action = "Add these once more."
        raise OpenBookError("another process has added passages at the same moment", where=target, action=action)
    say_result(f"{run.path} answers from {target}: `openbook evaluate {run.path}` tests it")
    return target


def _encode(run: RunFolder, config: Config, passages: Path) -> int:
    """Encode what the run's encoder has not met yet, and keep the vectors; how many passages that were."""
    if not has_index(config):
        return 0
    if config.index.factory != "Flat" or not config.index.keep_vectors:
        why = f"index.factory={config.index.factory}" if config.index.keep_vectors else "index.keep_vectors=0"
        say(f"no vectors are kept with {why}: the whole corpus is encoded whenever the run answers")
        return 0
    # Retrieval alone: without questions, and without the generator.
    data = replace(config.data, corpus=str(passages), train="", validation="", test="")
    module, prepared, refresh, *_ = load_trained(run, replace(config, objective="dpr", data=data))
    assert refresh is not None  # its index is that of two encoders
    module.to(torch.device("cuda" if prepared.on == "gpu" else "cpu"))
    refresh.manager.ensure(cast(DenseRetriever, module.retriever), 0)
    encoded, n_passages = refresh.manager.rebuild.encoded, prepared.parts.corpus.n_passages
    say(f"{encoded:,} passages were encoded; the vectors of {n_passages - encoded:,} were kept from before")
    return encoded


def _tell_of_changes(run: RunFolder, config: Config, base: Path) -> None:
    """Say that the file which data.corpus names is no longer what the run was trained over."""
    trained = run.read_summary().get("data", {}).get("corpus")
    now = base if config.data.duplicates == "keep" else unique_passages(config, base)[0]
    if trained and trained != file_fingerprint(now):
        say(f"data.corpus={config.data.corpus} has changed since the run was trained: passages join it as it is now")


def _told(joined: Joined) -> str:
    gone = f", {joined.removed:,} removed (beyond the end of a document that is shorter now)" if joined.removed else ""
    return f"{joined.added:,} passages added, {joined.edited:,} edited, {joined.unchanged:,} unchanged{gone}"
