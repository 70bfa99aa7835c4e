"""Runs another program, mostly an openbook command, in its own process and waits; each signal is forwarded once."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from openbook.tracking.run_folder import SHARED
from openbook.utils.signals import SIGNALS, Stopped


def run_command(words: Sequence[str]) -> int:
    """`python -m openbook WORDS`, as run_program does."""
    return run_program([sys.executable, "-m", "openbook", *words])


def run_program(
    words: Sequence[str], more: Mapping[str, str] | None = None, before_signal: Callable[[], object] | None = None
) -> int:
    """A program, its output on ours; returns its exit code (negative: the signal that ended it).

    It runs in a session of its own, so that Ctrl-C only reaches it from here: a training run takes a second one as a
    request to stop without saving. Raises Stopped once it has ended after a signal. more: environment variables.
    before_signal: called before a signal is passed on.
    """
    received: list[int] = []
    environment = {name: value for name, value in os.environ.items() if name != SHARED} | dict(more or {})
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if before_signal is not None:
            before_signal()
        if process is not None:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        sys.stdout.flush()
        process = subprocess.Popen(words, env=environment, start_new_session=True)
        for number in received:  # that arrived while it was starting
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise Stopped(received[0])
    return code
