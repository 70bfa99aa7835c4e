"""What n_docs costs: the retriever's gradient from the k passages that are read, beside that of the marginal over a
whole corpus.

    python -m benchmarks.marginal.gradient RUN [--questions 64] [--passages 256] [--draws 400]

RUN: a finished run; its questions' gold passages and random others are the corpus, small enough for the generator to
read all of it for every question. With p(y_t | x, z, y_<t) of all pairs at hand, the gradient with respect to the
question's embedding, sum_z (prior - posterior)(z) d(z), is arithmetic for any choice of passages (Lewis et al. 2020,
section 2.1). It is looked at before training and after it, there also by the order of the index from before.

Of an estimate g of the exact G, over all questions together: cosine(E[g], G); bias |E[g] - G| / |G|, and its median
over the questions, each with its own G; deviation sqrt(E|g - E[g]|^2) / |G|, 0 where nothing is drawn; mass, the share
of the exact posterior on the passages read.
Writes benchmarks/gradient.json, docs/images/n_docs.png and the tables of docs/n-docs.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.system import prepare_machine
from benchmarks.marginal.page import write_page
from openbook.batch import IGNORED_LABEL, Batch
from openbook.models.contexts import answer_hidden
from openbook.objectives.by_name import OBJECTIVES
from openbook.objectives.marginal import token_logprobs_of
from openbook.setup.prepare import prepare
from openbook.tracking.checkpoint import read_checkpoint
from openbook.tracking.run_folder import RunFolder
from openbook.utils.console import progress

KS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
AT_ONCE = 32  # passages of one question that the generator reads in one call


@dataclass(frozen=True)
class Table:
    """All that the marginal over a corpus depends on, float64. n questions, N passages."""

    logprobs: Tensor  # [n, N, target_len]
    mask: Tensor  # [n, target_len]
    scores: Tensor  # [n, N]
    passages: Tensor  # [N, dim], divided by the temperature: d scores / d question embedding
    old: Tensor  # [n, N]: the scores by the encoders as they were before training

    def gradient(self, weights: Tensor) -> Tensor:
        """[n, dim] of weights [n, N], the derivative with respect to each score."""
        return weights @ self.passages


def score_gradient(objective: str, table: Table, kept: Tensor) -> Tensor:
    """d loss / d score [n, N] of the marginal over the passages kept [n, N] alone."""
    scores = table.scores.masked_fill(~kept, -torch.inf).requires_grad_()
    loss = OBJECTIVES[objective](table.logprobs, scores, table.mask).sum()
    (gradient,) = torch.autograd.grad(loss, scores)
    return gradient


def importance_gradient(objective: str, table: Table, k: int, draw: torch.Generator) -> Tensor:
    """[n, N] from k passages drawn from the prior with replacement: prior and posterior as they are among them,
    weighed by p(y|x,z) alone. Unbiased in the prior's part; the posterior's is a ratio of two means."""
    drawn = torch.multinomial(torch.softmax(table.scores, -1), k, replacement=True, generator=draw)
    read = table.logprobs.gather(1, drawn[..., None].expand(-1, -1, table.logprobs.shape[-1]))
    read = read.masked_fill(~table.mask[:, None], 0.0)
    if objective == "rag_sequence":
        weights = torch.softmax(read.sum(-1), 1) - 1 / k
    else:
        weights = ((torch.softmax(read, 1) - 1 / k) * table.mask[:, None]).sum(-1)
    return torch.zeros_like(table.scores).scatter_add_(1, drawn, -weights)


def best(scores: Tensor, k: int) -> Tensor:
    """The k highest of each row, as a mask."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(k, 1).indices, True)


def drawn_without_replacement(scores: Tensor, k: int, draw: torch.Generator) -> Tensor:
    """k of each row by Gumbel noise on the scores (Kool et al. 2019), as a mask."""
    noise = -torch.log(-torch.log(torch.rand(scores.shape, generator=draw, dtype=scores.dtype)))
    return best(scores + noise, k)


def ways(objective: str, table: Table, k: int) -> dict[str, tuple[bool, Callable[[torch.Generator], Tensor]]]:
    """Name -> whether something is drawn, and the estimate of d loss / d score [n, N]."""
    four = best(table.old, min(4 * k, table.old.shape[1]))
    return {
        "top k": (False, lambda _: score_gradient(objective, table, best(table.scores, k))),
        "top k of a stale index": (False, lambda _: score_gradient(objective, table, best(table.old, k))),
        "stale, 4 k re-ranked": (
            False,
            lambda _: score_gradient(objective, table, best(table.scores.masked_fill(~four, -torch.inf), k)),
        ),
        "k drawn": (
            True,
            lambda draw: score_gradient(objective, table, drawn_without_replacement(table.scores, k, draw)),
        ),
        "k drawn, weighed": (True, lambda draw: importance_gradient(objective, table, k, draw)),
    }


