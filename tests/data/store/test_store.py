"""The store of a corpus of many pieces: several processes, kills, damage, room on the disk."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import PreTrainedTokenizerFast

from openbook.data.corpus_build import build_corpus, tokens_fingerprint
from openbook.data.encoder_inputs import EncoderFormat
from openbook.data.inputs import token_ids
from openbook.data.readers.formats import check_passages
from openbook.data.store import tokens as store_tokens
from openbook.data.store.disk import store_size
from openbook.data.store.pieces import PIECE, Writing, piece_path
from openbook.data.store.tokens import Tokens, backend_of
from openbook.errors import OpenBookError
from openbook.utils.files import file_sums
from tests.data.test_corpus import byte_tokenizer

N = 4 * PIECE + 777


def written(path: Path, n: int = N) -> Path:
    lines = (
        json.dumps({"id": f"p{k}", "title": f"title {k % 7}", "text": f"text {k} é{'x' * (k % 5)}"}) for k in range(n)
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("source") / "passages.jsonl")


def arrays(cache: Path) -> dict[str, str]:
    """{name: sha256} of every file of the store."""
    return {
        str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(cache.glob("corpus-*/**/*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache built by this process alone."""
    cache = tmp_path_factory.mktemp("whole")
    corpus = build_corpus(source, {"a": byte_tokenizer()}, cache, processes=1)
    tokens, lines = corpus.tokens("a"), source.read_text(encoding="utf-8").splitlines()
    for row in (0, PIECE - 1, PIECE, N - 1):
        record = json.loads(lines[row])
        title, text = token_ids(byte_tokenizer(), [record["title"], " " + record["text"]])
        assert tokens.flat[tokens.offsets[row] : tokens.offsets[row + 1]].tolist() == title + text
        assert tokens.title_lengths[row] == len(record["title"].encode())
        assert corpus.passage(row).text == record["text"] and corpus.row_of(f"p{row}") == row
    return cache


def test_two_processes_write_the_same_bytes(
    source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_tokens, "write_piece", lambda *_: pytest.fail("this process should not tokenise"))
    build_corpus(source, {"a": byte_tokenizer()}, tmp_path, processes=2)
    assert arrays(tmp_path) == arrays(whole)


