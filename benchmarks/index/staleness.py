"""Recall over the steps since the last refresh: stale, re-ranked, rolling, hot and fresh, side by side.

One training run of `rag_token` whose index is built once. Beside it, every other way to keep an index is kept up from
the same weights at every step: each searches its own index for the questions of the step and writes back what it would
have read. At every look all of them answer the same questions under the same question encoder, so they differ in the
index alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor

from benchmarks.common.figures import record
from openbook.batch import Retrieved
from openbook.config.load import load_experiment
from openbook.config.schema import Config
from openbook.data.encoder_inputs import question_inputs
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.refresh.manager import HOT_DEPTH
from openbook.refresh.rolling import RollingRefresh
from openbook.retrieval.corpus_encoder import CorpusOptions, encode_passes
from openbook.setup.inputs import data as setup_data
from openbook.setup.prepare import prepare
from openbook.setup.trainer import make_trainer, quiet
from openbook.training.rag_module import RagModule

RERANK = (8, 20, 50)
N_FUTURE = 3000
"""Training questions that the run has not come to."""


class Kept:
    """An index beside training that is kept up at `share` of a full refresh's encodings per `steps` steps."""

    def __init__(
        self,
        name: str,
        mode: Literal["rolling", "hot"],
        share: float,
        corpus: CorpusOptions,
        first: Tensor,
        module: RagModule,
    ):
        self.name, self.share, self.corpus = name, share, corpus
        index = ShardIndex(first.shape[1], len(first), IndexOptions())
        index.write(np.arange(len(first)), first.numpy())
        self.snapshot = Snapshot(index.finish(), 0, "", corpus.fingerprint, corpus.n_passages)
        assert module.retriever is not None
        self.rolling = RollingRefresh(corpus, self.snapshot, corpus.coder(module.retriever.passage_encoder), mode)
        self.waiting = torch.empty(0, dtype=torch.int64), torch.empty(0, first.shape[1])  # what the step has encoded


