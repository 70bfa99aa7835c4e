"""Many runs as one table: means and ranges over seeds next to the paper's results, and which method is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from openbook.metrics.bootstrap import paired_difference, wilson
from openbook.metrics.summary import HELD_OUT
from openbook.reporting import published as paper


class Spread(NamedTuple):
    """Of one measure over n runs that differ in the seed alone."""

    mean: float
    min: float
    max: float
    n: int

    def overlaps(self, other: Spread) -> bool:
        """Whether the two ranges have a value in common."""
        return self.min <= other.max and other.min <= self.max


# Measure -> its heading. Rates are fractions; seconds are those of training with its refreshes.
METRICS = {
    "exact_match": "exact match",
    "f1": "F1",
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "exact_match_held_out": "exact match, unseen phrasings",
    "recall_at_1_held_out": "recall@1, unseen phrasings",
    "utility": "utility, nats",
    "train_seconds": "seconds of training",
}
SHORT = {"exact_match": "exact match", "recall_at_1": "recall@1", "exact_match_held_out": "unseen phrasings"}
QUESTIONS = "n_questions"  # Kept with the measures: the number of questions behind them.


def measures(test: Mapping[str, Any], seconds: Mapping[str, float] | None = None) -> dict[str, float]:
    """{measure: value} of one run, from the test figures and the seconds of its summary.json; what was not measured
    is left out."""
    held_out = test.get("by_phrasing", {}).get(HELD_OUT, {})
    values: dict[str, Any] = {name: test.get(name) for name in (*METRICS, QUESTIONS)}
    values |= {f"{name}_{HELD_OUT}": held_out.get(name) for name in ("exact_match", "recall_at_1")}
    if seconds:
        values["train_seconds"] = seconds.get("train", 0.0) + seconds.get("refresh", 0.0)
    return {
        name: float(value) for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)
    }


@dataclass
class Row:
    """One experiment: its measures per seed, and the seeds of which there is no finished run.

    matches: seed -> {question id: exact match} of the questions that the headline counts, where that is known.
    """

    experiment: str
    by_seed: dict[int, dict[str, float]] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    matches: dict[int, dict[str, float]] = field(default_factory=dict)

    def spread(self, metric: str) -> Spread | None:
        """Over the seeds that have it; None where none has."""
        values = [values[metric] for values in self.by_seed.values() if metric in values]
        return Spread(fmean(values), min(values), max(values), len(values)) if values else None

    def chance(self, metric: str) -> Spread | None:
        """The range in which a rate is to be expected: over the seeds; where there is one run, its 95 % interval
        by the questions alone (`wilson`)."""
        spread = self.spread(metric)
        values = next((one for one in self.by_seed.values() if metric in one), {})
        if spread is None or spread.n > 1 or not values.get(QUESTIONS):
            return spread
        return Spread(spread.mean, *wilson(spread.mean, values[QUESTIONS]), 1)

    @property
    def runs(self) -> str:
        """'3', or '2 of 3 (seed 1 missing)'."""
        if not self.missing:
            return str(len(self.by_seed))
        seeds = ", ".join(map(str, self.missing))
        n = len(self.by_seed)
        return f"{n} of {n + len(self.missing)} (seed{'s' * (len(self.missing) > 1)} {seeds} missing)"


def shown(spread: Spread | None, metric: str) -> str:
    """'0.896 (0.882 to 0.912)', '0.896' where there is one run, '-' where there is none."""
    if spread is None:
        return "-"
    digits = {"train_seconds": 0, "utility": 2}.get(metric, 3)
    text = f"{spread.mean:,.{digits}f}"
    return text if spread.n == 1 else f"{text} ({spread.min:,.{digits}f} to {spread.max:,.{digits}f})"


def table(rows: Sequence[Row]) -> list[list[str]]:
    """A header and one line per row, in the rows' order; measures that no row has are left out."""
    return _beside_the_paper(
        rows,
        METRICS,
        {
            "the paper: test": lambda method: paper.percentages(method.test),
            "the paper: dev": lambda method: paper.percentages(method.dev),
        },
    )


def short_table(rows: Sequence[Row]) -> list[list[str]]:
    """The same for a terminal: what decides, and the paper's Natural Questions alone."""
    return _beside_the_paper(rows, SHORT, {"paper, NQ": lambda method: method.best(1)})


