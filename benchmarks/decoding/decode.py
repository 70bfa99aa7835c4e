"""Beam search over the RAG-Token marginal next to transformers' RagTokenForGeneration.generate: time and memory.

    python -m benchmarks.decoding.decode [--out FILE] [--quick]

Both sides use the very same random weights of BART-base's shape, in fp32 with torch's fused attention, and are given
the same contexts of 300 tokens (RagRetriever pads to that) and document scores: retrieval is left out. Runs of the two
alternate in one process; the answers must be the same, token for token. Memory is the most a process of its own holds
beyond its weights and libraries.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import RagSequenceForGeneration, RagTokenForGeneration

from benchmarks.common.figures import Value, finish, median, options
from benchmarks.common.peer import SHAPES, bart, peer
from benchmarks.common.system import now, prepare_machine
from openbook.inference.rag_token import rag_token_beams
from openbook.models.seq2seq import Seq2SeqGenerator
from openbook.utils.host_memory import current_memory, peak_memory, reset_peak_memory

N_DOCS, BEAMS = 5, 4


@dataclass(frozen=True)
class Case:
    """What is decoded: questions, contexts of so many tokens, and answers of exactly so many."""

    questions: int
    context_len: int = 300
    target_len: int = 20
    small: bool = False


@dataclass(frozen=True)
class Pair:
    """Both sides over one model, and what they are asked. doc_scores: [questions, N_DOCS], before the softmax."""

    generator: Seq2SeqGenerator
    token_peer: RagTokenForGeneration
    sequence_peer: RagSequenceForGeneration
    context_ids: Tensor
    context_mask: Tensor
    doc_scores: Tensor


def pair(case: Case) -> Pair:
    """BART-base with random weights (a tiny one for a quick look): 6 + 6 layers, dim 768, vocab 50265."""
    model = bart(*SHAPES["tiny" if case.small else "base"]).eval()
    token_peer, sequence_peer = (peer(model, objective, N_DOCS).eval() for objective in ("rag_token", "rag_sequence"))
    ids = torch.randint(5, model.config.vocab_size, (case.questions * N_DOCS, case.context_len))
    scores = torch.randn(case.questions, N_DOCS)
    return Pair(Seq2SeqGenerator(model), token_peer, sequence_peer, ids, torch.ones_like(ids), scores)


def searched(search: Callable[..., Any], on: Pair, case: Case) -> list[list[int]]:
    """The best answer of each question, by one of our beam searches."""
    prior = on.doc_scores.log_softmax(1)
    answers = search(on.generator, on.context_ids, on.context_mask, prior, BEAMS, case.target_len, case.target_len)
    return [list(found[0].token_ids) for found in answers]


def generated(peer: Any, on: Pair, case: Case, **more: int) -> list[list[int]]:
    """The same by transformers; generate counts the start token and returns it."""
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = peer.generate(
            context_input_ids=on.context_ids,
            context_attention_mask=on.context_mask,
            doc_scores=on.doc_scores,
            num_beams=BEAMS,
            max_length=case.target_len + 1,
            length_penalty=0.0,
            early_stopping=False,
            do_sample=False,
            **more,
        )
    return tokens[:, 1:].tolist()


def ours(on: Pair, case: Case) -> list[list[int]]:
    return searched(rag_token_beams, on, case)


def theirs(on: Pair, case: Case) -> list[list[int]]:
    return generated(on.token_peer, on, case, n_docs=N_DOCS, min_length=case.target_len)


Sides = dict[str, Callable[[Pair, Case], list[list[int]]]]
SIDES: Sides = {"ours": ours, "theirs": theirs}


AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(256 * 1024), "MALLOC_TRIM_THRESHOLD_": str(128 * 1024)}
"""Settings of the allocator by which what is freed goes back to the system at once: memory is what is held, without the
holes between."""


def alternating(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each side, run in turns after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            started = now()
            run()
            if turn:
                seconds[name].append(now() - started)
    return {name: median(found) for name, found in seconds.items()}


def memory_of(module: str, side: str, case: Any, allocator: Mapping[str, str] = MappingProxyType({})) -> int:
    """Bytes that `python -m MODULE --case` prints for one side, in a process whose allocator is as it comes but for
    the settings given."""
    told = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | dict(allocator)
    command = [sys.executable, "-m", module, "--case", json.dumps({"side": side, **asdict(case)})]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=told)
    if done.returncode:
        raise SystemExit(f"{side} {case} failed:\n{done.stdout}{done.stderr}")
    return int(done.stdout.splitlines()[-1])


def most_held(run: Callable[[], object], warm_up: Callable[[], object]) -> int:
    """Bytes held at the most during run, beyond what there was before it and after a small run of the same kind."""
    warm_up()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # or what building the weights has freed would be used for nothing
    reset_peak_memory()
    before = current_memory()
    run()
    peak = peak_memory()
    if before is None or peak is None:
        raise SystemExit("this system does not say how much memory a process holds")
    return peak - before


def beside(on: Pair, case: Case, sides: Sides, repeats: int, module: str, key: str) -> dict[str, Value]:
    """Seconds and memory of both sides by keys that begin with `key`, once they have answered alike. module: what
    `python -m` measures one side's memory with."""
    answers = {name: run(on, case) for name, run in sides.items()}
    if answers["ours"] != answers["theirs"]:
        raise SystemExit(f"the two sides answer differently: {answers}")
    seconds = alternating({name: partial(run, on, case) for name, run in sides.items()}, repeats)
    held = {side: memory_of(module, side, case) for side in sides}
    return {
        f"{key}.speedup": seconds["theirs"] / seconds["ours"],
        f"{key}.seconds": seconds["ours"],
        f"{key}.transformers_seconds": seconds["theirs"],
        f"{key}.memory_ratio": held["ours"] / held["theirs"],
        f"{key}.mib": held["ours"] / 2**20,
        f"{key}.transformers_mib": held["theirs"] / 2**20,
    }


def print_memory(told: str, sides: Sides) -> None:
    """What `memory_of` reads: the bytes that one side, named with its case in JSON, takes here."""
    fields = json.loads(told)
    run, case = sides[fields.pop("side")], Case(**fields)
    on = pair(case)
    tiny, few = replace(on, context_ids=on.context_ids[:, :3], context_mask=on.context_mask[:, :3]), 2
    print(most_held(lambda: run(on, case), lambda: run(tiny, replace(case, target_len=few))))


def asked_for(description: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark of decoding."""
    parser = options(description)
    parser.add_argument("--case", help="measure the memory of one side here and print it")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side that count")
    return parser


def main() -> None:
    asked = asked_for(__doc__).parse_args()
    prepare_machine()
    if asked.case:
        return print_memory(asked.case, SIDES)
    cases = [Case(1, 11, 4, True), Case(4, 11, 4, True)] if asked.quick else [Case(1), Case(4)]
    found: dict[str, Value] = {}
    for case in cases:
        key = f"decode.rag_token_{case.questions}"
        found |= beside(pair(case), case, SIDES, asked.repeats, "benchmarks.decoding.decode", key)
    finish(asked, found)


if __name__ == "__main__":
    main()
