from __future__ import annotations

import time

import numpy as np
import pytest

from openbook.errors import OpenBookError
from openbook.metrics.bootstrap import Statistic, bootstrap, mean_of, paired_difference, wilson


def test_the_draws_are_those_of_a_plain_loop() -> None:
    values = np.random.default_rng(3).normal(size=37)
    statistics = {"mean": mean_of(list(values)), "positive": mean_of([float(value > 0) for value in values])}
    found = bootstrap(statistics, 211, seed=11)
    generator = np.random.default_rng(11)
    drawn = [values[generator.integers(37, size=37)] for _ in range(211)]
    for name, one in (("mean", lambda sample: sample.mean()), ("positive", lambda sample: (sample > 0).mean())):
        assert found[name] == pytest.approx(tuple(np.quantile([one(sample) for sample in drawn], [0.025, 0.975])))
    assert bootstrap(statistics, 211, seed=11) == found
    assert bootstrap(statistics, 211, seed=12) != found


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = {"mean": mean_of(list(range(13)))}
    whole = bootstrap(statistics, 101, seed=2)
    monkeypatch.setattr("openbook.metrics.bootstrap._DRAWS_AT_ONCE", 13 * 7)
    assert bootstrap(statistics, 101, seed=2) == whole


def test_what_was_not_measured_is_left_out() -> None:
    statistic = mean_of([1.0, None, 3.0, float("nan")])
    assert statistic.of() == 2.0
    assert statistic.of([0, 1]) == 1.0
    assert statistic.of([1, 3]) is None
    # Of the 4**4 draws some hold no measured question: they say nothing, and the interval is that of the rest.
    assert bootstrap({"some": statistic, "none": mean_of([None] * 4)}, 500, seed=0) == {"some": (1.0, 3.0)}
    assert bootstrap({}, 10, seed=0) == {}


def test_ratios_of_sums_are_resampled_as_ratios() -> None:
    columns = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 11.0]])
    ratio = Statistic(columns, lambda sums: sums[..., 0] / sums[..., 1])
    assert ratio.of() == 9 / 17
    low, high = bootstrap({"ratio": ratio}, 2000, seed=1)["ratio"]
    assert (low, high) == (5 / 11, 3 / 4)  # the draws of one question three times over are 1 in 27 each


def test_nineteen_in_twenty_intervals_hold_the_truth() -> None:
    generator = np.random.default_rng(0)
    held, width = 0, []
    for trial in range(400):
        sample = generator.random(150) < 0.3
        low, high = bootstrap({"share": mean_of(list(sample.astype(float)))}, 400, seed=trial)["share"]
        held += low <= 0.3 <= high
        width.append(high - low)
        assert low <= sample.mean() <= high
    assert 0.91 < held / 400 < 0.98
    # 2 * 1.96 * sqrt(p (1 - p) / n)
    assert np.mean(width) == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 150), rel=0.05)


def test_a_thousand_resamples_are_quick() -> None:
    values = list(np.random.default_rng(0).random(1201))
    start = time.perf_counter()
    bootstrap({f"metric_{number}": mean_of(values) for number in range(17)}, 1000, seed=0)
    assert time.perf_counter() - start < 1.0


def test_paired_runs_are_told_apart_where_their_intervals_overlap() -> None:
    generator = np.random.default_rng(4)
    hard = generator.random(503)
    first = (hard < 0.55).astype(float)
    second = (hard < 0.50).astype(float)  # right wherever the first is, but for a few questions
    mean, low, high = paired_difference(first, second, resamples=1000, seed=0)
    assert mean == pytest.approx(first.mean() - second.mean())
    assert 0 < low <= mean <= high
    apart = bootstrap({"first": mean_of(list(first)), "second": mean_of(list(second))}, 1000, seed=0)
    assert apart["second"][1] > apart["first"][0]
    assert paired_difference(second, first, resamples=1000, seed=0) == pytest.approx((-mean, -high, -low))
    assert paired_difference(first, first, resamples=10) == (0.0, 0.0, 0.0)


def test_wilsons_interval_from_its_formula() -> None:
    assert wilson(0.5, 6) == pytest.approx((0.1876, 0.8124), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)  # 1.96**2 / (20 + 1.96**2)
    assert wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert all(0 <= end <= 1 for share in (0.0, 1.0) for n in (1, 7, 600) for end in wilson(share, n))


def test_bad_input_is_refused() -> None:
    with pytest.raises(OpenBookError, match=r"one value per question of each run: got \[3\] and \[2\]"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(OpenBookError, match="finite values: got 1 that are not"):
        paired_difference([1.0, float("nan")], [1.0, 2.0])
    with pytest.raises(OpenBookError, match="got 0 questions, 5 resamples"):
        paired_difference([], [], resamples=5)
    with pytest.raises(OpenBookError, match="got 2 questions, 0 resamples"):
        bootstrap({"mean": mean_of([1.0, 2.0])}, 0, seed=0)
