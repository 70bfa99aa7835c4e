"""What being safe costs: of a step, remembering what it read for diverged.json and asking the ranks for a signal; of a
save, writing beside the old checkpoint, to disk, and looking for weights that are no numbers.

    python -m benchmarks.training.safety [--out FILE] [--quick]

`safety.step.share`: processor time of the former by that of a step of experiments/rag_token (quick: tiny), one process.
`safety.save.ratio`: seconds of a checkpoint of that run (weights and both moments) by those of Lightning's own saving,
in turns; `safety.save.seconds` is ours, `safety.read.seconds` that of reading its checksums, once before a resume.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from benchmarks.common.figures import Value, finish, options
from benchmarks.common.system import System, prepare_machine, system, train
from openbook.tracking.checkpoint import damage
from openbook.tracking.checkpoint_io import WholeCheckpoints
from openbook.training.divergence import Trail, is_finite
from openbook.utils.distributed import largest

ROUNDS = 5


def guards(on: System, rounds: int = 500) -> float:
    """Processor seconds of what a step does for its own safety alone."""
    examples = [on.questions.questions["train"][number] for number in range(on.config.trainer.batch_size)]
    batch, n_docs = on.questions.batch_of(examples), on.config.retriever.n_docs
    rows, scores, trail = torch.zeros(len(examples), n_docs).long(), torch.zeros(len(examples), n_docs), Trail()
    started = time.process_time()
    for step in range(rounds):
        trail.read(step, batch, rows, nll=scores[:, 0], doc_scores=scores, index_scores=scores)
        trail.clipped(step, scores[0, 0])
        largest(0)
    return (time.process_time() - started) / rounds


def content_of(on: System) -> dict[str, Any]:
    """As large as a checkpoint of the run: weights, and two moments of what is trained."""
    weights = on.module.state_dict()
    moments: dict[int, dict[str, Tensor]] = {
        number: {"exp_avg": torch.randn_like(value), "exp_avg_sq": torch.rand_like(value)}
        for number, value in enumerate(one for one in on.module.parameters() if one.requires_grad)
    }
    return {"state_dict": weights, "optimizer_states": [{"state": moments}], "global_step": 1}


def saving(on: System) -> dict[str, Value]:
    content = content_of(on)

    def ours(path: Path) -> None:
        assert is_finite(on.module)
        WholeCheckpoints().save_checkpoint(content, path)

    def stock(path: Path) -> None:
        TorchCheckpointIO().save_checkpoint(content, path)

    with tempfile.TemporaryDirectory() as folder:
        took: dict[Callable[[Path], None], list[float]] = {ours: [], stock: []}
        for _ in range(ROUNDS):
            for way, seconds in took.items():
                started = time.perf_counter()
                way(Path(folder) / f"{way.__name__}.ckpt")
                seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        assert damage(Path(folder) / "ours.ckpt") == ""
        read, size = time.perf_counter() - started, (Path(folder) / "ours.ckpt").stat().st_size
    mine, theirs = (statistics.median(seconds) for seconds in took.values())
    return {
        "safety.save.ratio": mine / theirs,
        "safety.save.seconds": mine,
        "safety.save.mib": size / 2**20,
        "safety.read.seconds": read,
    }


def main() -> None:
    asked = options(__doc__).parse_args()
    prepare_machine()
    torch.set_num_threads(1)
    on = system(asked.quick)
    found = saving(on)
    started, steps = time.process_time(), 3 if asked.quick else 6
    trained = train(on, steps)
    share = (time.process_time() - started) / sum(step.training + step.manager for step in trained)
    each = statistics.median(step.training for step in trained) * min(1.0, share)
    guarded = guards(on)
    found |= {"safety.step.share": guarded / each, "safety.step.microseconds": guarded * 1e6}
    finish(asked, found)


if __name__ == "__main__":
    main()
