"""What is served now, and the swap to what is served next: one name is bound again, and nothing else changes.

The next generation is loaded, its corpus encoded and its index built beside the one that is served, which answers all
the while. Who has begun an answer keeps the generation that it began with; the last of them frees it.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from openbook.errors import OpenBookError
from openbook.serving.served import Served
from openbook.utils.console import say


class BusyError(OpenBookError):
    """What is asked for may be asked for again later."""


class Source(NamedTuple):
    """What is loaded: a run by its folder or experiment, and key=value overrides of its configuration."""

    run: str
    overrides: tuple[str, ...] = ()

    def with_corpus(self, corpus: str) -> "Source":
        """The same run over another corpus, by the name that data.corpus takes; "" leaves it as it is."""
        others = tuple(one for one in self.overrides if not one.startswith("data.corpus="))
        return self._replace(overrides=(*others, f"data.corpus={corpus}")) if corpus else self


class Current:
    """load: makes a Served of a Source; it raises OpenBookError where that cannot be served."""

    def __init__(self, load: Callable[[Source], Served], source: Source):
        self._load, self.source = load, source
        self._served: Served | None = None
        self._loading, self._swapping = threading.Lock(), threading.Lock()

    def served(self) -> Served:
        """The generation that is served now; the first call loads it."""
        with self._loading:
            if self._served is None:
                self._served = self._load(self.source)
            return self._served

    def swap(self, source: Source | None = None) -> Served:
        """Load the next generation and serve it; None: the same source as it is now, which is what a run that has
        another checkpoint or another corpus by now is read again with.

        Raises BusyError while another swap is under way, and OpenBookError where the next generation cannot be loaded:
        the one before goes on being served.
        """
        if not self._swapping.acquire(blocking=False):
            raise BusyError("a swap is under way", action="Ask again once GET /health says the next generation.")
        try:
            before, source = self.served(), source or self.source
            after = replace(self._load(source), generation=before.generation + 1)
            self._served, self.source = after, source
        finally:
            self._swapping.release()
        say(f"generation {after.generation}: {described(after)}")
        return after


def described(served: Served) -> str:
    """A generation in one line."""
    facts = served.facts
    passages = f"{facts['n_passages']:,} passages of {facts['corpus']}"
    return f"{facts['run']}, {facts['checkpoint']} of step {facts['step']}; {passages}"
