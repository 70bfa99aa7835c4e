"""A training step next to transformers' RagTokenForGeneration and RagSequenceForGeneration: time, memory, parts.

    python -m benchmarks.training.step [--out FILE] [--quick] [--repeats N]

Same random weights of BART-base's shape, same batches of 4 questions with 5 passages of 100 words and targets of 32
tokens, retrieval given, no dropout; forward, backward and AdamW. openbook's side is RagModule.training_step itself.

    as_used          openbook: autocast, matmul backend and attention as it chooses them, contexts padded to the
                     batch; transformers: fp32 and torch's own settings, contexts padded to 300 as RagRetriever does
    same_precision   both fp32 on the backend that openbook chooses
    same_padding     and both with contexts padded to 300

First the losses and gradients of both sides must agree, in fp32. Memory is the most that a step took in a process of
its own beyond weights, optimizer state and gradients; freed memory goes back to the system at once, on either side.
`step.small.*` is a model of a fifteenth of the weights, without memory.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.figures import Value, finish, median, options
from benchmarks.common.peer import PADDED, PEERS, Asked, Case, Sides, Text, Way, ways
from benchmarks.common.system import now, prepare_machine
from benchmarks.decoding.decode import AT_ONCE, memory_of, most_held
from openbook.models.attention import implementation
from openbook.models.passes.activation_checkpointing import checkpoint_layers
from openbook.utils.hardware import autocast_dtype

VARIANTS = {
    "as_used": ("ours", "theirs"),
    "same_precision": ("ours_same_precision", "theirs_same_precision"),
    "same_padding": ("ours_same_padding", "theirs_same_precision"),
}
PASSAGES, TOLERANCE, MODULE = 400, 1e-4, "benchmarks.training.step"
PARTS = ("contexts", "encoder", "decoder", "head_and_loss", "optimizer")


def check(on: Sides, asked: Asked) -> None:
    """Losses and gradients of both sides in fp32, contexts padded to the batch against contexts padded to 300.

    A gradient may be off by TOLERANCE of its own largest value, or of a thousandth of the largest of all: that of a
    key's bias is 0 but for rounding. That of doc_scores, a difference of two probabilities, counts in shares of 1 per
    question: log p(y|x) of a long target is rounded to some 1e-5. Raises SystemExit.
    """
    found: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    for side, padded in (("ours", 0), ("theirs", PADDED)):
        way = Way("highest", None, implementation() if side == "ours" else "eager", padded)
        on.use(way)
        loss = on.gradients(side, way, asked)
        named = {"doc_scores": asked.doc_scores, **dict(on.model.named_parameters())}
        found[side] = loss.detach(), {name: value.grad for name, value in named.items() if value.grad is not None}
        for value in named.values():
            value.grad = None
    (loss, ours), (their_loss, theirs) = found["ours"], found["theirs"]
    wrong = [f"loss {float(loss)} and {float(their_loss)}"] * bool((loss - their_loss).abs() > TOLERANCE * their_loss)
    if ours.keys() != theirs.keys():
        wrong.append(f"gradients of {sorted(ours.keys() ^ theirs.keys())} on one side only")
    small = 1e-3 * max(float(value.abs().max()) for value in theirs.values())
    for name in ours.keys() & theirs.keys():
        least = 1 / on.case.questions if name == "doc_scores" else small
        error, scale = float((ours[name] - theirs[name]).abs().max()), max(float(theirs[name].abs().max()), least)
        if not error <= TOLERANCE * scale:
            wrong.append(f"gradient of {name}: off by {error:.3g} of {scale:.3g}")
    if wrong:
        raise SystemExit(f"{on.case.objective}: the two sides differ: {'; '.join(wrong)}")


def times(on: Sides, batches: list[Asked], contenders: dict[str, tuple[str, Way]]) -> dict[str, list[float]]:
    """Seconds of a step, by contender; all take turns over the batches, the first of which is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn, asked in enumerate(batches):
        for name in list(contenders)[:: 1 if turn % 2 else -1]:
            side, way = contenders[name]
            on.use(way)
            started = now()
            on.step(side, way, asked)
            if turn:
                seconds[name].append(now() - started)
    return seconds


@contextmanager
def parts_of(on: Sides) -> Any:
    """Inside, the seconds of every part of a step add up in the dict given, forward and backward together.

    Each part begins where a hook says so and lasts until the next begins: in the backward pass the decoder's when its
    last states get their gradient, the encoder's when its own do.
    """
    seconds: dict[str, float] = defaultdict(float)
    current = ["", 0.0]

    def begin(part: str) -> None:
        moment = now()
        seconds[str(current[0])] += moment - float(current[1])
        current[:] = [part, moment]

    def states(part: str) -> Callable[..., None]:
        def made(module: nn.Module, inputs: Any, output: Any) -> None:
            output.last_hidden_state.register_hook(lambda _: begin(part))
            begin("head_and_loss" if part == "decoder" else "decoder")

        return made

    hooks: list[Any] = []
    for part, module in {"encoder": on.model.get_encoder(), "decoder": on.model.get_decoder()}.items():
        hooks += [
            module.register_forward_pre_hook(lambda *_, part=part: begin(part)),
            module.register_forward_hook(states(part)),
        ]
    for optimizer in on.optimizers.values():
        hooks.append(optimizer.register_step_pre_hook(lambda *_: begin("optimizer")))
        hooks.append(optimizer.register_step_post_hook(lambda *_: begin("")))
    begin("contexts")
    seconds.clear()
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def parts(on: Sides, batches: list[Asked], side: str, way: Way) -> dict[str, float]:
    """Median seconds of each part of a step."""
    found = []
    on.use(way)
    for asked in batches:
        with parts_of(on) as seconds:
            on.step(side, way, asked)
        found.append(dict(seconds))
    return {part: median([seconds.get(part, 0.0) for seconds in found]) for part in PARTS}


