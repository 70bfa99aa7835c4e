"""Saved passage vectors: found by what a passage says wherever it stands; damage, races and full disks cost no run."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from openbook.data.corpus import PassageTokens
from openbook.data.encoder_inputs import EncoderFormat
from openbook.index.passage_keys import passage_keys, store_name
from openbook.index.vector_store import VectorStore

DIM = 7
NAME, OTHER = "a" * 64, "b" * 64
PART = "0-13-of-c0ffee"
Ids = tuple[list[int], list[int]]


def tokens_of(passages: Sequence[Ids], dtype: type[np.generic] = np.uint16) -> PassageTokens:
    flat = np.array([i for title, text in passages for i in title + text], dtype=dtype)
    lengths = [len(title) + len(text) for title, text in passages]
    titles = np.array([len(title) for title, _ in passages], dtype=np.int32)
    return PassageTokens(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), titles)


def random_passages(n: int, seed: int = 0, longest: int = 23) -> list[Ids]:
    rng = np.random.default_rng(seed)
    return [
        (
            rng.integers(0, 30_000, rng.integers(0, 5)).tolist(),
            rng.integers(0, 30_000, rng.integers(2, longest)).tolist(),
        )
        for _ in range(n)
    ]


def keys_of(passages: Sequence[Ids]) -> np.ndarray:
    return passage_keys(tokens_of(passages), range(len(passages)))


def vectors_of(keys: np.ndarray) -> np.ndarray:
    """[n, DIM] a function of the key alone, as an encoder's would be."""
    return np.array([np.random.default_rng(key.tolist()).standard_normal(DIM) for key in keys], dtype=np.float32)


@pytest.fixture
def keys() -> np.ndarray:
    return keys_of(random_passages(13))


@pytest.fixture
def store(tmp_path: Path) -> VectorStore:
    return VectorStore(tmp_path / "store", keep=2)


@pytest.fixture
def saved(store: VectorStore, keys: np.ndarray) -> Path:
    """The folder of a part."""
    store.save(NAME, PART, keys, vectors_of(keys))
    return store.root / f"vectors-{NAME[:16]}" / PART


def fresh(store: VectorStore) -> VectorStore:
    """As another process sees it."""
    return VectorStore(store.root, store.keep)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Keys


def test_keys_are_distinct() -> None:
    passages = {(tuple(title), tuple(text)) for title, text in random_passages(10_000, longest=4)}
    keys = keys_of([(list(title), list(text)) for title, text in passages])
    assert len(passages) > 9_000
    assert len(np.unique(keys, axis=0)) == len(np.unique(keys[:, 0])) == len(np.unique(keys[:, 1])) == len(passages)


def test_the_border_between_title_and_text_counts() -> None:
    keys = keys_of([([1, 2], [3]), ([1], [2, 3]), ([], [1, 2, 3]), ([1, 2, 3], []), ([], [0, 1, 2, 3]), ([], [])])
    assert len(np.unique(keys, axis=0)) == 6


def test_keys_depend_on_the_passage_alone() -> None:
    passages = random_passages(31)
    narrow, wide = tokens_of(passages), tokens_of(passages, np.int32)
    order = np.random.default_rng(1).permutation(31)
    everywhere = passage_keys(narrow, range(31))
    assert everywhere.shape == (31, 2) and everywhere.dtype == np.uint64
    assert np.array_equal(passage_keys(wide, range(31)), everywhere)
    assert np.array_equal(passage_keys(narrow, order), everywhere[order])
    assert np.array_equal(passage_keys(tokens_of([passages[row] for row in order]), range(31)), everywhere[order])
    assert np.array_equal(passage_keys(narrow, range(5, 11)), everywhere[5:11])
    assert passage_keys(narrow, range(0)).shape == (0, 2)


def test_keys_are_the_same_on_every_machine() -> None:
    expected = hashlib.blake2b(np.array([2, 11, 13, 17], dtype="<u4").tobytes(), digest_size=16).digest()
    assert keys_of([([5], [6]), ([11, 13], [17])])[1].astype("<u8").tobytes() == expected


