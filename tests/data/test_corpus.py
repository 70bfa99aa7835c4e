"""The memory-mapped corpus: what goes in comes out, by row, by id and as tokens; damage and races are survived."""

from __future__ import annotations

import json
import logging
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from openbook.batch import Passage
from openbook.data.corpus import Corpus, PassageTokens
from openbook.data.corpus_build import build_corpus, tokenizer_fingerprint
from openbook.errors import OpenBookError

PASSAGES = [
    Passage("p-3", "Rhône", "The Rhône rises in the Alps. Größe: 812 km."),
    Passage("p-1", "", "An entry without a title."),
    Passage("7", "東京", "東京は日本の首都。"),
    Passage("x", "A title", "with 'quotes' and\ttabs"),
    Passage("y" * 50, "Long", "word " * 211),
]


def byte_tokenizer(extra: int = 0) -> PreTrainedTokenizerFast:
    """One token per byte: lossless on any text, so that decoding proves the ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: n for n, symbol in enumerate([*alphabet, *(f"unused{n}" for n in range(extra))])}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="unused0" if extra else None)


def title_and_text(tokens: PassageTokens, row: int) -> tuple[list[int], list[int]]:
    ids = tokens.flat[tokens.offsets[row] : tokens.offsets[row + 1]].tolist()
    return ids[: tokens.title_lengths[row]], ids[tokens.title_lengths[row] :]


def hidden(cache: Path) -> list[Path]:
    """What is neither an array nor a lock."""
    return [path for path in cache.rglob(".*") if path.name != ".locks"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "passages.jsonl"
    lines = (json.dumps({"id": p.id, "title": p.title, "text": p.text}, ensure_ascii=False) for p in PASSAGES)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def corpus(source: Path, tmp_path: Path) -> Corpus:
    return build_corpus(source, {"encoder": byte_tokenizer(), "generator": byte_tokenizer()}, tmp_path / "cache")


def test_passages_come_back_as_they_were(corpus: Corpus) -> None:
    assert corpus.n_passages == len(corpus) == 5
    assert corpus.passages([4, 0, 2, 1, 3]) == [PASSAGES[row] for row in (4, 0, 2, 1, 3)]


def test_ids_find_their_rows(corpus: Corpus) -> None:
    assert [corpus.row_of(p.id) for p in PASSAGES] == [0, 1, 2, 3, 4]
    assert corpus.row_of("p-2") is None


def test_two_ids_with_one_hash_are_told_apart(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbook.data.corpus.id_hash", lambda text: 5)
    corpus._hashes = np.asarray([2, 5, 5, 5, 9], dtype=np.uint64)
    corpus._hash_rows = np.asarray([0, 4, 3, 1, 2])
    assert corpus.row_of("x") == 3
    assert corpus.row_of("7") is None


def test_tokens_are_those_of_title_and_text(corpus: Corpus) -> None:
    tokenizer, tokens = byte_tokenizer(), corpus.tokens("generator")
    for row, passage in enumerate(PASSAGES):
        title, text = title_and_text(tokens, row)
        assert tokenizer.decode(title) == passage.title
        assert tokenizer.decode(text) == f" {passage.text}"
    expected = [len(p.title.encode()) + 1 + len(p.text.encode()) for p in PASSAGES]
    assert tokens.lengths.tolist() == expected
    assert tokens.length([[3, 1], [1, 0]]).tolist() == [[expected[3], expected[1]], [expected[1], expected[0]]]


@pytest.mark.parametrize("row", [-1, -5, 5])
def test_rows_outside_raise_everywhere(corpus: Corpus, row: int) -> None:
    tokens = corpus.tokens("encoder")
    with pytest.raises(IndexError, match=f"row {row} is not in the corpus of 5 passages"):
        corpus.passage(row)
    for rows in (row, [0, row]):
        with pytest.raises(
            IndexError, match=rf"rows \[{row}\] are not in the corpus of 5 .* a missing hit has no passage"
        ):
            tokens.length(rows)
    with pytest.raises(IndexError, match="not in the corpus"):
        corpus.passages([0, row])


def test_roles_with_one_tokenizer_share_one_array(corpus: Corpus) -> None:
    assert corpus.tokens("encoder") is corpus.tokens("generator")
    assert len(list(corpus.folder.glob("tokens-*"))) == 1
    assert corpus.tokens("encoder").flat.dtype == np.uint16
    with pytest.raises(KeyError, match="not for 'reader'"):
        corpus.tokens("reader")


def test_a_large_vocabulary_needs_four_bytes(source: Path, tmp_path: Path) -> None:
    tokenizers = {"encoder": byte_tokenizer(), "generator": byte_tokenizer(extra=65_536)}
    corpus = build_corpus(source, tokenizers, tmp_path / "cache")
    assert corpus.tokens("generator").flat.dtype == np.uint32
    assert title_and_text(corpus.tokens("generator"), 1)[1] == title_and_text(corpus.tokens("encoder"), 1)[1]


def test_a_second_call_opens_what_is_there(corpus: Corpus, source: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*")}
    used = byte_tokenizer()
    used(["abc", "d"], truncation=True, max_length=2, padding=False)  # leaves its settings in the backend
    again = build_corpus(source, {"encoder": used}, tmp_path / "cache")
    assert {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*")} == before
    assert again.fingerprint == corpus.fingerprint
    assert not hidden(tmp_path / "cache"), "a temporary folder was left behind"


def test_other_content_is_another_corpus(corpus: Corpus, source: Path, tmp_path: Path) -> None:
    source.write_text(source.read_text(encoding="utf-8").replace("812", "813"), encoding="utf-8")
    other = build_corpus(source, {"encoder": byte_tokenizer()}, tmp_path / "cache")
    assert other.fingerprint != corpus.fingerprint
    assert "813" in other.passage(0).text
    assert "812" in corpus.passage(0).text


@pytest.mark.parametrize("victim", ["texts/blob.npy", "tokens-*/flat.npy", "tokens-*/manifest.json"])
def test_a_damaged_part_is_rebuilt_aloud(
    corpus: Corpus, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, victim: str
) -> None:
    (path,) = corpus.folder.glob(victim)
    path.write_bytes(path.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING):
        rebuilt = build_corpus(source, {"encoder": byte_tokenizer()}, tmp_path / "cache")
    assert re.search(r"damaged \(.+\); it is built again", caplog.text)
    assert rebuilt.passages(range(5)) == PASSAGES
    assert byte_tokenizer().decode(title_and_text(rebuilt.tokens("encoder"), 3)[1]) == " with 'quotes' and\ttabs"


def test_two_builders_at_once_both_succeed(source: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        built = list(pool.map(lambda _: build_corpus(source, {"a": byte_tokenizer()}, tmp_path / "cache"), range(3)))
    assert all(corpus.passages(range(5)) == PASSAGES for corpus in built)
    assert all(len(corpus.tokens("a").lengths) == 5 for corpus in built)
    assert not hidden(tmp_path / "cache")


def test_it_pickles_as_its_path(corpus: Corpus) -> None:
    raw = pickle.dumps(corpus)
    assert len(raw) < 1000
    assert pickle.loads(raw).passage(2) == PASSAGES[2]


def test_a_bad_corpus_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "1", "title": "", "text": "fine"}\n{"id": "1", "title": "", "text": "again"}\n')
    with pytest.raises(OpenBookError, match="an id comes twice"):
        build_corpus(path, {"encoder": byte_tokenizer()}, tmp_path / "cache")
    left = [path for path in (tmp_path / "cache").rglob("*") if ".locks" not in path.parts and path.is_file()]
    assert left == []


def test_fingerprints_tell_tokenizers_apart() -> None:
    assert tokenizer_fingerprint(byte_tokenizer()) == tokenizer_fingerprint(byte_tokenizer())
    assert tokenizer_fingerprint(byte_tokenizer()) != tokenizer_fingerprint(byte_tokenizer(extra=3))
