"""How a process that was connected to other ranks ends.

A thread of gloo that has done a collective lets go of its tensors after the collective has returned, and takes the
interpreter's lock for that. If the interpreter is on its way out by then, the process dies of SIGABRT ("terminate
called without an active exception", pytorch/pytorch#190489): a run that has ended well counts as failed, and the
launcher may kill the other ranks for it. Destroying the process group does not help while a DDP module holds it.
"""

import atexit
import threading
import time
from pathlib import Path

_LOOK = 0.005  # seconds between two looks; the interpreter's lock is free meanwhile
_LONGEST = 2.0  # seconds


def end_at_rest() -> None:
    """From now on this process ends only once its other threads sleep, or two seconds later."""
    atexit.unregister(_rest)
    atexit.register(_rest)


def _rest() -> None:
    """Two looks in a row, for a thread may lie between the collective and the lock at one of them."""
    until = time.monotonic() + _LONGEST
    asleep = 0
    while asleep < 2 and time.monotonic() < until:
        time.sleep(_LOOK)
        asleep = 0 if _any_runs() else asleep + 1


def _any_runs() -> bool:
    """Whether another thread of this process runs or waits for a core. Where there is no /proc none is seen."""
    own = str(threading.get_native_id())
    for thread in Path("/proc/self/task").glob("*"):
        try:
            state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has ended
            continue
        if thread.name != own and state == "R":
            return True
    return False
