"""One refresh, whole or in slices: the index is a function of the weights at its start and of nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from openbook.index.flat_cpu import CodesOnCpu
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.index.vector_store import VectorStore
from openbook.models.encoders import TextEncoder
from openbook.refresh.measure import IndexMeasure, Sample
from openbook.refresh.rebuild import Rebuild
from openbook.retrieval.corpus_encoder import CorpusOptions, PassageCoder
from tests.small_system import DIM, tiny_corpus, tiny_encoder

N = 41
CORPUS = tiny_corpus(N)
QUESTIONS = torch.nn.functional.normalize(torch.randn(7, DIM, generator=torch.Generator().manual_seed(9)), dim=-1)


def begin(
    encoder: TextEncoder,
    factory: str = "Flat",
    corpus: CorpusOptions = CORPUS,
    store: VectorStore | None = None,
    old: Snapshot | None = None,
    seed: int = 0,
) -> Rebuild:
    options = IndexOptions(factory, seed=seed, nprobe=1)  # so that what was learnt shows
    sample = Sample.of(corpus.my_rows(), 5, DIM, 0)
    return Rebuild(
        encoder,
        corpus,
        options,
        generation=3,
        measure=IndexMeasure(questions=QUESTIONS, old=old, k=5, sample=sample, exact=factory == "Flat"),
        store=store,
    )


def whole(encoder: TextEncoder, factory: str = "Flat", corpus: CorpusOptions = CORPUS) -> Snapshot:
    refresh = begin(encoder, factory, corpus)
    refresh.run()
    return refresh.finish()[0]


def moved(encoder: TextEncoder, by: float = 0.1) -> TextEncoder:
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return encoder


def assert_same(one: Snapshot, other: Snapshot) -> None:
    """To the last bit: what is stored, where it can be looked at, and what is found at any depth."""
    assert (one.generation, one.encoder_fingerprint) == (other.generation, other.encoder_fingerprint)
    if isinstance(one.index.storage, CodesOnCpu) and isinstance(other.index.storage, CodesOnCpu):
        assert np.array_equal(one.index.stored(), other.index.stored())
    for top_k in (3, N):
        found, wanted = (snapshot.search(QUESTIONS, top_k) for snapshot in (one, other))
        assert torch.equal(found.rows, wanted.rows)
        assert torch.equal(found.index_scores, wanted.index_scores)


def sliced(refresh: Rebuild, n: int, between: TextEncoder) -> Snapshot:
    """In n slices, while the encoder that trains moves on."""
    for number in range(n):
        refresh.advance(n - number)
        moved(between)
    return refresh.finish()[0]


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "SQfp16", "IVF4,Flat", "HNSW8"])
@pytest.mark.parametrize("n", [2, 7, 30])
def test_slices_of_a_moving_encoder_give_the_index_of_one_go_at_the_start(n: int, factory: str) -> None:
    encoder = tiny_encoder()
    wanted = whole(tiny_encoder(), factory)
    refresh = begin(encoder, factory)
    found = sliced(refresh, n, encoder)
    assert refresh.encoded == N and not refresh.passes
    assert_same(found, wanted)
    assert found.encoder_fingerprint == tiny_encoder().fingerprint() != encoder.fingerprint()


def test_the_index_holds_each_passages_own_embedding() -> None:
    encoder = tiny_encoder()
    stored = whole(encoder).index.vectors(np.arange(N))
    coder = CORPUS.coder(encoder)
    alone = torch.cat([coder(np.array([row])) for row in range(N)])
    torch.testing.assert_close(torch.from_numpy(stored), alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("n", [2, 5, 13])
def test_slices_are_alike_in_tokens(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tiny_corpus(503, tokens_per_pass=48)
    encoder, tokens = tiny_encoder(), 0
    original = PassageCoder.start

    def counted(self: PassageCoder, rows: np.ndarray) -> object:
        nonlocal tokens
        tokens += int(self.lengths(rows).sum())
        return original(self, rows)

    monkeypatch.setattr(PassageCoder, "start", counted)
    refresh, slices = begin(encoder, corpus=corpus), []
    for number in range(n):
        before = tokens
        refresh.advance(n - number)
        slices.append(tokens - before)
    assert sum(slices) == int(refresh.coder.lengths(corpus.my_rows()).sum())
    assert max(slices) - min(slices) <= 48, slices


def test_what_is_searched_stays_until_the_swap() -> None:
    encoder = tiny_encoder()
    old = whole(encoder)
    answers, stored = old.search(QUESTIONS, 5), old.index.vectors(np.arange(N)).copy()
    moved(encoder)
    refresh = begin(encoder, old=old)
    refresh.run()
    new, _ = refresh.finish()
    assert torch.equal(old.search(QUESTIONS, 5).index_scores, answers.index_scores)
    assert np.array_equal(old.index.vectors(np.arange(N)), stored)
    assert not torch.equal(new.search(QUESTIONS, 5).index_scores, answers.index_scores)


# What families learn from


@pytest.mark.parametrize("factory", ["SQ8", "IVF1,Flat"])
def test_families_that_learn_see_a_seeded_sample(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, encoder = tiny_corpus(307, tokens_per_pass=512), tiny_encoder()
    seen: list[np.ndarray] = []
    original = ShardIndex.train

    def train(self: ShardIndex, embeddings: np.ndarray) -> None:
        seen.append(embeddings.copy())
        original(self, embeddings)

    monkeypatch.setattr(ShardIndex, "train", train)
    for seed in (0, 0, 1):
        refresh = begin(encoder, factory, corpus, seed=seed)
        for slices_left in (3, 2, 1):
            refresh.advance(slices_left)
        refresh.finish()
    assert [len(sample) for sample in seen] == [256, 256, 256]
    assert np.array_equal(seen[0], seen[1])
    stored = whole(encoder, corpus=corpus).index.vectors(np.arange(307))
    rows = [{row.tobytes() for row in sample} for sample in seen]
    assert rows[0] != rows[2]
    chosen = np.random.default_rng(0).permutation(307)[:256]
    wanted = torch.from_numpy(stored[np.sort(chosen)])
    found = torch.from_numpy(seen[0])
    assert (torch.cdist(wanted.double(), found.double()).min(dim=1).values < 1e-5).all(), "not the seeded sample"


def test_a_sample_larger_than_the_corpus_is_the_corpus() -> None:
    refresh = begin(tiny_encoder(), "IVF4,Flat")
    assert refresh.n_to_learn_from == N
    refresh.run()
    assert refresh.finish()[0].index.n_passages == N


# What the store knows


@pytest.fixture
def store(tmp_path: Path) -> VectorStore:
    return VectorStore(tmp_path / "store", keep=3)


@pytest.mark.parametrize("factory", ["Flat", "SQfp16", "SQ8", "IVF4,Flat"])
def test_what_the_store_knows_is_not_encoded_again(
    factory: str, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_encoder()
    wanted = whole(encoder, factory)
    first = begin(encoder, store=store)
    first.run()
    first.finish()
    assert first.encoded == N
    monkeypatch.setattr(PassageCoder, "start", lambda self, rows: pytest.fail("encoded again"))
    again = begin(encoder, factory, store=store)
    again.run()
    assert again.encoded == again.n_to_encode == 0
    assert_same(again.finish()[0], wanted)


def test_only_changed_passages_are_encoded(store: VectorStore) -> None:
    encoder = tiny_encoder()
    refresh = begin(encoder, store=store)
    refresh.run()
    before = refresh.finish()[0].index.vectors(np.arange(N))
    flat = CORPUS.tokens.flat.copy()
    for row in (5, 23):
        flat[CORPUS.tokens.offsets[row]] = 60 if flat[CORPUS.tokens.offsets[row]] != 60 else 59
    corpus = replace(CORPUS, tokens=replace(CORPUS.tokens, flat=flat), fingerprint="changed")
    changed = begin(encoder, corpus=corpus, store=store)
    assert sorted(np.concatenate(changed.passes).tolist()) == [5, 23]
    changed.run()
    after = changed.finish()[0].index.vectors(np.arange(N))
    assert changed.encoded == 2
    assert np.flatnonzero((before != after).any(1)).tolist() == [5, 23]
    torch.testing.assert_close(
        torch.from_numpy(after),
        torch.from_numpy(whole(encoder, corpus=corpus).index.vectors(np.arange(N))),
        atol=1e-6,
        rtol=1e-5,
    )


def test_passages_are_known_wherever_they_stand(store: VectorStore) -> None:
    encoder = tiny_encoder()
    refresh = begin(encoder, store=store)
    refresh.run()
    before = refresh.finish()[0].index.vectors(np.arange(N))
    tokens, lengths = CORPUS.tokens, CORPUS.tokens.lengths[::-1]
    flat = np.concatenate([tokens.flat[tokens.offsets[row] : tokens.offsets[row + 1]] for row in range(N)[::-1]])
    turned = replace(tokens, flat=flat, offsets=np.concatenate([[0], np.cumsum(lengths)]))
    again = begin(encoder, corpus=replace(CORPUS, tokens=turned, fingerprint="turned"), store=store)
    again.run()
    assert again.encoded == 0
    assert np.array_equal(again.finish()[0].index.vectors(np.arange(N)), before[::-1])


@pytest.mark.parametrize("what", ["weights", "length", "dtype"])
def test_other_weights_lengths_and_types_are_not_mixed_up(what: str, store: VectorStore) -> None:
    encoder = tiny_encoder()
    refresh = begin(encoder, store=store)
    refresh.run()
    refresh.finish()
    other = {"weights": CORPUS, "length": replace(CORPUS, max_length=9), "dtype": replace(CORPUS, dtype=torch.bfloat16)}
    again = begin(moved(encoder) if what == "weights" else encoder, corpus=other[what], store=store)
    assert again.n_to_encode == N


def test_amortized_with_a_store_that_knows_everything(store: VectorStore) -> None:
    encoder = tiny_encoder()
    refresh = begin(encoder, store=store)
    refresh.run()
    refresh.finish()
    wanted = whole(tiny_encoder())
    again = begin(encoder, store=store)
    assert_same(sliced(again, 3, encoder), wanted)


# What a refresh measures


def test_a_comparison_against_a_plain_reading() -> None:
    """Overlap, drift of scores and of directions, from the two indexes' vectors by hand."""
    encoder = tiny_encoder()
    old = whole(encoder)
    refresh = begin(moved(encoder, 0.3), old=old)
    refresh.measure.old_sample.see(np.arange(N), torch.from_numpy(old.index.vectors(np.arange(N))))
    refresh.run()
    new, measured = refresh.finish()
    before, after = (torch.from_numpy(s.index.vectors(np.arange(N))) for s in (old, new))
    one, other = (QUESTIONS @ before.T).topk(5), (QUESTIONS @ after.T).topk(5)
    kept = [len(set(a) & set(b)) / 5 for a, b in zip(one.indices.tolist(), other.indices.tolist(), strict=True)]
    assert 0 < sum(kept) / 7 < 1
    assert measured["refresh/overlap_at_k"] == pytest.approx(sum(kept) / 7, abs=1e-6)
    drift = ((QUESTIONS @ after.T).gather(1, one.indices) - one.values).abs().mean()
    assert measured["refresh/score_drift"] == pytest.approx(drift.item(), abs=1e-5)
    rows = refresh.measure.sample.rows
    turned = 1 - torch.cosine_similarity(before[rows], after[rows]).mean()
    assert measured["refresh/cosine_drift"] == pytest.approx(turned.item(), abs=1e-5)
    assert "index/recall_of_family" not in measured


def test_the_recall_of_a_family_against_exact_search() -> None:
    encoder = tiny_encoder()
    refresh = begin(encoder, "IVF4,Flat")
    refresh.run()
    new, measured = refresh.finish()
    exact, found = whole(encoder).search(QUESTIONS, 5).rows, new.search(QUESTIONS, 5).rows
    shares = [len(set(a) & set(b)) / 5 for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
    assert measured == {"index/recall_of_family": pytest.approx(sum(shares) / 7, abs=1e-6)}
    assert sum(shares) < 7


def test_a_broken_encoder_is_refused_before_anything_is_searched() -> None:
    encoder = tiny_encoder()
    with torch.no_grad():
        next(encoder.parameters())[7] = torch.nan
    refresh = begin(encoder)
    with pytest.raises(Exception, match="passage embeddings are not finite"):
        refresh.run()
