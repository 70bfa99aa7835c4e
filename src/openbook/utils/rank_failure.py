"""One rank failing: every rank ends, and names who failed, in what, and why.

Before the ranks are connected each sets up by itself; one that fails then meets the others once to tell them
(`meet`). Later the others notice by a connection that is closed or a wait that times out, and find the reason in the
store that connects them, or, where that went with rank 0, in a file of the run folder.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from openbook.utils.at_exit import end_at_rest
from openbook.utils.atomic import write_text
from openbook.utils.disk import DiskError
from openbook.utils.distributed import (
    RankError,
    in_words,
    now_in,
    phase,
    raise_if_any_rank_failed,
    raise_on_all_ranks,
    rank,
    world_size,
)
from openbook.utils.hardware import rank_from_environment
from openbook.utils.signals import Stopped

_KEY = "openbook/failed"
_FILE = ".failed"
_MEETING = 30.0  # seconds that a rank which failed in its set-up waits for the others to come and hear of it
_LOOKING = 4.0  # seconds that the reason is looked for
# How gloo, NCCL and the store say that a rank is gone or silent.
_CLOSED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
_GONE = (*_CLOSED, "NCCL", "gloo", "TCPStore", "recvBytes")
_SILENT = ("Timed out waiting", "Timed out after", "timed out", "timeout")


@contextmanager
def solo(piece: str) -> Iterator[None]:
    """A piece that one rank does alone while the others wait: what it raises is raised on all."""
    now_in(piece)
    with raise_on_all_ranks():
        yield


@contextmanager
def named_on_all_ranks(expected: int, timeout: float, folder: Path, backend: str) -> Iterator[None]:
    """What a rank raises inside, or a signal that it receives, ends all ranks with an error that names it.

    expected: ranks of the run. timeout: seconds that they wait for one another. folder: of the run. backend: gloo or
    nccl, by which they are, or will be, connected."""
    if expected > 1:
        end_at_rest()
    note = folder / _FILE
    if rank_from_environment() == 0:
        with suppress(OSError):  # of an earlier attempt
            note.unlink()
    try:
        yield
    except RankError:
        raise
    except (Exception, Stopped) as error:
        if expected > 1 and isinstance(error, Exception) and _is_of_another(error):
            raise _explained(error, note, timeout) from error
        if world_size() == 1:
            if expected > 1 and not dist.is_initialized():
                if isinstance(error, Stopped) and note.parent.is_dir():  # for one that comes later than this one waits
                    _write_note(note, f"rank {rank_from_environment()}, {phase()}: {in_words(error)}")
                meet(error, expected, timeout, backend)
        else:
            _publish(f"rank {rank()}, {phase()}: {in_words(error)}", note)
        raise


def meet(error: BaseException, expected: int, timeout: float, backend: str) -> None:
    """Connect to the ranks that have started, or will, and tell them of this one's failure. A process that has started
    no others yet tells nobody."""
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    kinds = (TorchElasticEnvironment, SLURMEnvironment)
    launcher = next((kind() for kind in kinds if kind.detect()), LightningEnvironment())
    if not launcher.creates_processes_externally:
        return
    with suppress(Exception):  # the error itself is raised, met or not
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = launcher.main_address, str(launcher.main_port)
        wait = timedelta(seconds=min(timeout, _MEETING))
        dist.init_process_group(backend, rank=rank_from_environment(), world_size=expected, timeout=wait)
        raise_if_any_rank_failed(error)


def _is_of_another(error: Exception) -> bool:
    """Whether a collective failed because of another rank."""
    one: BaseException | None = error
    while one is not None:
        told = isinstance(one, RuntimeError) and any(text in str(one) for text in (*_GONE, *_SILENT))
        if told or isinstance(one, dist.DistError):
            return True
        one = one.__cause__ or one.__context__
    return False


def _explained(error: Exception, note: Path, timeout: float) -> RankError:
    silent = any(text in str(error) for text in _SILENT) and not any(text in str(error) for text in _CLOSED)
    until = time.monotonic() + (0.5 if silent else _LOOKING)
    while not (reason := _reason(note)) and time.monotonic() < until:
        time.sleep(0.1)
    if reason:
        who, _, why = reason.partition(": ")
        return RankError(f"{who.partition(',')[0]} failed", where=who.partition(", ")[2], got=why)
    if not silent:
        return RankError(
            "another rank is gone",
            where=phase(),
            got=" ".join(str(error).split())[:200],
            action="Look at what it said last: it was killed, or its machine went away. The run can be resumed.",
        )
    who = ", ".join(_missing()) or "another rank"
    _publish(f"{who}, {phase()}: no answer within {timeout:g} s (trainer.timeout)", note)
    _wake_launcher()
    return RankError(
        f"{who} did not answer",
        where=phase(),
        got=f"nothing within {timeout:g} s",
        expected="an answer within trainer.timeout",
        action="It hangs or was stopped; where it only takes longer, raise trainer.timeout. The run can be resumed.",
    )


def _reason(note: Path) -> str:
    """What the rank that failed has left behind; empty where nothing is found."""
    with suppress(Exception):  # the store goes with the rank that holds it
        store = dist.distributed_c10d._get_default_store()
        if store.check([_KEY]):
            return str(store.get(_KEY).decode())
    with suppress(OSError):
        return note.read_text(encoding="utf-8")
    return ""


def _publish(text: str, note: Path) -> None:
    with suppress(Exception):
        dist.distributed_c10d._get_default_store().set(_KEY, text)
    _write_note(note, text)


def _write_note(note: Path, text: str) -> None:
    with suppress(DiskError):  # whatever failed, the disk among it
        write_text(note, text)


def _missing() -> list[str]:
    """The ranks that do not say within three seconds that they, too, have waited in vain."""
    missing = set(range(world_size())) - {rank()}
    with suppress(Exception):
        store = dist.distributed_c10d._get_default_store()
        store.set(f"openbook/waits/{rank()}", "1")
        until = time.monotonic() + 3
        while missing and time.monotonic() < until:
            time.sleep(0.1)
            missing = {number for number in missing if not store.check([f"openbook/waits/{number}"])}
    return [f"rank {number}" for number in sorted(missing)]


def _wake_launcher() -> None:
    """Of Lightning's launcher, which is rank 0, a stopped one is continued: it finds the others gone and ends."""
    if os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ and os.getppid() > 1:
        with suppress(OSError):
            os.kill(os.getppid(), signal.SIGCONT)
