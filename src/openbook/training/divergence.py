"""Training that has diverged: which batch did it, with its ids, scores and norms, and a checkpoint that it must not
reach.

A forward pass that gives no number has a likelihood that says so at once. A gradient that is no number shows a step
later, once the weights have been moved by it: the batch to blame is then the one before. Therefore the last two
optimizer steps are remembered, by tensors that are there anyway; nothing is copied, and no GPU waited for.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from openbook.batch import Batch
from openbook.errors import OpenBookError
from openbook.training.ranks.sharding import local

NAME = "diverged.json"


class DivergedError(OpenBookError):
    """The likelihood, or a weight, is no number any more."""

    def __init__(self, what: str, step: int):
        super().__init__(
            what,
            where=f"step {step}",
            action="Training has diverged: lower optim.lr_*, raise optim.warmup_steps, or resume from an earlier "
            f"checkpoint. {NAME} in the run folder has the batch: ids, scores and norms.",
        )


class _Pass(NamedTuple):
    """What one forward pass of step (from 1) has read and found."""

    step: int
    ids: Sequence[str]
    rows: Tensor | None
    values: dict[str, Tensor]


class Trail:
    """The forward passes and gradient norms of the last two optimizer steps. Steps are counted from 1."""

    def __init__(self) -> None:
        self._passes: list[_Pass] = []
        self._norms: dict[int, Tensor] = {}

    def read(self, step: int, batch: Batch, rows: Tensor | None = None, **values: Tensor) -> None:
        """rows [batch, n_docs] of the passages; values: per question, [batch] or [batch, n_docs]."""
        self._passes = [one for one in self._passes if one.step >= step - 1]
        ids = [example.id for example in batch.examples]
        self._passes.append(_Pass(step, ids, rows, {name: value.detach() for name, value in values.items()}))

    def clipped(self, step: int, norm: Tensor) -> None:
        """norm: of all gradients together, before they were clipped."""
        self._norms = {one: value for one, value in self._norms.items() if one >= step - 1} | {step: norm.detach()}

    def is_hit(self, step: int | None = None) -> bool:
        """Whether one of this rank's own passes (of a step) has found what is no number."""
        passes = [one for one in self._passes if step in (None, one.step)]
        return any(value.isnan().any() for one in passes for value in one.values.values())

    def report(
        self, parts: Iterable[tuple[str, nn.Module, float]], passage_ids: Callable[[list[int]], list[str]]
    ) -> dict[str, Any]:
        """For diverged.json. parts: (name, module, peak learning rate). passage_ids: of rows."""
        weights = {name: _facts(module) | {"peak_learning_rate": rate} for name, module, rate in parts}
        last = max((one.step for one in self._passes), default=0)
        broken = any(facts["not_finite"] for facts in weights.values())
        norms = {step: float(norm) for step, norm in self._norms.items()}
        if wrong := [step for step, norm in norms.items() if not math.isfinite(norm)]:
            cause, why = min(wrong), "its gradient"
        elif not broken:
            cause, why = last, "its forward pass"
        else:  # a step that gives no number with broken weights was not the one that broke them
            cause, why = last - self.is_hit(last), "its update of the weights"
        return {
            "caused_by_step": cause,
            "caused_by": why,
            "steps": [
                {
                    "step": step,
                    "gradient_norm": plain(norms.get(step)),
                    "questions": [
                        question
                        for one in self._passes
                        if one.step == step
                        for question in _questions(one, passage_ids)
                    ],
                }
                for step in sorted({one.step for one in self._passes})
            ],
            "weights": weights,
        }


def is_finite(module: nn.Module) -> bool:
    """Whether every weight that trains on this rank is a number; a GPU is waited for once."""
    trained = [
        local(value).detach() for value in module.parameters() if value.requires_grad and value.is_floating_point()
    ]
    return not trained or bool(torch.nn.utils.get_total_norm(trained).isfinite())


def plain(value: Any) -> Any:
    """As JSON has it: a number that JSON does not know as text."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _questions(one: _Pass, passage_ids: Callable[[list[int]], list[str]]) -> list[dict[str, Any]]:
    values = {name: plain(value) for name, value in one.values.items()}
    rows = None if one.rows is None else one.rows.tolist()
    return [
        {"id": id_, **({} if rows is None else {"passages": _named(rows[number], passage_ids)})}
        | {name: value[number] for name, value in values.items()}
        for number, id_ in enumerate(one.ids)
    ]


def _named(rows: list[int], passage_ids: Callable[[list[int]], list[str]]) -> list[str | None]:
    """The passages' ids; None where a row holds none."""
    there = iter(passage_ids([row for row in rows if row >= 0]))
    return [next(there) if row >= 0 else None for row in rows]


def _facts(module: nn.Module) -> dict[str, Any]:
    """Norm and largest weight of a part, and which of its weights are no numbers; of layers in parts, this rank's."""
    named = [(name, local(value).detach().float().cpu()) for name, value in module.named_parameters()]
    wrong = [name for name, value in named if not value.isfinite().all()]
    largest = max((float(value.abs().max()) for _, value in named if value.numel()), default=0.0)
    norm = math.sqrt(sum(float(value.double().square().sum()) for _, value in named))
    return {"norm": plain(norm), "largest": plain(largest), "not_finite": len(wrong), "first_not_finite": wrong[:5]}