def measure(objective: str, table: Table, draws: int) -> list[dict[str, Any]]:
    """A row for every way and k, as the module's text says."""
    n_passages = table.scores.shape[1]
    everything = torch.ones_like(table.scores, dtype=torch.bool)
    of_scores = score_gradient(objective, table, everything)
    exact = table.gradient(of_scores)
    length = table.mask.sum(-1, keepdim=True) if objective == "rag_token" else 1
    posterior = torch.softmax(table.scores, -1) * length - of_scores
    rows = []
    for k in (*[k for k in KS if k < n_passages], n_passages):
        for way, (is_drawn, estimate) in ways(objective, table, k).items():
            draw = torch.Generator().manual_seed(k)
            found = torch.stack([table.gradient(estimate(draw)) for _ in range(draws if is_drawn else 1)])
            mean = found.mean(0)
            row = {
                "objective": objective,
                "way": way,
                "k": k,
                "cosine": float(torch.cosine_similarity(mean.flatten(), exact.flatten(), dim=0)),
                "bias": float((mean - exact).norm() / exact.norm()),
                "median": float(((mean - exact).norm(dim=1) / exact.norm(dim=1)).median()),
                "deviation": float((found - mean).square().sum((1, 2)).mean().sqrt() / exact.norm()),
            }
            if way.startswith("top k"):
                read = best(table.old if "stale" in way else table.scores, k)
                row["mass"] = float((posterior * read).sum() / posterior.sum())
            rows.append(row)
    return rows


@torch.no_grad()
def tables(run: RunFolder, n_questions: int, n_passages: int) -> dict[str, Table]:
    """Of the models before training and after it."""
    prepared = prepare(run.load_config([], training=False))
    module: Any = prepared.module()
    prepared.warm_up(module)
    module.eval()
    corpus, asked = prepared.parts.corpus, prepared.questions.questions["train"]
    order = torch.Generator().manual_seed(0)
    examples = [asked[int(number)] for number in torch.randperm(len(asked), generator=order)[:n_questions]]
    batch = prepared.questions.batch_of(examples)
    found = {corpus.row_of(one) for example in examples for one in example.positive_ids}
    gold = sorted(row for row in found if row is not None)
    others = [row for row in torch.randperm(corpus.n_passages, generator=order).tolist() if row not in set(gold)]
    chosen = torch.tensor([*gold, *others][:n_passages])
    said = f"{len(examples)} questions, {len(chosen)} passages, of which {len(gold)} are gold"
    first = _read(module, batch, chosen, f"before training: {said}")
    module.load_state_dict(read_checkpoint(run.newest)["state_dict"], strict=False)
    last = _read(module, batch, chosen, "after training", first.scores)
    return {"before training": first, "after training": last}


def _read(module: Any, batch: Batch, chosen: Tensor, label: str, old: Tensor | None = None) -> Table:
    """old: the scores of an index that is stale; those of now where it is None."""
    n = len(batch.examples)
    passages = module.retriever.passages.encode(chosen).double() / module.retriever.temperature
    scores = module.retriever.represent(batch).double() @ passages.T
    parts = []
    with progress(label, "passages") as show:
        for first in range(0, len(chosen), AT_ONCE):
            rows = chosen[first : first + AT_ONCE].expand(n, -1)
            hidden = answer_hidden(module.generator, batch, rows, module.contexts)
            labels = batch.labels[:, None].expand(hidden.shape[:3])
            parts.append(token_logprobs_of(module.generator.logits(hidden), labels).double())
            show(first + rows.shape[1], len(chosen))
    mask = batch.labels != IGNORED_LABEL
    return Table(torch.cat(parts, 1), mask, scores, passages, scores if old is None else old)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--passages", type=int, default=256)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gradient.json"))
    given = parser.parse_args()
    prepare_machine()
    found = tables(RunFolder.existing(given.run), given.questions, given.passages)
    rows = [
        {"models": when, **row}
        for when, table in found.items()
        for objective in ("rag_token", "rag_sequence")
        for row in measure(objective, table, given.draws)
        if when == "after training" or "stale" not in row["way"]
    ]
    sizes = {"questions": given.questions, "passages": given.passages, "draws": given.draws}
    given.out.write_text(json.dumps(sizes | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    write_page(json.loads(given.out.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
