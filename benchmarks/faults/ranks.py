"""One of two ranks fails, in whatever it does: both name who and why, and end within seconds; a stopped one ends the
job by trainer.timeout."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, product
from pathlib import Path

from benchmarks.common.processes import ends_of
from benchmarks.faults.small import small_system, start_ranks

NAME = "ranks"
QUICK, FULL = 3, 18
SLOWEST = 15.0  # seconds to the last rank's end, its interpreter's included
TIMEOUT = 12

# What raises, and in which phase it is named.
PLACES = {
    "planning": ("openbook.setup.prepare.Prepared.plan", ""),
    "a step": ("openbook.training.rag_module.RagModule.training_step", "training, step 1"),
    "validation": ("openbook.training.rag_module.RagModule.validation_step", ""),
    "making the run folder": ("openbook.tracking.run_folder.RunFolder.create", ""),
    "reading the data": ("openbook.commands.train.prepare", ""),
    "the report": ("openbook.commands.stages.write_report", "the report"),
    "tokenising": ("openbook.setup.inputs.data.build_corpus", ""),
    "saving": ("openbook.tracking.checkpoint_io.WholeCheckpoints.save_checkpoint", "saving after step 0"),
    "encoding": ("openbook.retrieval.corpus_encoder.PassageCoder.passes", ""),
    "comparing indexes": ("openbook.refresh.measure.IndexMeasure.finish", ""),
    "the summary": ("openbook.commands.stages.Stages._summary", "writing summary.json"),
}
RANK_ZERO_ALONE = {"planning", "making the run folder", "the report", "saving", "the summary"}
PLANT = """
if rank == {rank}:
    import time
    from pkgutil import resolve_name
    owner, name = resolve_name({owner!r}), {name!r}
    def fails(*arguments, **named):
        open({note!r}, "w").write(str(time.time()))
        raise RuntimeError("planted fault")
    setattr(owner, name, fails)
else:
    from openbook.setup.trainer import Ranks
    connect = Ranks.setup_environment
    def comes(self):
        open({note!r} + "-met", "w").write(str(__import__("time").time()))
        connect(self)
    Ranks.setup_environment = comes
"""


def tries(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """The stopped rank first, then places times ranks."""
    order = [(place, rank) for rank, place in product((0, 1), PLACES) if rank == 0 or place not in RANK_ZERO_ALONE]
    order.sort(key=lambda one: list(PLACES).index(one[0]))
    yield "rank 1 is stopped", partial(stopped, folder / "stopped")
    for number, (place, rank) in enumerate(islice(order, count - 1)):
        yield f"rank {rank} raises in {place}", partial(raises, folder / str(number), place, rank)


def raises(folder: Path, place: str, rank: int) -> None:
    folder.mkdir(parents=True)
    address, phase = PLACES[place]
    owner, _, name = address.rpartition(".")
    note = folder / "failed_at"
    plant = PLANT.format(rank=rank, owner=owner, name=name, note=str(note))
    ends = ends_of(start_ranks(2, ["train", *_words(folder)], plant))
    # The other hears of it when it has set up by itself, which on a busy machine takes as long as it takes.
    took = time.time() - max(float(path.read_text()) for path in folder.glob("failed_at*"))
    text = "\n".join(said[-1500:] for _, said in ends)
    assert all("planted fault" in said for _, said in ends), text
    assert f"rank {rank} failed" in ends[1 - rank][1] and phase in ends[1 - rank][1], text
    assert ends[1 - rank][0] == 2 and ends[rank][0], (ends[0][0], ends[1][0], text)
    assert took < SLOWEST, took


def stopped(folder: Path) -> None:
    folder.mkdir(parents=True)
    plant = f"""
from openbook.training.rag_module import RagModule
step, done = RagModule.training_step, []
def stops(self, *arguments):
    done.append(1)
    if rank == 1 and len(done) == 3:
        import time
        open({str(folder / "stopped_at")!r}, "w").write(str(time.time()))
        os.kill(os.getpid(), {int(signal.SIGSTOP)})
    return step(self, *arguments)
RagModule.training_step = stops
"""
    processes = start_ranks(2, ["train", *_words(folder, f"trainer.timeout={TIMEOUT}")], plant)
    try:
        said = processes[0].communicate(timeout=240)[0]
        took = time.time() - float((folder / "stopped_at").read_text())
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert processes[0].returncode == 2, said[-3000:]
    assert "rank 1 did not answer (" in said and f"nothing within {TIMEOUT} s" in said, said[-3000:]
    assert took < TIMEOUT + 10, took


def _words(folder: Path, *more: str) -> list[str]:
    words = ("trainer.devices=2", "trainer.batch_size=2", "evaluate.before_training=false", "trainer.max_steps=4")
    return small_system(folder.parent / "system").words(folder / "run", *words, *more)