def memory(side: str, case: Case, chosen: str) -> int:
    """Bytes that one step takes at its peak beyond weights, optimizer state and gradients. Called once in a process."""
    _, way = ways(chosen, autocast())[side]
    text = Text.read(PASSAGES)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on = Sides(case, text, device)
    if case.checkpointing:
        checkpoint_layers(on.model)
    on.use(way)
    asked, least = text.ask(case, 0, device), text.ask(replace(case, questions=1, target_len=3), 1, device)

    def warm_up() -> None:
        """The optimizer's state is there after it, and no gradient."""
        on.step(side, way, least)

    def run() -> None:
        on.step(side, way, asked)

    gradients = sum(value.numel() * value.element_size() for value in on.model.parameters())
    if device.type != "cuda":
        return most_held(run, warm_up) - gradients
    warm_up()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before - gradients


def memories(case: Case, chosen: str) -> dict[str, Value]:
    """Each figure from a process for either side, of a small model from this one. transformers never checkpoints."""
    key = f"step.{case.objective}"
    long = replace(case, target_len=4 * case.target_len)
    cases = {"": (case, case), "_checkpointed": (replace(case, checkpointing=True), case), "_128": (long, long)}
    held: dict[tuple[str, Case], int] = {}
    found: dict[str, Value] = {}
    for suffix, pair in cases.items():
        for side, one in zip(("ours", "theirs"), pair, strict=True):
            if (side, one) not in held:
                held[side, one] = max(
                    1, memory(side, one, chosen) if case.model == "tiny" else memory_of(MODULE, side, one, AT_ONCE)
                )
        ours, theirs = (held[side, one] for side, one in zip(("ours", "theirs"), pair, strict=True))
        found |= {f"{key}.memory_ratio{suffix}": ours / theirs, f"{key}.mib{suffix}": ours / 2**20}
        if suffix != "_checkpointed":
            found[f"{key}.transformers_mib{suffix}"] = theirs / 2**20
    return found


def figures(case: Case, repeats: int, chosen: str) -> dict[str, Value]:
    """All of one objective and model."""
    text, device = Text.read(PASSAGES), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on, contenders = Sides(case, text, device), ways(chosen, autocast())
    batches = [text.ask(case, seed, device) for seed in range(repeats + 1)]
    check(on, batches[0])
    seconds = times(on, batches, contenders)
    key = f"step.{'small.' if case.model == 'small' else ''}{case.objective}"
    found: dict[str, Value] = {}
    for variant, (mine, other) in VARIANTS.items():
        ratios = [theirs / ours for ours, theirs in zip(seconds[mine], seconds[other], strict=True)]
        found |= {
            f"{key}.speedup_{variant}": median(ratios),
            f"{key}.speedup_{variant}.least": min(ratios),
            f"{key}.speedup_{variant}.most": max(ratios),
            f"{key}.seconds_{variant}": median(seconds[mine]),
            f"{key}.transformers_seconds_{variant}": median(seconds[other]),
        }
    for name, words in {"ours": "part", "theirs": "transformers_part"}.items():
        for part, took in parts(on, batches[-2:], *contenders[name]).items():
            found[f"{key}.{words}.{part}"] = took
    tokens = torch.cat([asked.context_mask.sum(-1) for asked in batches]).double()
    longest = [asked.longest for asked in batches]
    found |= {"step.tokens_per_context": float(tokens.mean()), "step.longest_context": sum(longest) / len(longest)}
    del on, batches
    return found if case.model == "small" else found | memories(case, chosen)


def autocast() -> torch.dtype | None:
    return autocast_dtype("auto", "gpu" if torch.cuda.is_available() else "cpu")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--case", help="measure the memory of one side here and print it")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender that count")
    asked = parser.parse_args()
    prepare_machine()
    warnings.filterwarnings("ignore", message=".*self.log.*")
    chosen = torch.get_float32_matmul_precision()
    if asked.case:
        told = json.loads(asked.case)
        print(memory(told.pop("side"), Case(**told), chosen))
        return
    cases, repeats = [Case(), Case(model="small")], asked.repeats
    if asked.quick:
        cases, repeats = [Case(questions=2, n_docs=3, target_len=5, model="tiny")], 2
    found: dict[str, Value] = {
        "step.dtype": str(autocast() or torch.float32).removeprefix("torch."),
        "step.matmul_precision": chosen,
        "step.repeats": repeats,
    }
    for case in cases:
        for objective in PEERS:
            found |= figures(replace(case, objective=objective), repeats, chosen)
    finish(asked, found)


if __name__ == "__main__":
    main()
