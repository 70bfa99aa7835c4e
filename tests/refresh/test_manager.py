"""Keeping an index fresh: when what happens, and that whatever fails leaves what is searched as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openbook.config.refresh_schedule import RefreshSchedule
from openbook.data.encoder_inputs import passage_inputs
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.index.vector_store import VectorStore
from openbook.models.encoders import TextEncoder
from openbook.refresh import measure, rolling
from openbook.refresh import rebuild as refresh
from openbook.refresh.drift import overlap_at_k, rank_correlation
from openbook.refresh.manager import RefreshManager, RefreshOptions
from openbook.refresh.measure import IndexMeasure, Sample, StalenessProbe
from openbook.refresh.rebuild import Rebuild
from openbook.refresh.rolling import RollingRefresh
from openbook.retrieval import corpus_encoder as encode_corpus
from openbook.retrieval.corpus_encoder import Encoding, PassageCoder
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.passage_embedder import PassageEmbedder
from tests.small_system import DIM, nudge, tiny_corpus, tiny_probes, tiny_retriever

N = 41
CORPUS = tiny_corpus(N)
QUESTIONS = torch.nn.functional.normalize(torch.randn(7, DIM, generator=torch.Generator().manual_seed(9)), dim=-1)


def kept(
    mode: Any = "blocking",
    every: str = "4",
    factory: str = "Flat",
    store: VectorStore | None = None,
    spread: int = 3,
    share: float = 1.0,
    look_every: int = 0,
    schedule: RefreshSchedule | None = None,
) -> RefreshManager:
    options = RefreshOptions(schedule or RefreshSchedule.read(every), mode, spread, share, 5, look_every)
    return RefreshManager(
        options=options, index=IndexOptions(factory), corpus=CORPUS, probes=tiny_probes(), store=store
    )


def fresh_vectors(retriever: DenseRetriever) -> np.ndarray:
    """[N, DIM] of today's weights, by the encoder itself."""
    with torch.no_grad():
        return retriever.passage_encoder(*passage_inputs(CORPUS.tokens, range(N), CORPUS.style, 17)).numpy()


def stored(retriever: DenseRetriever) -> np.ndarray:
    assert retriever.snapshot is not None
    return retriever.snapshot.index.vectors(np.arange(N)).copy()


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.allclose(one, other, atol=1e-5))


def run(keeper: RefreshManager, retriever: DenseRetriever, steps: range) -> dict[int, dict[str, float]]:
    """Optimizer steps, as far as an index sees them; what each measured."""
    measured = {}
    for step in steps:
        forward(retriever, step)
        nudge(retriever, step)
        measured[step] = keeper.after_step(retriever, step)
    return measured


def forward(retriever: DenseRetriever, step: int) -> None:
    """What a training step asks of a retriever: three questions, two passages each."""
    first = step % 8
    asked = retriever.train().question_encoder(*(part[first : first + 3] for part in tiny_probes()))
    retriever.score(asked, retriever.retrieve(asked, 2))


def prepared(mode: Any = "blocking", **settings: Any) -> tuple[RefreshManager, DenseRetriever]:
    keeper, retriever = kept(mode, **settings), tiny_retriever(CORPUS)
    keeper.prepare(retriever, 0)
    return keeper, retriever


# When


def test_blocking_swaps_at_its_step_with_that_steps_weights() -> None:
    keeper, retriever = prepared()
    generations = []
    for step in range(1, 10):
        measured = run(keeper, retriever, range(step, step + 1))[step]
        assert retriever.snapshot is not None
        generations.append(retriever.snapshot.generation)
        assert keeper.age(step) == step % 4 if step >= 4 else step
        assert ("refresh/generation" in measured) == (step % 4 == 0)
        assert close(stored(retriever), fresh_vectors(retriever)) == (step % 4 == 0)
        assert retriever.index_is_fresh() == (step % 4 == 0)
    assert generations == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert measured == {}
    assert keeper.generation == 2 and keeper.rebuild.encoded == 3 * N


