"""When the index is refreshed: a pure function of the step, so that a resumed run decides as it would have anyway."""

from __future__ import annotations

import re
from dataclasses import dataclass

from openbook.errors import OpenBookError

_SPAN = re.compile(r"(\d+)-(\d*):(\d+)")


@dataclass(frozen=True)
class Span:
    """From optimizer step `start` until before `stop` (None: for ever), a refresh every `every` steps; 0: none."""

    start: int
    stop: int | None
    every: int


@dataclass(frozen=True)
class RefreshSchedule:
    """Spans of steps, each with its own interval. Outside all spans nothing is refreshed."""

    spans: tuple[Span, ...]

    @classmethod
    def read(cls, text: str) -> RefreshSchedule:
        """`30` is every 30 steps; `0-1000:100,1000-:500` every 100 steps until step 1,000, every 500 from then on.

        Raises OpenBookError for another form, and for spans that overlap or do not rise.
        """
        if text.isdigit():
            return cls((Span(0, None, int(text)),))
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
        return cls(tuple(spans))

    def due(self, step: int, last_refresh: int) -> bool:
        """Whether a refresh is due once `step` optimizer steps are done, the last one having been after last_refresh.

        Not a modulus of the step alone: with accumulated gradients one step is seen several times.
        """
        for span in self.spans:
            if span.start <= step and (span.stop is None or step < span.stop):
                return span.every > 0 and step - last_refresh >= span.every
        return False


def _unreadable(text: str) -> OpenBookError:
    return OpenBookError("not a refresh schedule", where="refresh.every", got=repr(text),
                         expected="steps between refreshes, or rising spans like 0-1000:100,1000-:500")  # fmt: skip
