"""Passages replaced in place: which ones, when, with what; and that every age is true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from openbook.batch import MISSING_ROW, Retrieved
from openbook.config.refresh_schedule import RefreshSchedule
from openbook.data.encoder_inputs import passage_inputs
from openbook.index.shard_index import IndexOptions
from openbook.refresh.manager import RefreshManager, RefreshOptions
from openbook.refresh.measure import IndexMeasure, Sample
from openbook.refresh.rebuild import Rebuild
from openbook.refresh.rolling import BACKGROUND, WINDOW, RollingRefresh
from openbook.retrieval import corpus_encoder
from openbook.retrieval.corpus_encoder import CorpusOptions, PassageCoder
from openbook.retrieval.dense import DenseRetriever
from tests.small_system import DIM, nudge, tiny_corpus, tiny_retriever

N = 41
CORPUS = tiny_corpus(N)
ROWS = np.arange(N)


def rolling_of(
    mode: Any = "rolling", corpus: CorpusOptions = CORPUS, factory: str = "Flat", dropout: float = 0.0
) -> tuple[RollingRefresh, DenseRetriever]:
    """Right after a whole refresh, at step 0."""
    retriever = tiny_retriever(corpus, dropout)
    measure = IndexMeasure(
        questions=torch.empty(0, DIM), old=None, k=5, sample=Sample.of(corpus.my_rows(), 0, DIM, 0), exact=True
    )
    whole = Rebuild(retriever.passage_encoder, corpus, IndexOptions(factory), generation=0, measure=measure)
    whole.run()
    retriever.snapshot, _ = whole.finish()
    return RollingRefresh(corpus, retriever.snapshot, corpus.coder(retriever.passage_encoder), mode), retriever


def encoded(retriever: DenseRetriever, corpus: CorpusOptions = CORPUS) -> np.ndarray:
    """[n, DIM] of today's weights, by the encoder itself."""
    rows = range(corpus.n_passages)
    mode = retriever.passage_encoder.training
    retriever.passage_encoder.eval()
    with torch.no_grad():
        found = retriever.passage_encoder(*passage_inputs(corpus.tokens, rows, corpus.style, corpus.max_length))
    retriever.passage_encoder.train(mode)
    return found.numpy()


def passes(rolling: RollingRefresh, retriever: DenseRetriever, n: float, step: int) -> list[np.ndarray]:
    """The rows of each forward pass of `advance`."""
    seen: list[np.ndarray] = []
    original = PassageCoder.start

    def start(self: PassageCoder, rows: np.ndarray) -> object:
        seen.append(rows)
        return original(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PassageCoder, "start", start)
        rolling.advance(retriever.passage_encoder, n, step)
    return seen


def rows_of(seen: list[np.ndarray]) -> list[int]:
    return sorted(np.concatenate([*seen, ROWS[:0]]).tolist())


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(corpus_encoder, "rank", lambda: rank)
    monkeypatch.setattr(corpus_encoder, "world_size", lambda: world_size)


# RollingRefresh


@pytest.mark.parametrize("every", [1, 3, 7])
def test_each_interval_encodes_every_passage_once_and_the_oldest_first(every: int) -> None:
    rolling, retriever = rolling_of()
    largest = max(map(len, rolling.groups))
    spent = 0
    for step in range(1, 4 * every + 1):
        before = rolling.made_at.copy()
        seen = passes(rolling, retriever, N / every, step)
        chosen = rows_of(seen)
        spent += len(chosen)
        assert step * N / every - largest < spent <= step * N / every + 1e-9
        assert all(len(set(rolling.coder.lengths(rows).tolist())) == 1 for rows in seen)
        assert len(set(chosen)) == len(chosen)
        left = np.setdiff1d(ROWS, chosen)
        if len(chosen) and len(left):
            assert before[chosen].max() <= before[left].min()
        assert (rolling.made_at[chosen] == step).all() and (rolling.made_at[left] == before[left]).all()
        assert rolling.encoded == spent
    assert int(rolling.made_at.min()) >= 3 * every - 1
    assert spent == pytest.approx(4 * N, abs=largest)


def test_credit_carries_until_a_group_fits() -> None:
    rolling, retriever = rolling_of(corpus=tiny_corpus(N, tokens_per_pass=512, seed=1))
    first = len(rolling.groups[0])
    assert first >= 3
    for step in range(1, 2 * first):
        assert passes(rolling, retriever, 0.5, step) == []
    assert rows_of(passes(rolling, retriever, 0.5, 2 * first)) == sorted(rolling.groups[0].tolist())
    assert rolling.credit == 0