def test_many_passages_have_the_keys_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokens_of(random_passages(31))
    expected = np.concatenate([passage_keys(tokens, [row]) for row in range(31)])  # type: ignore[arg-type]
    monkeypatch.setattr("openbook.index.vector_store._CHUNK", 7)
    assert np.array_equal(passage_keys(tokens, range(31)), expected)


@pytest.mark.parametrize("row", [-1, 3])
def test_a_row_outside_the_corpus_has_no_key(row: int) -> None:
    with pytest.raises(IndexError, match=rf"rows \[{row}\] are not in the corpus of 3 passages"):
        passage_keys(tokens_of(random_passages(3)), np.array([0, row]))


def test_all_that_decides_an_embedding_is_in_the_name() -> None:
    style = EncoderFormat((101,), (102,), (102,), 0)
    base = store_name("f" * 64, 113, style, torch.float32)
    assert base == store_name("f" * 64, 113, EncoderFormat((101,), (102,), (102,), 0), torch.float32)
    others = [
        store_name("e" * 64, 113, style, torch.float32),
        store_name("f" * 64, 127, style, torch.float32),
        store_name("f" * 64, 113, replace(style, before=()), torch.float32),
        store_name("f" * 64, 113, replace(style, pads_left=True), torch.float32),
        store_name("f" * 64, 113, replace(style, layout="separated"), torch.float32),
        store_name("f" * 64, 113, replace(style, prefix="passage: "), torch.float32),
        store_name("f" * 64, 113, style, torch.bfloat16),
    ]
    assert len({base, *others}) == 8 and len(base) == 64


# Round trips


def test_what_was_saved_is_found_in_any_order(store: VectorStore, keys: np.ndarray, saved: Path) -> None:
    order = np.random.default_rng(2).permutation(13)
    known, vectors = fresh(store).find(NAME, keys[order])
    assert known.all() and vectors.dtype == np.float32
    assert np.array_equal(vectors, vectors_of(keys[order]))
    assert names_in(saved) == ["keys.npy", "manifest.json", "vectors.npy"]


def test_a_changed_corpus_finds_its_unchanged_passages(store: VectorStore, keys: np.ndarray, saved: Path) -> None:
    new = keys_of(random_passages(5, seed=3))
    asked = np.concatenate([new[:2], keys[[7, 3]], new[2:], keys[[3, 11]]])
    known, vectors = fresh(store).find(NAME, asked)
    assert known.tolist() == [False, False, True, True, False, False, False, True, True]
    assert np.array_equal(vectors, vectors_of(keys[[7, 3, 3, 11]]))