def test_amortized_swaps_later_with_the_weights_of_its_start() -> None:
    keeper, retriever = prepared("amortized")  # every 4, spread over 3: copied at 4, encoded at 5, 6, 7
    wanted = np.empty(0)
    for step in range(1, 12):
        before = retriever.snapshot
        measured = run(keeper, retriever, range(step, step + 1))[step]
        if step in (4, 8):
            wanted = fresh_vectors(retriever)
        assert (retriever.snapshot is not before) == (step in (7, 11))
        assert (keeper.rebuild.under_way is not None) == (step in (4, 5, 6, 8, 9, 10))
        assert ("refresh/overlap_at_k" in measured) == (step in (7, 11))
        if step in (7, 11):
            assert close(stored(retriever), wanted)
            assert keeper.age(step) == 3
            assert not retriever.index_is_fresh()
    assert keeper.generation == 2


def test_a_refresh_as_long_as_its_interval_follows_the_last_at_once() -> None:
    keeper, retriever = prepared("amortized", spread=4)
    measured = run(keeper, retriever, range(1, 14))
    assert [step for step, values in measured.items() if values] == [8, 12]


def test_spans_of_another_interval_begin_and_end() -> None:
    keeper, retriever = prepared(every="0-4:2,4-8:0,8-:3")
    measured = run(keeper, retriever, range(1, 15))
    assert [step for step, values in measured.items() if values] == [2, 8, 11, 14]


def test_never_is_never() -> None:
    keeper, retriever = prepared(every="0")
    first = retriever.snapshot
    assert not any(run(keeper, retriever, range(1, 9)).values())
    assert retriever.snapshot is first and keeper.age(8) == 8


@pytest.mark.parametrize("mode", ["blocking", "amortized", "rolling", "hot"])
def test_a_frozen_passage_encoder_is_encoded_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, retriever = kept(mode), tiny_retriever(CORPUS)
    retriever.passage_encoder.requires_grad_(False)
    keeper.prepare(retriever, 0)
    monkeypatch.setattr(PassageCoder, "start", lambda *_: pytest.fail("encoded again"))
    for step in range(1, 10):
        assert keeper.after_step(retriever, step) == {}
    assert keeper.rolling is None and keeper.rebuild.encoded == N
    assert keeper.state_dict()["passage_encoder"] is None


# Staleness


def hand_look(retriever: DenseRetriever, k: int) -> tuple[float, float]:
    """Overlap@k and rank correlation among the index's 3 k passages, from whole matrices."""
    retriever.question_encoder.eval()
    with torch.no_grad():
        questions = retriever.question_encoder(*tiny_probes())
    stale = questions @ torch.from_numpy(stored(retriever)).T
    fresh = questions @ torch.from_numpy(fresh_vectors(retriever)).T
    before, rows = stale.topk(3 * k)
    again = fresh.gather(1, rows)
    best = rows.gather(1, again.topk(k).indices)
    return overlap_at_k(rows[:, :k], best), rank_correlation(before, again, torch.ones_like(before, dtype=torch.bool))


@pytest.mark.parametrize("mode", ["blocking", "rolling"])
def test_a_look_measures_what_a_whole_matrix_says(mode: str) -> None:
    keeper, retriever = prepared(mode, every="0", look_every=2)
    sample = Sample.of(range(N), measure.SAMPLE, DIM, CORPUS.seed).rows
    for step in range(1, 7):
        nudge(retriever, step, 0.2)
        before = stored(retriever)
        measured = keeper.after_step(retriever, step)
        names = {name for name in measured if name.startswith("staleness/")}
        assert bool(names) == (step % 2 == 0)
        if not names:
            continue
        overlap, correlation = hand_look(retriever, 5)
        assert 0 < overlap < 1
        assert measured["staleness/overlap_at_k"] == pytest.approx(overlap, abs=1e-6)
        assert measured["staleness/rank_correlation"] == pytest.approx(correlation, abs=1e-4)
        turned = torch.cosine_similarity(torch.from_numpy(before), torch.from_numpy(fresh_vectors(retriever)))[sample]
        assert measured["staleness/cosine_drift"] == pytest.approx(1 - turned.mean().item(), abs=1e-5)