def test_a_worker_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, openbook.data.store.worker; print({'torch', 'transformers'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        == "set()"
    )


def test_a_worker_that_dies_is_an_error_with_its_last_words(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_tokens, "backend_of", lambda _: "{}")
    with pytest.raises(OpenBookError, match=r"that tokenises the corpus has died: got .*(model|missing).*is kept"):
        build_corpus(source, {"a": byte_tokenizer()}, tmp_path, processes=2)


def test_a_tokenizer_with_ways_of_its_own_stays_in_this_process() -> None:
    class Own(PreTrainedTokenizerFast):
        def _encode_plus(self, *args: object, **words: object) -> object:
            return super()._encode_plus(*args, **words)

    own = Own(tokenizer_object=byte_tokenizer().backend_tokenizer)
    assert backend_of(own) == "" and backend_of(byte_tokenizer()) != ""


def test_finished_pieces_are_taken_up_and_damaged_ones_are_not(
    source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, numbers = store_tokens.write_piece, list[int]()

    def dying(folder: Path, number: int, *rest: object) -> object:
        if len(numbers) == 3:
            raise KeyboardInterrupt
        numbers.append(number)
        return write(folder, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(store_tokens, "write_piece", dying)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(source, {"a": byte_tokenizer()}, tmp_path, processes=1)
    (building,) = tmp_path.glob("corpus-*/.tokens-*.building")
    piece = piece_path(building, 1)
    raw = bytearray(piece.read_bytes())
    raw[len(raw) // 2] ^= 1
    piece.write_bytes(raw)
    (building.parent / ".texts.0123abcd").mkdir()  # of a process that is gone
    numbers.clear()
    monkeypatch.setattr(
        store_tokens,
        "write_piece",
        lambda folder, number, *rest: numbers.append(number) or write(folder, number, *rest),
    )
    build_corpus(source, {"a": byte_tokenizer()}, tmp_path, processes=1)
    assert numbers == [1, 3, 4]
    said = " ".join(capsys.readouterr().out.split())
    assert f"{2 * PIECE:,} of {N:,} passages were tokenised before the build was interrupted" in said
    assert arrays(tmp_path) == arrays(whole)
    assert [path.name for path in tmp_path.glob("corpus-*/.*")] == []


KILLED = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from openbook.data.corpus_build import build_corpus
from tests.data.test_corpus import byte_tokenizer
from tests.data.store.test_store import arrays
source, cache, expected, n = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
draw, tokenizer, killed = random.Random(int(sys.argv[5])), byte_tokenizer(), 0
build = lambda: build_corpus(source, {"a": tokenizer}, cache, processes=2)
def started():
    child = os.fork()
    if not child:
        build()
        os._exit(0)
    return child
begun = time.monotonic()
os.waitpid(started(), 0)
whole = time.monotonic() - begun
shutil.rmtree(cache)
while killed < n:
    child = started()
    time.sleep(draw.uniform(0, 0.7 * whole))
    os.kill(child, signal.SIGKILL)
    ended = os.waitpid(child, 0)[1] != signal.SIGKILL
    killed += not ended
    if ended:
        assert repr(arrays(cache)) == expected, arrays(cache)
        shutil.rmtree(cache)
build()
assert repr(arrays(cache)) == expected, arrays(cache)
left = [path.name for path in cache.glob("corpus-*/.*")]
assert left == [], left
print("the same")
"""


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_gives_the_same_bytes(source: Path, whole: Path, tmp_path: Path) -> None:
    words = [str(source), str(tmp_path / "cache"), repr(arrays(whole)), "20", "0"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words], check=False, capture_output=True, text=True, timeout=600
    )
    assert done.stdout.strip().endswith("the same"), done.stderr


@pytest.mark.parametrize("victim", ["texts/blob.npy", "tokens-*/flat.npy", "texts/id_rows.npy"])
def test_a_flipped_bit_is_found_and_its_folder_built_again(
    whole: Path, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, victim: str
) -> None:
    shutil.copytree(whole, cache := tmp_path / "cache")
    build_corpus(source, {"a": byte_tokenizer()}, cache, processes=1)
    (path,) = cache.glob(f"corpus-*/{victim}")
    raw, times = bytearray(path.read_bytes()), path.stat()
    raw[-3] ^= 4
    path.write_bytes(raw)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    build_corpus(source, {"a": byte_tokenizer()}, cache, processes=1)
    assert f"the bytes of {path.name} are not as they were written" in caplog.text
    assert arrays(cache) == arrays(whole)


def test_what_nothing_has_touched_is_hashed_when_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sums, "_LARGE", 0)
    monkeypatch.setattr(file_sums, "_UNSURE", 0)
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = file_sums.file_sum(path, tmp_path)
    assert first == hashlib.sha256(b"one").hexdigest()
    (memo,) = (tmp_path / ".sums").iterdir()
    known = json.loads(memo.read_text())
    path.write_bytes(b"two")  # a disk that forgets a bit changes no time: the note is made to know this file
    found = path.stat()
    known |= {"mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}
    memo.write_text(json.dumps(known))
    assert file_sums.file_sum(path, tmp_path) == first
    file_sums.forget(tmp_path)
    assert file_sums.file_sum(path, tmp_path) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sums, "_LARGE", 0)
    path = tmp_path / "file"
    path.write_bytes(b"one")
    file_sums.file_sum(path, tmp_path)
    assert not (tmp_path / ".sums").exists()
    os.utime(path, (time.time() - 10, time.time() - 10))
    file_sums.file_sum(path, tmp_path)
    assert len(list((tmp_path / ".sums").iterdir())) == 1


def test_the_size_is_told_before_and_refused_without_room(
    source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_tokenizer()
    style = EncoderFormat((), (), (), 0, layout="separated")
    asked = [Tokens(tokens_fingerprint(tokenizer, style), tokenizer, Writing())]
    size, packed = store_size(source, asked, True), tmp_path / "passages.jsonl.gz"
    actual = sum(path.stat().st_size for path in whole.glob("corpus-*/*/*.npy"))
    assert size.n_passages == pytest.approx(N, rel=0.1)
    assert size.built == pytest.approx(actual, rel=0.15)
    packed.write_bytes(gzip.compress(source.read_bytes()))
    assert store_size(packed, asked, True).n_passages == pytest.approx(N, rel=0.5)

    free = SimpleNamespace(free=1_000_000)
    monkeypatch.setattr("openbook.data.store.disk.shutil.disk_usage", lambda _: free)
    with pytest.raises(OpenBookError, match=r"no room for the corpus store \(data.cache=.*1 MB free.*Set data.cache"):
        build_corpus(source, {"a": tokenizer}, tmp_path / "cache", processes=1)
    assert arrays(tmp_path / "cache") == {}


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "small.jsonl", 5)

    def changing(passages: Path, seen: object) -> int:
        n = check_passages(passages, seen)  # type: ignore[arg-type]
        written(path, 6)
        return n

    monkeypatch.setattr("openbook.data.store.texts.check_passages", changing)
    with pytest.raises(OpenBookError, match=r"changed while it was read \(.*small.jsonl\)\. Start again"):
        build_corpus(path, {"a": byte_tokenizer()}, tmp_path / "cache")
    assert arrays(tmp_path / "cache") == {}


def test_old_leftovers_of_any_build_are_swept(source: Path, tmp_path: Path) -> None:
    small = written(tmp_path / "small.jsonl", 5)
    cache, week = tmp_path / "cache", time.time() - 8 * 24 * 3600
    made = {}
    for name in (
        *(".converted-0123.89abcdef", "corpus-a/.tokens-b.building", "corpus-a/.texts.89abcdef"),
        *(".unique-1.89abcdef.before", "kept-1", ".locks", ".sums", "corpus-new/.tokens-b.building"),
    ):
        (cache / name).mkdir(parents=True)
        made[name] = cache / name
        if not name.startswith("corpus-new"):
            os.utime(cache / name, (week, week))
    build_corpus(small, {"a": byte_tokenizer()}, cache)
    assert {name for name, path in made.items() if path.exists()} == {
        *(".unique-1.89abcdef.before", "kept-1", ".locks", ".sums", "corpus-new/.tokens-b.building"),
    }


def test_pieces_go_where_their_arrays_stand(source: Path, tmp_path: Path) -> None:
    """A build was killed between the two; the next one has nothing to build."""
    build_corpus(source, {"a": byte_tokenizer()}, tmp_path, processes=1)
    (tokens,) = tmp_path.glob("corpus-*/tokens-*")
    left, others = (tokens.with_name(f".{name}.building") for name in (tokens.name, "tokens-0123456789ab"))
    for folder in (left, others):
        folder.mkdir()
        (folder / "000000.piece").write_bytes(b"piece")
    build_corpus(source, {"a": byte_tokenizer()}, tmp_path, processes=1)
    assert not left.exists() and others.exists()