def test_a_share_of_none_encodes_nothing() -> None:
    rolling, retriever = rolling_of()
    before = rolling.index.vectors(ROWS)
    nudge(retriever, 1)
    assert not any(passes(rolling, retriever, 0.0, step) for step in range(1, 9))
    assert np.array_equal(rolling.index.vectors(ROWS), before)


@pytest.mark.parametrize("mode", ["rolling", "hot"])
@pytest.mark.parametrize("factory", ["Flat", "SQfp16"])
def test_each_stored_vector_is_that_of_the_weights_its_age_says(mode: str, factory: str) -> None:
    rolling, retriever = rolling_of(mode, factory=factory)
    known = [encoded(retriever)]
    for step in range(1, 12):
        nudge(retriever, step)
        known.append(encoded(retriever))
        rolling.note(torch.arange(step, step + 5))
        rolling.advance(retriever.passage_encoder, N / 3, step)
        wanted = np.stack([known[rolling.made_at[row]][row] for row in ROWS])
        np.testing.assert_allclose(rolling.index.vectors(ROWS), wanted, atol=1e-5 if factory == "Flat" else 1e-3)
        assert rolling.mean_age(step) == pytest.approx((step - rolling.made_at).mean())
    assert len(set(rolling.made_at.tolist())) > 2


def test_what_is_kept_fresh_anyway_holds_no_other_passage_back() -> None:
    """All but one of each group are encoded by training at every step; the one still gets its turn."""
    rolling, retriever = rolling_of()
    fresh = np.concatenate([rows[1:] for rows in rolling.groups])
    alone = np.setdiff1d(ROWS, fresh)
    vectors = torch.from_numpy(encoded(retriever))
    for step in range(1, 21):
        rolling.write_back(torch.from_numpy(fresh), vectors[torch.from_numpy(fresh)], step)
        rolling.advance(retriever.passage_encoder, N / 5, step)
        assert step < 7 or (step - rolling.made_at[alone]).max() <= 7


def test_the_snapshot_is_of_mixed_ages_and_counts_corpora() -> None:
    rolling, retriever = rolling_of()
    assert retriever.snapshot is not None
    generations = []
    for step in range(1, 9):
        rolling.advance(retriever.passage_encoder, N / 4, step)
        snapshot = rolling.snapshot(retriever.snapshot)
        assert (snapshot.encoder_fingerprint, snapshot.n_passages) == ("", N)
        assert snapshot.index is retriever.snapshot.index
        generations.append(snapshot.generation)
        assert snapshot.generation == rolling.encoded // N
    assert generations == sorted(generations) and set(generations) >= {0, 1}


# What training encodes


