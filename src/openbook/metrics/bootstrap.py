"""How sure a measured rate is: bootstrap intervals over the questions (Efron and Tibshirani 1993, chapters 13 and 16).

The questions are resampled with replacement, as many as there are; what a metric is on each such draw tells how much
it depends on the questions that happened to be asked. Every metric here is a function of sums over questions, so that
a thousand draws are one matrix product.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from openbook.errors import OpenBookError

Floats = NDArray[np.float64]

_COVERED = (0.025, 0.975)
# Questions drawn in one block: 32 MiB, however many questions and resamples there are.
_DRAWS_AT_ONCE = 2**22


class Statistic(NamedTuple):
    """A metric as a function of sums over questions.

    columns: [n_questions, n_columns] what each question adds.
    value: [..., n_columns] sums to [...] the metric; NaN where it is not defined.
    """

    columns: Floats
    value: Callable[[Floats], Floats]

    def of(self, rows: Sequence[int] | NDArray[np.intp] | None = None) -> float | None:
        """The metric over all questions or those of `rows`; None where it is not defined (nothing measured)."""
        value = float(self.value((self.columns if rows is None else self.columns[rows]).sum(axis=0)))
        return None if np.isnan(value) else value


def mean_of(values: Sequence[float | None]) -> Statistic:
    """The mean over the questions that have a finite value; None and NaN stand for "not measured"."""
    given = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    known = np.isfinite(given)
    return Statistic(np.stack([np.where(known, given, 0.0), known.astype(np.float64)], axis=1), _ratio)


def bootstrap(statistics: Mapping[str, Statistic], resamples: int, seed: int) -> dict[str, tuple[float, float]]:
    """95 % percentile interval (low, high) of every statistic, all over the same draws of the questions.

    A resample on which a statistic is not defined says nothing about it; one defined on no resample has no interval.
    An OpenBookError where there is nothing to draw from, or no draw.
    """
    if not statistics:
        return {}
    columns = np.concatenate([statistic.columns for statistic in statistics.values()], axis=1)
    sums = np.concatenate([counts @ columns for counts in _draws(len(columns), resamples, seed)])
    ends = np.cumsum([statistic.columns.shape[1] for statistic in statistics.values()])
    found: dict[str, tuple[float, float]] = {}
    for (name, statistic), its_sums in zip(statistics.items(), np.split(sums, ends[:-1], axis=1), strict=True):
        values = statistic.value(its_sums)
        if (values := values[~np.isnan(values)]).size:
            low, high = np.quantile(values, _COVERED)
            found[name] = (float(low), float(high))
    return found


def paired_difference(
    first: Sequence[float] | Floats, second: Sequence[float] | Floats, resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean of first - second, low, high): two runs compared question by question, with its 95 % interval.

    first, second: [n_questions] one value per question, of the same questions in the same order. An interval that
    leaves 0 out tells the runs apart more surely than their own two intervals do: both met the same questions.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape or one.ndim != 1:
        raise OpenBookError(
            "a paired comparison needs one value per question of each run",
            got=f"{list(one.shape)} and {list(other.shape)}",
            expected="two lists of the same length",
            action="Evaluate both runs on the same questions.",
        )
    if not np.isfinite(one - other).all():
        raise OpenBookError(
            "a paired comparison needs finite values",
            got=f"{int((~np.isfinite(one - other)).sum())} that are not",
            action="Leave out the questions that either run did not measure.",
        )
    low, high = bootstrap({"difference": mean_of(list(one - other))}, resamples, seed)["difference"]
    return float((one - other).mean()), low, high


def wilson(share: float, n: float) -> tuple[float, float]:
    """95 % interval of a share of n independent answers (Wilson 1927); within 0 to 1 and sensible near both ends."""
    z = 1.96
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def _ratio(sums: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def _draws(n_questions: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Blocks of [resamples of the block, n_questions] how often each question was drawn."""
    if n_questions < 1 or resamples < 1:
        raise OpenBookError(
            "a bootstrap draws questions",
            got=f"{n_questions} questions, {resamples} resamples",
            expected="1 or more of each",
        )
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWS_AT_ONCE // n_questions)
    for start in range(0, resamples, step):
        n = min(step, resamples - start)
        drawn = generator.integers(n_questions, size=(n, n_questions))
        drawn += np.arange(n)[:, None] * n_questions  # each resample counts in a range of its own
        yield np.bincount(drawn.ravel(), minlength=n * n_questions).reshape(n, n_questions).astype(np.float64)
