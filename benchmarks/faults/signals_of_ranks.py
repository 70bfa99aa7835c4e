"""A signal that one of two ranks receives, or both, in every phase of a run: both end. In training they agree, and rank
0 ends with the signal's code; elsewhere one who was signalled does, and the other too or by an error that names it. No
status stays "running"."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, product
from pathlib import Path

from benchmarks.common.processes import ends_of
from benchmarks.faults.signals import SIGNALS
from benchmarks.faults.small import small_system, start_ranks
from tests.commands.test_signals import PHASES

NAME = "signals on two ranks"
WHO = {"rank 1": (1,), "both ranks": (0, 1)}
QUICK, FULL = 2, len(PHASES) * len(WHO) * len(SIGNALS)

# Rank 0 knows when the phase has come, and sends to the processes that have left their numbers.
PLANT = """
open({folder!r} + f"/process-{{rank}}", "w").write(str(os.getpid()))
if rank == 0:
    from pathlib import Path
    from pkgutil import resolve_name
    owner, calls = resolve_name({owner!r}), []
    original = getattr(owner, {name!r})
    def wrapped(*arguments, **named):
        calls.append(1)
        if len(calls) == {at}:
            for one in {who!r}:
                os.kill(int(Path({folder!r}, f"process-{{one}}").read_text()), {number})
        return original(*arguments, **named)
    setattr(owner, {name!r}, wrapped)
"""


def tries(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each phase with one signal first, then with the others."""
    order = [
        (phase, who, SIGNALS[(at + turn) % 3]) for turn, who, (at, phase) in product(range(3), WHO, enumerate(PHASES))
    ]
    for number, (phase, who, sent) in enumerate(islice(order, count)):
        yield f"{sent.name} to {who} in {phase}", partial(stopped, folder / str(number), phase, who, sent)


def stopped(folder: Path, phase: str, who: str, sent: signal.Signals) -> None:
    folder.mkdir(parents=True)
    address, at = PHASES[phase]
    owner, _, name = address.rpartition(".")
    plant = PLANT.format(folder=str(folder), owner=owner, name=name, at=at, who=WHO[who], number=int(sent))
    words = small_system(folder.parent / "system").words(
        folder / "run", "trainer.devices=2", "trainer.batch_size=2", "trainer.timeout=30"
    )
    ends = ends_of(start_ranks(2, ["train", *words], plant), timeout=180)
    text = "\n".join(f"{code}: {said[-1500:]}" for code, said in ends)
    # One that is stopped while it still imports tells nobody; the other has waited for trainer.timeout then.
    named = sent.name in ends[0][1] or "another rank did not answer" in ends[0][1]
    assert named and not any("Traceback" in said for _, said in ends), text
    if "stopped by a signal after step" in ends[0][1]:  # all have agreed, and the first speaks for them
        assert ends[0][0] == 128 + sent and ends[1][0] in (0, 128 + sent), text
    else:
        # Of two that are signalled while they connect, one may hear of the other before its own signal is handled.
        assert any(ends[rank][0] == 128 + sent for rank in WHO[who]), text
        assert all(code in (2, 128 + sent) for code, _ in ends), text
    summary = folder / "run/summary.json"
    assert not summary.exists() or json.loads(summary.read_text())["status"] != "running", text
