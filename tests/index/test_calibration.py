"""Scores of different ages become comparable: exactly, where the encoders have changed all scores alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from openbook.index.calibration import CANDIDATES, PAIRS, Calibration
from openbook.index.shard_index import ShardIndex
from openbook.index.snapshot import Snapshot

DIM, AGE, N_QUESTIONS, N_PASSAGES = 13, 40, 7, 997


def vectors(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


def changed(then: np.ndarray) -> np.ndarray:
    """More contrast and another mean: every question's scores change by one line of its own."""
    return (1.3 * then + 0.4 * np.arange(DIM) / DIM).astype(np.float32)


@pytest.fixture
def calibration() -> Calibration:
    then = vectors(PAIRS, 1)
    known = Calibration(DIM)
    known.add(then, changed(then), np.full(PAIRS, AGE))
    return known


def test_an_old_score_becomes_what_it_would_be_today(calibration: Calibration) -> None:
    questions, then = vectors(N_QUESTIONS, 2), vectors(5, 3)
    ages = np.full((N_QUESTIONS, 5), AGE)
    found = calibration(questions, questions @ then.T, ages)
    assert found == pytest.approx(questions @ changed(then).T, abs=1e-4)


def test_half_the_age_is_half_the_way(calibration: Calibration) -> None:
    """One question and one score, by hand."""
    question, score = vectors(1, 4), 0.7
    then, now = (question @ part.T for part in (calibration.then, calibration.now))
    spread_then, spread_now = (((part - part.mean()) ** 4).mean() ** 0.25 for part in (then, now))
    mean, spread = (then.mean() + now.mean()) / 2, (spread_then + spread_now) / 2
    expected = now.mean() + spread_now * (score - mean) / spread
    assert calibration(question, np.array([[score]]), np.array([[AGE / 2]])) == pytest.approx(expected, abs=1e-5)


def test_a_score_of_today_stays(calibration: Calibration) -> None:
    questions, scores = vectors(N_QUESTIONS, 5), vectors(N_QUESTIONS, 6)
    assert calibration(questions, scores, np.zeros(scores.shape)) == pytest.approx(scores, abs=1e-5)


def test_the_line_is_not_followed_for_ever(calibration: Calibration) -> None:
    questions, scores = vectors(N_QUESTIONS, 5), vectors(N_QUESTIONS, 6)
    far, farther = (calibration(questions, scores, np.full(scores.shape, times * AGE)) for times in (1.5, 50))
    assert np.array_equal(far, farther)


def test_too_few_pairs_say_nothing() -> None:
    known, then = Calibration(DIM), vectors(PAIRS - 1, 1)
    known.add(then, changed(then), np.full(PAIRS - 1, AGE))
    scores = vectors(3, 6)
    assert np.array_equal(known(vectors(3, 5), scores, np.full(scores.shape, AGE)), scores)


def test_the_newest_pairs_are_kept_and_survive_a_checkpoint(calibration: Calibration) -> None:
    then = vectors(PAIRS // 2, 7)
    calibration.add(then, then, np.full(len(then), 3))
    assert len(calibration.ages) == PAIRS
    assert np.array_equal(calibration.then[-len(then) :], then)
    other = Calibration(DIM)
    other.load_state_dict(calibration.state_dict())
    questions, scores = vectors(N_QUESTIONS, 5), vectors(N_QUESTIONS, 6)
    ages = np.full(scores.shape, 2.0)
    assert np.array_equal(other(questions, scores, ages), calibration(questions, scores, ages))


def test_an_index_of_mixed_ages_finds_what_a_fresh_one_finds(calibration: Calibration) -> None:
    """A third of the passages is of today: as the scores stand they win over better old ones."""
    then = vectors(N_PASSAGES, 8)
    fresh = np.arange(N_PASSAGES) % 3 == 0
    index = ShardIndex(DIM, N_PASSAGES)
    index.write(np.arange(N_PASSAGES), np.where(fresh[:, None], changed(then), then))
    questions = torch.from_numpy(vectors(41, 9))
    exact = (questions @ torch.from_numpy(changed(then)).T).topk(3).indices
    ages = np.where(fresh, 0, AGE)
    mixed = Snapshot(index.finish(), 0, "", "", N_PASSAGES)
    fair = Snapshot(index, 0, "", "", N_PASSAGES, calibrate=lambda q, s, rows: calibration(q, s, ages[rows]))
    assert CANDIDATES < N_PASSAGES
    assert (mixed.search(questions, 3).rows == exact).float().mean() < 0.7
    assert (fair.search(questions, 3).rows == exact).float().mean() > 0.98
    assert fair.search(questions, 3).index_scores == pytest.approx(
        (questions @ torch.from_numpy(changed(then)).T).gather(1, exact).numpy(), abs=1e-3
    )