def _beside_the_paper(
    rows: Sequence[Row], headings: Mapping[str, str], theirs: Mapping[str, Callable[[paper.Published], str]]
) -> list[list[str]]:
    """theirs: heading -> what it says of a row's counterpart in the paper."""
    measured = [metric for metric in headings if any(row.spread(metric) for row in rows)]
    lines = [["", *(headings[metric] for metric in measured), "runs", *theirs]]
    for row in rows:
        figures = [shown(row.spread(metric), metric) for metric in measured]
        counterpart = paper.COUNTERPARTS.get(row.experiment, paper.Published(""))
        lines.append([f"`{row.experiment}`", *figures, row.runs, *(says(counterpart) for says in theirs.values())])
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A header and lines as a Markdown table."""
    drawn = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([drawn[0], "|" + "---|" * len(lines[0]), *drawn[1:]]) + "\n"


class Verdict(NamedTuple):
    """What one's own runs say about a pair of the paper: `agree`, `disagree`, `not separated` or `missing: NAMES`.

    difference: see `paired`.
    """

    pair: paper.Pair
    ahead: Spread | None
    behind: Spread | None
    verdict: str
    difference: tuple[float, float, float] | None = None


def paired(ahead: Row, behind: Row) -> tuple[float, float, float] | None:
    """(mean, low, high) of the difference in exact match, question by question, with its 95 % interval.

    Each question counts once, with its mean over the seeds in which both met the same questions: what several seeds say
    about one question is not independent. How much runs vary from seed to seed is not in the interval. None without
    such a seed.
    """
    seeds = sorted(seed for seed in ahead.matches.keys() & behind.matches.keys() if ahead.matches[seed])
    ids = sorted(ahead.matches[seeds[0]]) if seeds else []
    both = [seed for seed in seeds if sorted(ahead.matches[seed]) == ids == sorted(behind.matches[seed])]
    if not both:
        return None
    first, second = ([fmean(row.matches[seed][id_] for seed in both) for id_ in ids] for row in (ahead, behind))
    return paired_difference(first, second)


def orderings(rows: Sequence[Row]) -> list[Verdict]:
    """Every pair of the paper of which one half or more is here, judged by exact match: they are separated where the
    interval of the paired difference leaves 0 out; where the answers to the same questions are not at hand, where the
    ranges (over the seeds; of a single run, by its questions) have no value in common."""
    by_name = {row.experiment: row for row in rows}
    verdicts = []
    for pair in paper.PAIRS:
        first, second = (by_name.get(name, Row(name)) for name in (pair.ahead, pair.behind))
        ahead, behind = first.chance("exact_match"), second.chance("exact_match")
        if ahead and behind:
            difference = paired(first, second)
            low, high = difference[1:] if difference else (ahead.min - behind.max, ahead.max - behind.min)
            verdict = "agree" if low > 0 else "disagree" if high < 0 else "not separated"
            verdicts.append(Verdict(pair, ahead, behind, verdict, difference))
        elif ahead or behind:
            verdicts.append(Verdict(pair, ahead, behind, f"missing: {pair.behind if ahead else pair.ahead}"))
    return verdicts


def orderings_table(verdicts: Sequence[Verdict]) -> list[list[str]]:
    """A header and one line per verdict."""
    lines = [
        [
            "the paper's claim",
            "exact match here",
            "ranges overlap",
            "paired difference, 95 % over the questions",
            "the paper, NQ",
            "verdict",
        ]
    ]
    for pair, ahead, behind, verdict, difference in verdicts:
        overlap = "-"
        if ahead and behind:
            single = "" if min(ahead.n, behind.n) > 1 else " (one run: 95 % over its questions)"
            overlap = ("yes" if ahead.overlaps(behind) else "no") + single
        ours = f"{shown(ahead, 'exact_match')} against {shown(behind, 'exact_match')}"
        apart = "{:+.3f} ({:+.3f} to {:+.3f})".format(*difference) if difference else "-"
        theirs = "{:.1f} against {:.1f}".format(*pair.published()) + f" ({pair.split})"
        lines.append([f"{pair.what} (`{pair.ahead}`, `{pair.behind}`)", ours, overlap, apart, theirs, verdict])
    return lines


def sweep_table(rows: Mapping[str, Mapping[int, Row]]) -> list[list[str]]:
    """rows: experiment -> passages read at test -> its measures. A header and a line per experiment and number."""
    swept = ("exact_match", "f1", "recall_at_1", "recall_at_5")
    return [
        ["", "passages read at test", *(METRICS[metric] for metric in swept), "runs"],
        *(
            [f"`{experiment}`", str(number), *(shown(row.spread(metric), metric) for metric in swept), row.runs]
            for experiment, by_number in rows.items()
            for number, row in by_number.items()
        ),
    ]


def as_json(row: Row) -> dict[str, dict[str, float | int]]:
    """{measure: {mean, min, max, n}} of every measure that some seed has."""
    return {metric: spread._asdict() for metric in METRICS if (spread := row.spread(metric))}
