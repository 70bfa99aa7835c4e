"""When the index is refreshed: a pure function of the step and of the overlap measured last, so that a resumed run
decides as it would have anyway."""

from __future__ import annotations

import re
from dataclasses import dataclass

from openbook.errors import OpenBookError

STALENESS = "staleness"  # The word that makes measured overlap, not the step alone, decide.

_SPAN = re.compile(r"(\d+)-(\d*):(\d+)")


@dataclass(frozen=True)
class Span:
    """From optimizer step `start` until before `stop` (None: for ever), a refresh every `every` steps; 0: none."""

    start: int
    stop: int | None
    every: int


@dataclass(frozen=True)
class RefreshSchedule:
    """Spans of steps, each with its own interval; outside all spans nothing is refreshed.

    Or, with watches_staleness, no spans: a refresh once overlap@k (0 to 1) is under min_overlap, but never fewer than
    `floor` steps after the last one and always `ceiling` steps after it (0: no ceiling).
    """

    spans: tuple[Span, ...]
    watches_staleness: bool = False
    min_overlap: float = 0.7
    floor: int = 10
    ceiling: int = 200

    @classmethod
    def read(cls, text: str, min_overlap: float = 0.7, floor: int = 10, ceiling: int = 200) -> RefreshSchedule:
        """`30` is every 30 steps; `0-1000:100,1000-:500` every 100 steps until step 1,000, every 500 from then on;
        `staleness` whenever overlap@k falls under min_overlap, between floor and ceiling.

        Raises OpenBookError for another form, for spans that overlap or do not rise, for a min_overlap that is no
        share, and, with `staleness`, for a floor above the ceiling.
        """
        if not 0 <= min_overlap <= 1:
            raise OpenBookError(
                "value out of range", where="refresh.min_overlap", got=repr(min_overlap), expected="a share from 0 to 1"
            )
        if text == STALENESS:
            if floor > ceiling > 0:
                raise OpenBookError(
                    "fewest steps between refreshes above the most",
                    where="refresh.floor, refresh.ceiling",
                    got=f"refresh.floor={floor}, refresh.ceiling={ceiling}",
                    expected="a floor up to the ceiling, or refresh.ceiling=0 for none",
                )
            return cls((), True, min_overlap, floor, ceiling)
        return cls(_spans(text), False, min_overlap, floor, ceiling)

    def due(self, step: int, last_refresh: int, overlap: float | None = None) -> bool:
        """Whether a refresh is due once `step` optimizer steps are done, the last one having been after last_refresh.

        overlap: overlap@k as measured at this step, None where it was not measured; it counts with `staleness` only.
        Not a modulus of the step alone: with accumulated gradients one step is seen several times.
        """
        since = step - last_refresh
        if not self.watches_staleness:
            return 0 < self.interval(step) <= since
        if since < max(self.floor, 1):
            return False
        return 0 < self.ceiling <= since or (overlap is not None and overlap < self.min_overlap)

    def needs_look(self, step: int, last_refresh: int, look_every: int) -> bool:
        """Whether overlap@k is to be measured once `step` steps are done: with `staleness`, every look_every steps
        after the last refresh (0: never), from the floor until before the ceiling, where a refresh is due anyway.

        The same step gives the same answer however often it is asked about: whoever looks remembers the step.
        """
        since = step - last_refresh
        if not self.watches_staleness or look_every < 1 or since < max(self.floor, 1):
            return False
        return since % look_every == 0 and not 0 < self.ceiling <= since

    def interval(self, step: int) -> int:
        """Steps between refreshes at that step, 0: none; with `staleness` the most there can be, its ceiling."""
        if self.watches_staleness:
            return self.ceiling
        for span in self.spans:
            if span.start <= step and (span.stop is None or step < span.stop):
                return span.every
        return 0


def _spans(text: str) -> tuple[Span, ...]:
    if text.isdecimal():
        return (Span(0, None, int(text)),)
    spans = []
    for part in text.split(","):
        found = _SPAN.fullmatch(part.strip())
        if found is None:
            raise _unreadable(text)
        spans.append(Span(int(found[1]), int(found[2]) if found[2] else None, int(found[3])))
    ends = [float("inf") if span.stop is None else span.stop for span in spans]
    rising = all(span.start < end for span, end in zip(spans, ends, strict=True))
    apart = all(end <= following.start for end, following in zip(ends, spans[1:], strict=False))
    if not (rising and apart):
        raise _unreadable(text)
    return tuple(spans)


def _unreadable(text: str) -> OpenBookError:
    expected = f"steps between refreshes, rising spans like 0-1000:100,1000-:500, or {STALENESS}"
    return OpenBookError("not a refresh schedule", where="refresh.every", got=repr(text), expected=expected)