def trained(
    rolling: RollingRefresh, retriever: DenseRetriever, rows: torch.Tensor, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """One real optimizer step on rows; the embeddings before and after it."""
    optimizer = torch.optim.AdamW(retriever.parameters(), lr=0.05)
    optimizer.register_step_post_hook(lambda *_: retriever.passages.cache.outdate())
    question = torch.nn.functional.normalize(torch.randn(1, DIM), dim=-1)
    before = encoded(retriever)
    retriever.score(question, Retrieved(rows[None], torch.zeros(1, len(rows)))).logsumexp(1).sum().backward()
    optimizer.step()
    rolling.write_back(*retriever.passages.cache.take(), step)
    return before, encoded(retriever)


def test_write_back_stores_what_training_encoded_before_its_step() -> None:
    rolling, retriever = rolling_of()
    nudge(retriever, 1)
    rows = torch.tensor([30, 2, 17, 2])
    stale = rolling.index.vectors(ROWS)
    before, after = trained(rolling, retriever, rows, 5)
    stored, written = rolling.index.vectors(ROWS), np.array([2, 17, 30])
    others = np.setdiff1d(ROWS, written)
    np.testing.assert_allclose(stored[written], before[written], atol=1e-5)
    assert np.abs(after[written] - before[written]).max() > 1e-2, "the step moved nothing: this proves nothing"
    assert np.array_equal(stored[others], stale[others])
    assert rolling.made_at[written].tolist() == [4, 4, 4] and not rolling.made_at[others].any()
    assert rolling.encoded == 0 and rolling.credit == 0


def test_nothing_is_written_back_under_dropout() -> None:
    rolling, retriever = rolling_of(dropout=0.3)
    assert retriever.passage_encoder.has_dropout
    stale = rolling.index.vectors(ROWS)
    trained(rolling, retriever, torch.tensor([3, 4]), 5)
    assert np.array_equal(rolling.index.vectors(ROWS), stale) and not rolling.made_at.any()


def test_rerankings_are_written_back_even_under_dropout() -> None:
    rolling, retriever = rolling_of(dropout=0.3)
    nudge(retriever, 1)
    before = encoded(retriever)
    retriever.passages.encode_once(torch.tensor([3, 4]))
    trained(rolling, retriever, torch.tensor([3, 4]), 5)
    np.testing.assert_allclose(rolling.index.vectors(ROWS[3:5]), before[3:5], atol=1e-5)
    assert rolling.made_at[3:5].tolist() == [4, 4]


def test_an_older_vector_never_replaces_a_newer_one() -> None:
    rolling, _ = rolling_of()
    one, two, three = (torch.full((2, DIM), value) for value in (0.1, 0.2, 0.3))
    rolling.write_back(torch.tensor([6, 7]), one, 9)
    rolling.write_back(torch.tensor([7, 8]), two, 5)
    rolling.write_back(torch.tensor([8, 9]), three, 5)  # of the same age: as good
    assert rolling.index.vectors(ROWS[6:10])[:, 0].tolist() == pytest.approx([0.1, 0.1, 0.3, 0.3])
    assert rolling.made_at[6:10].tolist() == [8, 8, 4, 4]


def test_nothing_encoded_is_nothing_written() -> None:
    rolling, retriever = rolling_of()
    before = rolling.index.vectors(ROWS)
    rolling.write_back(*retriever.passages.cache.take(), 5)
    assert np.array_equal(rolling.index.vectors(ROWS), before)


def test_a_vector_that_is_no_number_is_refused_and_its_age_with_it() -> None:
    rolling, _ = rolling_of()
    before = rolling.index.vectors(ROWS)
    vectors = torch.zeros(2, DIM)
    vectors[1, 3] = torch.inf
    with pytest.raises(Exception, match="passage embeddings are not finite"):
        rolling.write_back(torch.tensor([5, 6]), vectors, 9)
    assert np.array_equal(rolling.index.vectors(ROWS), before) and not rolling.made_at.any()


# Hot


def test_hot_takes_the_most_wanted_times_their_age() -> None:
    rolling, retriever = rolling_of("hot")
    rolling.made_at[:] = 6
    rolling.made_at[[3, 4]] = (1, 9)
    rolling.note(torch.tensor([3, 4, 4, 4, 4, 5, 5, 5, MISSING_ROW]))
    rolling.note(torch.tensor([5, 6, 6, 10]))
    # At step 10, hits times age: 3 is 1 x 9, 4 is 4 x 1, 5 is 4 x 4, 6 is 2 x 4, 10 is 1 x 4 and after 4 by its row.
    for budget, wanted in ((2, [5]), (4, [3, 5, 6]), (6, [3, 4, 5, 6])):
        rolling.credit = 0.0
        assert list(rolling._hottest(10)) == []
        rolling.credit = float(budget)
        assert rows_of(list(rolling._hottest(10))) == wanted
    before = rolling.made_at.copy()
    rolling.credit = 0.0
    chosen = rows_of(passes(rolling, retriever, 8, 10))
    assert {3, 4, 5, 6, 10} <= set(chosen) and len(chosen) <= 8
    assert (rolling.made_at[chosen] == 10).all()
    rest = np.setdiff1d(ROWS, chosen)
    assert np.array_equal(rolling.made_at[rest], before[rest])


def test_hot_forgets_what_was_asked_long_ago() -> None:
    rolling, _ = rolling_of("hot")
    rolling.credit = 40.0
    rolling.note(torch.tensor([7]))
    for _ in range(WINDOW - 1):
        rolling.note(torch.tensor([8]))
    assert rows_of(list(rolling._hottest(10))) == [7, 8]
    rolling.note(torch.tensor([MISSING_ROW]))
    assert rows_of(list(rolling._hottest(10))) == [8]


def test_hot_encodes_nothing_twice_at_one_age_and_leaves_no_passage_behind() -> None:
    rolling, retriever = rolling_of("hot")
    counts = np.zeros(N, dtype=int)
    steps, budget = 60, 6.0
    for step in range(1, steps + 1):
        rolling.note(torch.tensor([2, 3, 5, 7, 11, 13]))
        seen = rows_of(passes(rolling, retriever, budget, step))
        assert len(set(seen)) == len(seen)
        counts[seen] += 1
        assert counts.sum() <= step * budget
    assert counts.sum() > 0.8 * steps * budget, "the budget is not spent"
    hot = np.isin(ROWS, [2, 3, 5, 7, 11, 13])
    assert counts[hot].min() > 3 * counts[~hot].max()
    assert counts[~hot].min() >= int(steps * budget * BACKGROUND / N), "the background goes to the oldest"
    assert (steps - rolling.made_at).max() <= 1 + N / (budget * BACKGROUND)


def test_a_hot_run_without_questions_rolls_through_the_oldest() -> None:
    rolling, retriever = rolling_of("hot")
    for step in range(1, 11):
        rolling.advance(retriever.passage_encoder, N / 5, step)
    assert int(rolling.made_at.min()) >= 5


# Everything at once


@pytest.mark.parametrize("mode", ["rolling", "hot"])
def test_renewing_makes_it_fresh_in_the_same_memory(mode: Any) -> None:
    options = RefreshOptions(RefreshSchedule.read("5"), mode, share=0.5)
    keeper, retriever = RefreshManager(options=options, index=IndexOptions(), corpus=CORPUS), tiny_retriever(CORPUS)
    keeper.prepare(retriever, 0)
    for step in range(1, 4):
        nudge(retriever, step)
        keeper.after_step(retriever, step)
    assert retriever.snapshot is not None and keeper.rolling is not None
    index, codes = retriever.snapshot.index, retriever.snapshot.index.stored()
    assert codes is not None and not retriever.index_is_fresh()
    place, generation = codes.ctypes.data, retriever.snapshot.generation
    keeper.refresh(retriever, 3)
    assert retriever.index_is_fresh() and retriever.snapshot.index is index
    assert index.stored().ctypes.data == place
    np.testing.assert_allclose(index.vectors(ROWS), encoded(retriever), atol=1e-5)
    assert (keeper.rolling.made_at == 3).all() and keeper.age(3) == 0
    assert retriever.snapshot.generation == generation + 1 == keeper.generation


# Ranks


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_state_is_taken_up_by_any_number_of_ranks(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rolling, retriever = rolling_of("hot")
    for step in range(1, 6):
        nudge(retriever, step)
        rolling.note(torch.arange(3 * step, 3 * step + 9))
        rolling.advance(retriever.passage_encoder, 9.5, step)
    state = rolling.state_dict()
    vectors, credit = [], 0.0
    for rank in range(world_size):
        as_rank(monkeypatch, rank, world_size)
        part, _ = rolling_of("hot")
        part.load_state_dict(state)
        rows = CORPUS.my_rows()
        assert len(rows) == part.index.n_passages < (N if world_size > 1 else N + 1)
        assert np.array_equal(part.made_at, rolling.made_at[rows.start : rows.stop])
        assert [asked.tolist() for asked in part.asked] == [asked.tolist() for asked in rolling.asked]
        vectors.append(part.index.vectors(np.arange(len(rows))))
        credit += part.credit
        assert part.encoded == rolling.encoded
    assert np.array_equal(np.concatenate(vectors), rolling.index.vectors(ROWS))
    assert rolling.credit > 0.2
    if world_size == 1:
        assert credit == rolling.credit


def test_a_rank_replaces_its_own_passages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    as_rank(monkeypatch, 1, 3)
    mine = CORPUS.my_rows()
    for mode in ("rolling", "hot"):
        rolling, retriever = rolling_of(mode)
        nudge(retriever, 1)
        fresh = encoded(retriever)
        rolling.note(torch.arange(N))
        seen = rows_of(passes(rolling, retriever, float(N), 4))
        assert seen and set(seen) <= set(mine)
        assert len(seen) <= len(mine)
        np.testing.assert_allclose(rolling.index.vectors(np.array(seen) - mine.start), fresh[seen], atol=1e-5)
        rolling.write_back(torch.tensor([0, mine.start + 2, N - 1]), torch.full((3, DIM), 0.5), 9)
        assert np.flatnonzero(rolling.made_at == 8).tolist() == [2]
        assert (rolling.index.vectors(np.array([2])) == 0.5).all()