def test_a_look_leaves_modes_and_random_state() -> None:
    keeper, retriever = prepared(look_every=1, every="0")
    retriever.train()
    state = torch.get_rng_state()
    nudge(retriever, 1)
    keeper.after_step(retriever, 1)
    assert torch.equal(state, torch.get_rng_state())
    assert retriever.question_encoder.training and retriever.passage_encoder.training


@pytest.mark.parametrize("mode", ["blocking", "amortized"])
def test_staleness_decides_between_floor_and_ceiling(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlap as told, floor 3, ceiling 8, a look every second step after the last refresh began."""
    told = {4: 0.9, 6: 0.69, 10: 0.1, 14: 0.8, 16: 0.8, 24: 0.7}
    looks: list[int] = []

    def measured(self: StalenessProbe, retriever: DenseRetriever) -> dict[str, float]:
        looks.append(step)
        return {"staleness/overlap_at_k": told.get(step, 1.0)}

    monkeypatch.setattr(StalenessProbe, "measure", measured)
    schedule = RefreshSchedule.read("staleness", 0.7, 3, 8)
    keeper, retriever = prepared(mode, schedule=schedule, look_every=2, spread=2)
    begun, step = [], 0
    for step in range(1, 31):
        nudge(retriever, step)
        keeper.after_step(retriever, step)
        if keeper.rebuild.under_way is not None if mode == "amortized" else retriever.index_is_fresh():
            begun.append(step)
    begun = [step for step in begun if step - 1 not in begun]
    assert begun == [6, 10, 18, 26]  # 10: the floor is 3; 18 and 26: the ceiling; 24: at .7 exactly, not under
    assert looks == [4, 6, 10, 14, 16, 22, 24, 30]


def test_a_look_that_finds_staleness_refreshes_for_real() -> None:
    keeper, retriever = prepared(schedule=RefreshSchedule.read("staleness", 0.95, 1, 0), look_every=1)
    nudge(retriever, 1, 0.0)
    assert keeper.after_step(retriever, 1)["staleness/overlap_at_k"] == 1.0
    assert keeper.generation == 0
    nudge(retriever, 2, 0.5)
    measured = keeper.after_step(retriever, 2)
    assert measured["staleness/overlap_at_k"] < 0.95
    assert measured["refresh/steps_since_last"] == 2
    assert retriever.index_is_fresh()


# What a checkpoint holds


@pytest.mark.parametrize("mode", ["blocking", "amortized", "rolling", "hot"])
@pytest.mark.parametrize("stopped", [3, 5, 7])
def test_a_state_gives_the_index_that_was_searched_and_the_ones_to_come(
    mode: str, stopped: int, tmp_path: Path
) -> None:
    words: dict[str, Any] = {"look_every": 1, "share": 0.5}
    keeper, retriever = prepared(mode, **words)
    run(keeper, retriever, range(1, stopped + 1))
    torch.save({"keeper": keeper.state_dict(), "retriever": retriever.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again, other = kept(mode, **words), tiny_retriever(CORPUS)
    again.load_state_dict(state["keeper"])
    other.load_state_dict(state["retriever"])
    again.prepare(other, stopped)
    assert retriever.snapshot is not None and other.snapshot is not None
    for step in range(stopped, 12):
        assert np.array_equal(stored(other), stored(retriever)), step
        assert other.snapshot.generation == retriever.snapshot.generation
        assert other.snapshot.encoder_fingerprint == retriever.snapshot.encoder_fingerprint
        assert (again.age(step), again.rebuild.encoded) == (keeper.age(step), keeper.rebuild.encoded)
        one, two = (run(k, r, range(step + 1, step + 2))[step + 1] for k, r in ((keeper, retriever), (again, other)))
        for timed in ("refresh/seconds", "refresh/passages_per_second"):
            one.pop(timed, None), two.pop(timed, None)
        assert one == pytest.approx(two, abs=1e-6)


@pytest.mark.parametrize("mode", ["blocking", "amortized"])
def test_a_rolling_run_resumed_in_another_mode_starts_from_a_fresh_index(mode: str) -> None:
    keeper, retriever = prepared("rolling", share=0.5)
    run(keeper, retriever, range(1, 4))
    again, other = kept(mode), tiny_retriever(CORPUS)
    again.load_state_dict(keeper.state_dict())
    other.load_state_dict(retriever.state_dict())
    again.prepare(other, 3)
    assert again.rolling is None and other.index_is_fresh()
    measured = run(again, other, range(4, 12))
    assert [step for step, values in measured.items() if values] == [7 if mode == "blocking" else 10, 11][
        : 1 + (mode == "blocking")
    ]


def test_a_blocking_run_resumed_as_rolling_replaces_what_it_had() -> None:
    keeper, retriever = prepared()
    run(keeper, retriever, range(1, 6))
    again, other = kept("rolling"), tiny_retriever(CORPUS)
    again.load_state_dict(keeper.state_dict())
    other.load_state_dict(retriever.state_dict())
    again.prepare(other, 5)
    assert np.array_equal(stored(other), stored(retriever))
    assert again.age(5) == 1.0
    run(again, other, range(6, 11))
    assert again.rolling is not None and int(again.rolling.made_at.min()) >= 6


# Interrupted


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list):
        return [copied(value) for value in state]
    return state.clone() if isinstance(state, torch.Tensor) else state


class InterruptedHereError(Exception):
    pass


@contextmanager
def failing(point: tuple[Any, ...], call: int) -> Iterator[list[int]]:
    """point: an owner, a name, and perhaps which calls count. owner.name raises at its call-th call, from 0. Gives the
    calls so far."""
    owner, name, only = (*point, lambda *_: True)[:3]
    original, calls = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if only(*args):
            calls[0] += 1
            if calls[0] == call + 1:
                raise InterruptedHereError
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, wrapped)
        yield calls


def is_the_swap(retriever: DenseRetriever, name: str, value: object) -> bool:
    return name == "snapshot"


POINTS: dict[str, tuple[Any, ...]] = {
    "embed the questions": (StalenessProbe, "embed"),
    "choose a sample": (Sample, "of"),
    "search the old index": (Snapshot, "search"),
    "fingerprint the weights": (TextEncoder, "fingerprint"),
    "copy the encoder": (encode_corpus.copy, "deepcopy"),
    "copy the weights for a checkpoint": (TextEncoder, "copied_state"),
    "allocate the index": (refresh, "ShardIndex"),
    "read the store's keys": (refresh, "passage_keys"),
    "read the store": (VectorStore, "find"),
    "plan the passes": (PassageCoder, "passes"),
    "start a pass": (PassageCoder, "start"),
    "wait for a pass": (Encoding, "result"),
    "keep what is compared": (Sample, "see"),
    "compare": (IndexMeasure, "see"),
    "learn": (ShardIndex, "train"),
    "write": (ShardIndex, "write"),
    "finish the index": (ShardIndex, "finish"),
    "make the snapshot": (refresh, "Snapshot"),
    "search inside a family": (ShardIndex, "search"),
    "measure": (IndexMeasure, "finish"),
    "write the store": (VectorStore, "save"),
    "swap": (DenseRetriever, "__setattr__", is_the_swap),
}


@pytest.mark.parametrize(
    ("point", "factory"),
    [
        *((point, "Flat") for point in POINTS if point != "learn"),
        *((point, "SQ8") for point in ("learn", "write", "compare", "measure", "swap")),
    ],
)
def test_a_refresh_that_fails_anywhere_leaves_everything(point: str, factory: str, tmp_path: Path) -> None:
    """At the first call of the point, the second, … until the refresh gets through; that one works."""
    keeper, retriever = prepared(factory=factory, store=VectorStore(tmp_path, 3))
    nudge(retriever, 1)
    old = retriever.snapshot
    assert old is not None
    answers, before = old.search(QUESTIONS, 5), copied(keeper.state_dict())
    for call in range(1000):
        with failing(POINTS[point], call) as calls:
            try:
                keeper.refresh(retriever, 1, keeper.store)
                break
            except InterruptedHereError:
                pass
        assert retriever.snapshot is old
        found = old.search(QUESTIONS, 5)
        assert torch.equal(found.rows, answers.rows) and torch.equal(found.index_scores, answers.index_scores)
        assert same(keeper.state_dict(), before)
    assert (call > 0) == (point != "choose a sample"), f"{calls[0]} calls"  # it is chosen once in a run
    assert retriever.snapshot is not old and retriever.index_is_fresh()
    assert np.allclose(stored(retriever), fresh_vectors(retriever), atol=1e-5 if factory == "Flat" else 0.02)
    assert keeper.generation == 1


CALLS = (0, 1, 5, 13)


@pytest.mark.parametrize(
    ("point", "factory"),
    [
        *(
            (point, "Flat")
            for point in (
                "start a pass",
                "wait for a pass",
                "compare",
                "write",
                "finish the index",
                "make the snapshot",
                "measure",
                "swap",
                "copy the encoder",
                "copy the weights for a checkpoint",
                "allocate the index",
                "fingerprint the weights",
            )
        ),
        *((point, "IVF4,Flat") for point in ("wait for a pass", "learn", "write")),
    ],
)
def test_an_amortized_refresh_that_fails_leaves_the_old_index_and_the_next_one_works(point: str, factory: str) -> None:
    """At calls of the point anywhere between copying the weights and the swap; whatever comes after is whole."""
    keeper, retriever = prepared("amortized", every="3", spread=2, factory=factory)
    known, step, failures = [fresh_vectors(retriever)], 0, 0

    def go() -> None:
        nonlocal step
        step += 1
        nudge(retriever, step, 0.02)
        known.append(fresh_vectors(retriever))
        keeper.after_step(retriever, step)

    for call in CALLS:
        old, generation, failed = retriever.snapshot, keeper.generation, False
        assert old is not None
        answers = old.search(QUESTIONS, 5)
        with failing(POINTS[point], call):
            while retriever.snapshot is old and not failed:
                try:
                    go()
                except InterruptedHereError:
                    failed = True
        if not failed:
            continue
        failures += 1
        found = old.search(QUESTIONS, 5)
        assert torch.equal(found.rows, answers.rows) and torch.equal(found.index_scores, answers.index_scores)
        assert retriever.snapshot is old and keeper.generation == generation
        for _ in range(9):
            go()
        assert keeper.generation > generation and retriever.snapshot is not old
        if factory == "Flat":
            assert close(stored(retriever), known[keeper.rebuild.made_at]), f"call {call}"
        else:
            assert sorted(retriever.snapshot.index.storage.row_of.tolist()) == list(range(N))
            assert keeper.rebuild.encoder_state is not None
    assert failures


ROLLING_POINTS: dict[str, tuple[Any, ...]] = {
    "copy the weights": (PassageCoder, "take"),
    "choose the oldest": (RollingRefresh, "_oldest"),
    "start a pass": (PassageCoder, "start"),
    "wait for a pass": (Encoding, "result"),
    "write": (ShardIndex, "write"),
    "gather what was encoded anyway": (rolling, "gather_rows"),
}


@pytest.mark.parametrize("mode", ["rolling", "hot"])
@pytest.mark.parametrize("point", ROLLING_POINTS)
def test_a_replacement_that_fails_leaves_vectors_and_ages_true(point: str, mode: str) -> None:
    """Every stored vector is that of the weights its age says, whatever failed."""
    for call in range(1000):
        keeper, retriever = prepared(mode, share=1.0)
        known, failed, before = [fresh_vectors(retriever)], False, np.empty(0)
        for step in range(1, 7):
            rows = torch.arange(step, step + 6)
            retriever.score(QUESTIONS[:1], _retrieved(rows[None]))  # training encodes six passages
            retriever._candidates.append(torch.arange(3 * step, 3 * step + 9))
            nudge(retriever, step)
            known.append(fresh_vectors(retriever))
            before = stored(retriever)
            with failing(ROLLING_POINTS[point], call if step == 3 else 10**9) as calls:
                try:
                    keeper.after_step(retriever, step)
                except InterruptedHereError:
                    failed = True
            assert keeper.rolling is not None
            ages = keeper.rolling.made_at
            wanted = np.stack([known[ages[row]][row] for row in range(N)])
            assert close(stored(retriever), wanted), f"call {call}, step {step}"
            if step == 3:
                changed = (stored(retriever) != before).any(1).sum()
                if failed and point in ("copy the weights", "choose the oldest") and mode == "rolling":
                    assert changed <= 6  # what training had encoded
        if not failed:
            break
        assert mode == "hot" or int(ages.min()) >= 2, "the rest never got its turn"
    assert call > 0, calls


def _retrieved(rows: torch.Tensor) -> Any:
    from openbook.batch import Retrieved

    return Retrieved(rows, torch.zeros(rows.shape))


def test_a_failed_look_leaves_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, retriever = prepared(look_every=1)
    nudge(retriever, 1)
    old, before = retriever.snapshot, copied(keeper.state_dict())
    for owner, name in ((measure, "rank_correlation"), (Snapshot, "search"), (PassageEmbedder, "encode")):
        with failing((owner, name), 0), pytest.raises(InterruptedHereError):
            keeper.after_step(retriever, 1)
        assert retriever.snapshot is old and same(keeper.state_dict(), before)
        assert retriever.passage_encoder.training == tiny_retriever(CORPUS).passage_encoder.training


def test_a_first_index_that_fails_can_be_built_again() -> None:
    keeper, retriever = kept(), tiny_retriever(CORPUS)
    with failing((ShardIndex, "write"), 1), pytest.raises(InterruptedHereError):
        keeper.prepare(retriever, 0)
    assert retriever.snapshot is None and keeper.generation == -1
    keeper.prepare(retriever, 0)
    assert close(stored(retriever), fresh_vectors(retriever))


def test_nothing_is_left_to_do_where_an_index_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, retriever = prepared()
    monkeypatch.setattr(Rebuild, "__init__", lambda *_: pytest.fail("built again"))
    keeper.ensure(retriever, 5)
    keeper.prepare(retriever, 5)


@pytest.mark.parametrize("mode", ["blocking", "amortized", "rolling", "hot"])
def test_a_state_of_the_first_layout_is_taken_up(mode: str) -> None:
    """The keys that checkpoints have had from the start, all in one dict."""
    keeper, retriever = prepared(mode)
    run(keeper, retriever, range(1, 6))
    state = keeper.state_dict()
    keys = {"generation", "made_at", "corpus", "passage_encoder", "encoded", "started_at"}
    extra = {"amortized": {"next"}, "rolling": {"rolling"}, "hot": {"rolling"}}.get(mode, set())
    assert set(state) == keys | extra
    if "next" in state:
        assert set(state["next"]) == {"passage_encoder", "questions"}
    if "rolling" in state:
        parts = {"codes", "made_at", "asked", "credit", "encoded", "step", "calibration"}
        assert set(state["rolling"]) == parts
    again, other = kept(mode), tiny_retriever(CORPUS)
    again.load_state_dict({key: state[key] for key in sorted(state)})
    other.load_state_dict(retriever.state_dict())
    again.prepare(other, 5)
    assert np.array_equal(stored(other), stored(retriever)) and again.generation == keeper.generation
