"""Runs another openbook command in a process of its own and waits for it; each signal is forwarded once."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from openbook.tracking.run_folder import SHARED
from openbook.utils.signals import SIGNALS, Stopped


def run_command(words: Sequence[str]) -> int:
    """`python -m openbook WORDS`, its output on ours; returns its exit code (negative: the signal that ended it).

    The command runs in a session of its own, so that Ctrl-C only reaches it from here: a training run takes a second
    one as a request to stop without saving. Raises Stopped once the command has ended after a signal.
    """
    received: list[int] = []
    environment = {name: value for name, value in os.environ.items() if name != SHARED}
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if process is not None:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        sys.stdout.flush()
        process = subprocess.Popen([sys.executable, "-m", "openbook", *words], env=environment, start_new_session=True)
        for number in received:  # that arrived while it was starting
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise Stopped(received[0])
    return code
