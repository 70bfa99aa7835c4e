"""One handling of SIGINT, SIGTERM and SIGUSR1 from a command's first line to its last.

A signal raises Stopped in the main thread: what is half done is taken back by whoever is doing it, and the command ends
with 128 + the signal's number. While a model trains, callbacks/checkpointing.py has handlers of its own, which save
first, and puts these back. A second signal meets the system's own handling and ends the process at once.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(BaseException):
    """The process received a signal. number: which."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def code(self) -> int:
        """The exit code."""
        return 128 + self.number


@contextmanager
def stopping() -> Iterator[None]:
    """Signals raise Stopped inside the block; the handlers that were there are put back behind it."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