def test_passages_of_several_parts_come_in_the_order_asked(store: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbook.index.vector_store._CHUNK", 3)
    keys = keys_of(random_passages(29))
    store.save(NAME, "0-13-of-one", keys[:13], vectors_of(keys[:13]))
    store.save(NAME, "13-23-of-one", keys[11:23], vectors_of(keys[11:23]))
    order = np.random.default_rng(4).permutation(29)
    known, vectors = fresh(store).find(NAME, keys[order])
    assert np.array_equal(known, order < 23)
    assert np.array_equal(vectors, vectors_of(keys[order[order < 23]]))


def test_equal_passages_share_a_vector(store: VectorStore, keys: np.ndarray) -> None:
    twice = np.concatenate([keys, keys[[5]]])
    store.save(NAME, PART, twice, vectors_of(twice))
    known, vectors = fresh(store).find(NAME, keys[[5, 5]])
    assert known.all() and np.array_equal(vectors, vectors_of(keys[[5, 5]]))


def test_keys_that_share_one_half_are_told_apart(store: VectorStore, keys: np.ndarray, saved: Path) -> None:
    forged = keys.copy()
    forged[:, 1] ^= np.uint64(1)
    assert not fresh(store).find(NAME, forged)[0].any()


def test_other_weights_find_nothing(store: VectorStore, keys: np.ndarray, saved: Path) -> None:
    known, vectors = store.find(OTHER, keys)
    assert known.tolist() == [False] * 13 and vectors.shape == (0, 0)


def test_names_that_begin_alike_are_told_apart(
    store: VectorStore, keys: np.ndarray, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not store.find(NAME[:16] + OTHER[16:], keys)[0].any()
    assert "of another encoder" in warnings_of(caplog)[0]


def test_vectors_are_stored_as_float32(store: VectorStore, keys: np.ndarray) -> None:
    half = vectors_of(keys).astype(np.float16)
    store.save(NAME, PART, keys, np.asfortranarray(half))
    known, vectors = fresh(store).find(NAME, keys)
    assert known.all() and np.array_equal(vectors, half.astype(np.float32)) and vectors.dtype == np.float32


def test_nothing_asked_and_nothing_saved(store: VectorStore) -> None:
    none = np.empty((0, 2), dtype=np.uint64)
    store.save(NAME, PART, none, np.empty((0, DIM), dtype=np.float32))
    assert not store.root.exists()
    known, vectors = store.find(NAME, none)
    assert known.shape == (0,) and vectors.shape == (0, 0)


def test_the_same_keys_are_not_written_again(store: VectorStore, keys: np.ndarray, saved: Path) -> None:
    number = (saved / "vectors.npy").stat().st_ino
    os.utime(saved.parent, (1, 1))
    fresh(store).save(NAME, PART, keys, vectors_of(keys))
    assert (saved / "vectors.npy").stat().st_ino == number
    assert saved.parent.stat().st_mtime > 1


def test_other_keys_replace_a_part(store: VectorStore, keys: np.ndarray, saved: Path) -> None:
    new = keys_of(random_passages(11, seed=5))
    store.save(NAME, PART, new, vectors_of(new))
    assert store.find(NAME, new)[0].all() and not store.find(NAME, keys)[0].any()
    assert names_in(store.root) == [saved.parent.name] and names_in(saved.parent) == [PART]


@pytest.mark.parametrize("part", ["", ".", "..", "a/b", "../a", ".hidden"])
def test_a_part_is_one_folder(store: VectorStore, keys: np.ndarray, part: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a folder"):
        store.save(NAME, part, keys, vectors_of(keys))


def test_keys_and_vectors_belong_together(store: VectorStore, keys: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(13, 2\) keys and \(12, 7\) vectors, expected"):
        store.save(NAME, PART, keys, vectors_of(keys)[:12])


# Damage


def rewrite_manifest(part: Path) -> None:
    """Make the manifest agree with the files again, as one who forges them would."""
    manifest = json.loads((part / "manifest.json").read_text())
    for file in manifest["files"]:
        raw = (part / file).read_bytes()
        manifest["files"][file] = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (part / "manifest.json").write_text(json.dumps(manifest))


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 5)


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 4
    file.write_bytes(raw)


DAMAGE = {
    "truncated keys": (lambda part: truncate(part / "keys.npy"), "another size"),
    "truncated vectors": (lambda part: truncate(part / "vectors.npy"), "another size"),
    "flipped keys": (lambda part: flip(part / "keys.npy"), "keys.npy has another sha256"),
    "flipped vectors": (lambda part: flip(part / "vectors.npy"), "vectors.npy has another sha256"),
    "no vectors": (lambda part: (part / "vectors.npy").unlink(), "No such file"),
    "no manifest": (lambda part: (part / "manifest.json").unlink(), "No such file"),
    "half a manifest": (lambda part: truncate(part / "manifest.json"), "line 1"),
    "a list": (lambda part: (part / "manifest.json").write_text("[1]"), "TypeError"),
    "deep": (lambda part: (part / "manifest.json").write_text("[" * 100_000), "RecursionError"),
    "no facts": (lambda part: (part / "manifest.json").write_text("{}"), "KeyError('layout')"),
    "no text": (lambda part: (part / "manifest.json").write_bytes(b"\xff\xfe\0"), "can't decode"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_part_is_ignored_and_then_replaced(
    kind: str, store: VectorStore, keys: np.ndarray, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = keys_of(random_passages(5, seed=3))
    store.save(NAME, "13-18-of-c0ffee", more, vectors_of(more))
    damage, reason = DAMAGE[kind]
    damage(saved)
    reader = fresh(store)
    for _ in range(2):
        known, vectors = reader.find(NAME, np.concatenate([keys, more]))
        assert known.tolist() == [False] * 13 + [True] * 5
        assert np.array_equal(vectors, vectors_of(more))
    reader.save(NAME, PART, keys, vectors_of(keys))
    [warning] = warnings_of(caplog)
    assert str(saved) in warning and reason in warning and "passages encoded again" in warning
    known, vectors = fresh(store).find(NAME, keys)
    assert known.all() and np.array_equal(vectors, vectors_of(keys))
    assert names_in(store.root) == [saved.parent.name] and len(warnings_of(caplog)) == 1


def test_damage_after_the_first_look_is_seen(store: VectorStore, keys: np.ndarray, saved: Path) -> None:
    reader = fresh(store)
    assert reader.find(NAME, keys)[0].all()
    flip(saved / "vectors.npy")
    os.utime(saved / "vectors.npy", (1, 1))
    assert not reader.find(NAME, keys)[0].any()


class Trap:
    """What unpickles it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT)


@pytest.mark.parametrize("file", ["keys.npy", "vectors.npy"])
def test_nothing_is_unpickled(
    file: str, store: VectorStore, keys: np.ndarray, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(saved / file, np.array([[Trap(tmp_path / "sprung")] * 2] * 13), allow_pickle=True)
    rewrite_manifest(saved)
    assert not fresh(store).find(NAME, keys)[0].any()
    assert len(warnings_of(caplog)) == 1 and not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("file", "array"),
    [
        ("keys.npy", np.zeros((13, 3), np.uint64)),
        ("keys.npy", np.zeros((12, 2), np.uint64)),
        ("keys.npy", np.zeros((13, 2))),
        ("vectors.npy", np.zeros((13, DIM))),
        ("vectors.npy", np.zeros(13, np.float32)),
        ("vectors.npy", np.zeros((0, DIM), np.float32)),
    ],
)
def test_arrays_of_another_shape_or_type_are_ignored(
    file: str, array: np.ndarray, store: VectorStore, keys: np.ndarray, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(saved / file, array)
    rewrite_manifest(saved)
    assert not fresh(store).find(NAME, keys)[0].any()
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("header", ["{((", "{'descr': '<f4', 'fortran_order': False, 'shape': (1" + "0" * 30 + ", 2)}"])
def test_a_forged_header_is_ignored(
    header: str, store: VectorStore, keys: np.ndarray, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    (saved / "vectors.npy").write_bytes(start + header.encode() + bytes(64))
    rewrite_manifest(saved)
    assert not fresh(store).find(NAME, keys)[0].any()
    assert "it cannot be read" in warnings_of(caplog)[0]


def test_parts_of_another_width_are_not_mixed(store: VectorStore, keys: np.ndarray, saved: Path) -> None:
    more = keys_of(random_passages(5, seed=3))
    store.save(NAME, "other", more, np.zeros((5, DIM + 4), np.float32))
    known, vectors = fresh(store).find(NAME, np.concatenate([more, keys]))
    assert known.tolist() == [False] * 5 + [True] * 13 and vectors.shape == (13, DIM)


def test_files_are_checked_once_and_only_where_they_are_used(
    store: VectorStore, keys: np.ndarray, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = keys_of(random_passages(5, seed=3))
    store.save(NAME, "0-1-of-beef", np.concatenate([more, keys[:1]]), vectors_of(np.concatenate([more, keys[:1]])))
    read: list[str] = []
    real = hashlib.file_digest

    def counted(handle: object, kind: str) -> object:
        read.append("/".join(Path(handle.name).parts[-2:]))  # type: ignore[attr-defined]
        return real(handle, kind)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", counted)
    reader = fresh(store)
    for _ in range(3):
        assert reader.find(NAME, keys)[0].all()
    assert sorted(read) == ["0-1-of-beef/keys.npy", f"{PART}/keys.npy", f"{PART}/vectors.npy"]


# Writing


@pytest.mark.parametrize("call", ["fsync", "replace", "utime"])
def test_a_full_disk_costs_one_warning(
    call: str, store: VectorStore, keys: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        store.save(NAME, PART, keys, vectors_of(keys))
        store.save(OTHER, PART, keys, vectors_of(keys))
    [warning] = warnings_of(caplog)
    assert str(store.root) in warning and "Free disk space" in warning
    assert "No space left" in warning or "the disk is full" in warning
    assert not list(store.root.glob(".*"))
    store.save(NAME, PART, keys, vectors_of(keys))
    assert fresh(store).find(NAME, keys)[0].all()


def test_a_folder_that_cannot_be_made_costs_one_warning(
    tmp_path: Path, keys: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    store = VectorStore(tmp_path / "file", keep=2)
    store.save(NAME, PART, keys, vectors_of(keys))
    assert len(warnings_of(caplog)) == 1
    assert not store.find(NAME, keys)[0].any()


def test_the_first_of_two_processes_wins(
    store: VectorStore, keys: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, part = os.replace, store.root / f"vectors-{NAME[:16]}" / PART
    first: list[int] = []

    def late(source: Path, target: Path) -> None:
        if not first:
            first.append(0)
            fresh(store).save(NAME, PART, keys, vectors_of(keys))
            first[0] = (part / "vectors.npy").stat().st_ino
        real(source, target)

    monkeypatch.setattr(os, "replace", late)
    store.save(NAME, PART, keys, vectors_of(keys))
    assert (part / "vectors.npy").stat().st_ino == first[0]
    assert names_in(store.root) == [part.parent.name] and not warnings_of(caplog)


def test_many_at_once(store: VectorStore, caplog: pytest.LogCaptureFixture) -> None:
    keys = keys_of(random_passages(13))
    start = threading.Barrier(6)

    def work(rank: int) -> None:
        start.wait()
        fresh(store).save(NAME, f"part-{rank % 3}", keys, vectors_of(keys))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not warnings_of(caplog)
    assert names_in(store.root / f"vectors-{NAME[:16]}") == ["part-0", "part-1", "part-2"]
    assert names_in(store.root) == [f"vectors-{NAME[:16]}"]
    assert fresh(store).find(NAME, keys)[0].all()


# What stays


def test_the_oldest_sets_go(store: VectorStore, keys: np.ndarray) -> None:
    for age, letter in enumerate("fedc"):
        store.save(letter * 64, PART, keys, vectors_of(keys))
        os.utime(store.root / f"vectors-{letter * 16}", (1000 + age, 1000 + age))
    assert names_in(store.root) == ["vectors-" + letter * 16 for letter in "cd"]
    store.save("d" * 64, PART, keys, vectors_of(keys))  # counts as new again, so that c is now the older
    store.save(NAME, PART, keys, vectors_of(keys))
    assert names_in(store.root) == ["vectors-" + letter * 16 for letter in "ad"]


def test_the_set_just_written_stays_whatever_the_clock_says(store: VectorStore, keys: np.ndarray) -> None:
    one = VectorStore(store.root, keep=1)
    one.save(NAME, PART, keys, vectors_of(keys))
    os.utime(store.root / f"vectors-{NAME[:16]}", (1e10, 1e10))
    one.save(OTHER, PART, keys, vectors_of(keys))
    assert names_in(store.root) == [f"vectors-{OTHER[:16]}"]


def test_only_sets_are_removed(store: VectorStore, keys: np.ndarray) -> None:
    for name in ("corpus-0123456789ab", "vectors-of-mine", "vectors-0123", ".corpus-new"):
        (store.root / name).mkdir(parents=True)
    old, new, gone = (store.root / f".vectors-{name}-0a" for name in ("new", "new-young", "old"))
    for folder in (old, new, gone):
        folder.mkdir()
    os.utime(old, (time.time() - 90_000,) * 2)
    VectorStore(store.root, keep=1).save(NAME, PART, keys, vectors_of(keys))
    assert names_in(store.root) == [
        ".corpus-new",
        ".vectors-new-young-0a",
        "corpus-0123456789ab",
        "vectors-0123",
        f"vectors-{NAME[:16]}",
        "vectors-of-mine",
    ]


def test_keep_none_neither_reads_nor_writes(store: VectorStore, keys: np.ndarray, saved: Path, tmp_path: Path) -> None:
    known, vectors = VectorStore(store.root, keep=0).find(NAME, keys)
    assert not known.any() and vectors.shape == (0, 0)
    VectorStore(tmp_path / "none", keep=0).save(NAME, PART, keys, vectors_of(keys))
    assert not (tmp_path / "none").exists()