class Beside(L.Callback):
    """Keeps the indexes up after every step and compares them every `every` steps."""

    def __init__(
        self,
        corpus: CorpusOptions,
        kept: list[tuple[str, Any, float]],
        steps: int,
        every: int,
        questions: dict[str, tuple[Tensor, Tensor, list[set[int]]]],
        n_docs: int,
    ):
        self.corpus, self.wanted, self.steps, self.every = corpus, kept, steps, every
        self.questions, self.n_docs = questions, n_docs
        self.kept: list[Kept] = []
        self.curves: list[dict[str, Any]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module: Any = pl_module
        self.first = self._encoded(module)
        self.kept = [Kept(*wanted, self.corpus, self.first, module) for wanted in self.wanted]
        search = module.retriever.search

        def watched(question_emb: Tensor, top_k: int) -> Retrieved:
            for kept in self.kept if module.training else ():
                found = kept.snapshot.search(question_emb, HOT_DEPTH)
                kept.rolling.note(found.rows.flatten())
                rows = torch.unique(found.rows[:, : self.n_docs])
                kept.waiting = rows, module.retriever.passages.encode_once(rows)
            return search(question_emb, top_k)

        module.retriever.search = watched
        self._look(module, 0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        step = trainer.global_step
        for kept in self.kept:
            kept.rolling.write_back(*kept.waiting, step)
            kept.rolling.advance(
                module.retriever.passage_encoder, kept.share * self.corpus.n_passages / self.steps, step
            )
            kept.snapshot = kept.rolling.snapshot(kept.snapshot)
        if step % self.every == 0:
            self._look(module, step)

    def _encoded(self, module: RagModule) -> Tensor:
        assert module.retriever is not None
        coder = self.corpus.coder(module.retriever.passage_encoder)
        embeddings = torch.empty(self.corpus.n_passages, module.retriever.passage_encoder.dim)
        for rows, part in encode_passes(
            coder, coder.passes(range(self.corpus.n_passages), self.corpus.tokens_per_pass)
        ):
            embeddings[torch.from_numpy(rows)] = part
        return embeddings

    @torch.inference_mode()
    def _look(self, module: RagModule, step: int) -> None:
        """Recall@1 and @5 of everything, on every set of questions."""
        assert module.retriever is not None
        encoder = module.retriever.question_encoder
        encoder.eval()
        fresh = self._encoded(module) if step else self.first
        for name, (ids, mask, positives) in self.questions.items():
            with torch.autocast("cpu", self.corpus.dtype, enabled=self.corpus.dtype != torch.float32):
                asked = torch.cat([encoder(i, m) for i, m in zip(ids.split(64), mask.split(64), strict=True)]).float()
            n = self.corpus.n_passages
            rows: dict[str, tuple[Tensor, float]] = {}
            stale = (asked @ self.first.T).topk(max(RERANK)).indices
            rows["stale"] = stale[:, :5], 0.0
            rows["fresh"] = (asked @ fresh.T).topk(5).indices, 1.0
            rows["stale, in order"] = _reranked(asked, stale[:, : self.n_docs], fresh), 0.0
            for depth in RERANK:
                rows[f"rerank {depth}"] = _reranked(asked, stale[:, :depth], fresh), 0.0
            for kept in self.kept:
                found, cost = kept.snapshot.search(asked, 5).rows, kept.rolling.encoded / n
                rows[kept.name] = found, cost
                rows[f"{kept.name}, in order"] = _reranked(asked, found[:, : self.n_docs], fresh), cost
                plain = replace(kept.snapshot, calibrate=None).search(asked, 5).rows
                rows[f"{kept.name}, ages not compared"] = plain, cost
                rows[f"{kept.name}, ages not compared, in order"] = (
                    _reranked(asked, plain[:, : self.n_docs], fresh),
                    cost,
                )
            for kind, (found, cost) in rows.items():
                hits = [
                    [row in positive for row in five] for five, positive in zip(found.tolist(), positives, strict=True)
                ]
                point = {
                    "step": step,
                    "questions": name,
                    "kind": kind,
                    "encoded": round(cost, 4),
                    "recall_at_1": float(np.mean([hit[0] for hit in hits])),
                    "recall_at_5": float(np.mean([any(hit) for hit in hits])),
                }
                self.curves.append(point)
                print(point, flush=True)
        for kept in self.kept:
            age = kept.rolling.mean_age(step)
            print(
                f"{kept.name}: mean age {age:.1f}, never renewed {(kept.rolling.made_at == 0).mean():.2f}", flush=True
            )
        encoder.train()


def _reranked(asked: Tensor, candidates: Tensor, fresh: Tensor) -> Tensor:
    scores = torch.einsum("bd,bkd->bk", asked, fresh[candidates])
    return candidates.gather(1, scores.topk(min(5, scores.shape[1])).indices)


def questions_of(
    config: Config, ready: setup_data.Parts, consumed: int
) -> dict[str, tuple[Tensor, Tensor, list[set[int]]]]:
    """Question ids, mask and the rows of their gold passages: training questions the run does not come to, and the
    test questions."""
    data = setup_data.data(config, ready)
    data.setup()
    tokenizer = ready.question_tokenizer
    assert ready.files.test is not None
    test, train = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (ready.files.test, ready.files.train)
    )
    trained_on = {example.id for batch in _first(data.train_dataloader(), consumed) for example in batch.examples}
    order = np.random.default_rng(0).permutation(len(train))
    future = [train[place] for place in order if train[place]["id"] not in trained_on][:N_FUTURE]
    sets = {"training questions to come": future, "test questions": test}
    found = {}
    for name, questions in sets.items():
        encoded = tokenizer([question["question"] for question in questions], add_special_tokens=False)["input_ids"]
        ids, mask = question_inputs(encoded, ready.question_format, config.data.max_question_tokens + 3)
        positives = [{ready.corpus.row_of(identity) for identity in question["positive_ids"]} for question in questions]
        found[name] = ids, mask, positives
    return found  # type: ignore[return-value]


def _first(loader: Any, n: int) -> list[Any]:
    batches = []
    for batch in loader:
        batches.append(batch)
        if len(batches) == n:
            break
    return batches


def figures(curves: list[dict[str, Any]], step: int) -> dict[str, float]:
    """Of the last look. recall_lost: recall@1 of fresh less stale; what others recover is a share of it. The passages
    that are read have fresh scores in any case: what is kept is counted after they are put in order by them, and
    `.index_order` is what the index alone would give."""
    named = {}
    for suffix, questions in (("", "training questions to come"), (".test", "test questions")):
        found = {
            point["kind"]: point["recall_at_1"]
            for point in curves
            if point["step"] == step and point["questions"] == questions
        }
        lost = found["fresh"] - found["stale"]
        kept = {kind: (recall - found["stale"]) / lost if lost else 1.0 for kind, recall in found.items()}
        named |= {
            f"stale.recall_at_1{suffix}": found["stale"],
            f"fresh.recall_at_1{suffix}": found["fresh"],
            f"stale.recall_lost{suffix}": lost,
            f"stale.recovered_by_order{suffix}": kept["stale, in order"],
            f"stale.recovered_by_rerank{suffix}": kept["rerank 20"],
        }
        for mode, shares in (("hot", (5, 10, 25)), ("rolling", (10, 100))):
            for share in shares:
                key = f"{mode}.recall_kept_at_{share}_percent"
                named[f"{key}{suffix}"] = kept[f"{mode} {share} %, in order"]
                named[f"{key}.index_order{suffix}"] = kept[f"{mode} {share} %"]
    return named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/index.json"))
    parser.add_argument("--points", type=Path, default=Path("benchmarks/staleness.jsonl"))
    parser.add_argument("--quick", action="store_true", help="two steps of `tiny`, to see that it runs; writes nothing")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    if given.quick:
        folder = Path(tempfile.mkdtemp())
        given.steps, given.every, given.out, given.points = 2, 1, folder / "index.json", folder / "points.jsonl"
    quiet()
    config = load_experiment(
        "tiny" if given.quick else "rag_token",
        [
            "refresh.every=0",
            "data.validation=",
            f"trainer.max_steps={given.steps}",
            "wandb.mode=disabled",
            *given.overrides,
        ],
    )
    prepared = prepare(config)
    questions = questions_of(config, prepared.parts, given.steps)
    module, refresh = prepared.module(), prepared.refresh(probes=False)
    prepared.warm_up(module)
    kept = [
        ("write-back", "rolling", 0.0),
        ("rolling 10 %", "rolling", 0.1),
        ("rolling 100 %", "rolling", 1.0),
        ("hot 5 %", "hot", 0.05),
        ("hot 10 %", "hot", 0.1),
        ("hot 25 %", "hot", 0.25),
    ]
    beside = Beside(refresh.manager.corpus, kept, given.steps, given.every, questions, config.retriever.n_docs)
    trainer = make_trainer(config, [refresh, beside], [])
    trainer.fit(module, prepared.questions)
    given.points.write_text("".join(json.dumps(point) + "\n" for point in beside.curves), encoding="utf-8")
    record(given.out, figures(beside.curves, given.steps))


if __name__ == "__main__":
    main()
