"""The plan of one experiment: its numbers from the configuration, its seconds from a timed sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from openbook.batch import Batch, Retrieved
from openbook.config.checks import has_index
from openbook.config.schema import Config
from openbook.data.corpus import Corpus
from openbook.index.faiss_factory import search_device
from openbook.index.plan import PLANNING_PASSES, Plan, lines
from openbook.index.plan_fit import check_fits
from openbook.models.contexts import answer_hidden
from openbook.refresh.manager import RefreshManager
from openbook.retrieval.dense import DenseRetriever
from openbook.setup.preflight import passage_dim
from openbook.setup.timing import time_encoding, time_step
from openbook.training.dpr_module import DprModule
from openbook.training.rag_module import RagModule
from openbook.utils.console import say
from openbook.utils.host_memory import available_memory, disk_free, gpu_free_memory


def check_early(config: Config, corpus: Corpus) -> None:
    """Refuse an index that cannot fit, before a model is loaded or a reader warmed up; hub models are unknown here."""
    dim = passage_dim(config)
    if has_index(config) and dim:
        device = search_device(config.index.device, config.index.factory, dim)
        plan = Plan(
            corpus.n_passages,
            dim,
            config.index.factory,
            config.refresh.mode,
            device,
            **_ranks(config),
            trains=config.retriever.train_passage_encoder,
            keep_vectors=config.index.keep_vectors,
        )
        _check(plan, config)


def plan_of(config: Config, manager: RefreshManager, module: RagModule | DprModule) -> Plan:
    """Everything but the seconds."""
    retriever = cast(DenseRetriever, module.retriever)
    refresh, schedule = config.refresh, manager.options.schedule
    shortest = min((span.every for span in schedule.spans if span.every), default=0)
    encoder = retriever.passage_encoder
    encoder_bytes = sum(value.numel() for value in encoder.parameters()) * manager.corpus.dtype.itemsize
    weights = sum(value.numel() * value.itemsize for value in module.state_dict().values())
    trained = sum(value.numel() * value.itemsize for value in module.parameters() if value.requires_grad)
    kept = sum(value.numel() * value.itemsize for value in encoder.parameters()) if encoder.trains else 0
    return Plan(
        n_passages=manager.corpus.n_passages,
        dim=encoder.dim,
        factory=config.index.factory,
        mode=refresh.mode,
        device=manager.index.device,
        **_ranks(config),
        trains=encoder.trains,
        every=None if schedule.watches_staleness else shortest,
        refresh_share=refresh.share,
        slice_passages=manager.corpus.tokens_per_pass,
        encoder_bytes=encoder_bytes,
        bookkeeping=PLANNING_PASSES,
        models_on="gpu" if next(encoder.parameters()).is_cuda else "cpu",
        gpu_temp_memory=config.index.gpu_temp_memory,
        keep_vectors=config.index.keep_vectors,
        checkpoints=1,
        checkpoint_bytes=weights + 2 * trained + kept * (2 if refresh.mode == "amortized" else 1),
    )


def timed(plan: Plan, config: Config, manager: RefreshManager, module: RagModule | DprModule, batch: Batch) -> Plan:
    """The plan with its seconds, from a few passes of passages and a few steps on `batch`; about as long as four steps.
    Weights, gradients and random states are left as they were."""
    retriever, corpus = cast(DenseRetriever, module.retriever), manager.corpus
    batch = batch.to(next(retriever.parameters()).device)
    forward = _dpr_pass(module, batch) if isinstance(module, DprModule) else _rag_pass(config, retriever, module, batch)

    def steps() -> None:
        """What training does but for the search and the optimizer."""
        for _ in range(config.trainer.accumulate):
            with torch.autocast(batch.weight.device.type, corpus.dtype, enabled=corpus.dtype != torch.float32):
                loss = forward()
            loss.backward()
        retriever.passages.cache.outdate()

    seconds = time_encoding(
        corpus.coder(retriever.passage_encoder),
        corpus.tokens,
        corpus.special,
        corpus.max_length,
        corpus.tokens_per_pass,
        range(plan.n_shard),
        seed=config.seed,
    )
    step_seconds = time_step(steps)
    module.zero_grad(set_to_none=True)
    retriever.passages.cache.take()
    return replace(plan, refresh_seconds=seconds, step_seconds=step_seconds)


def _rag_pass(config: Config, retriever: DenseRetriever, module: RagModule, batch: Batch) -> Callable[[], Tensor]:
    """A loss of one forward pass: any passages cost what retrieved ones do."""
    device, n_docs = batch.weight.device, module.n_docs
    rows = np.random.default_rng(config.seed).integers(
        retriever.passages.tokens.title_lengths.size, size=(len(batch.examples), max(n_docs, retriever.rerank))
    )
    candidates = torch.from_numpy(rows)
    found = Retrieved(candidates[:, :n_docs], torch.zeros(len(rows), n_docs, device=device))

    def forward() -> Tensor:
        question_emb = retriever.question_encoder(batch.question_ids, batch.question_mask)
        if retriever.rerank > 0:
            retriever.passages.encode_once(torch.unique(candidates))
        doc_scores = retriever.score(question_emb, found)
        hidden = answer_hidden(module.generator, batch, found.rows, module.contexts)
        return module.fused_loss(hidden, doc_scores, batch, found.mask, batch.weight).loss

    return forward


def _dpr_pass(module: DprModule, batch: Batch) -> Callable[[], Tensor]:
    """Likewise for the retriever's warm-up, with the passages that it would train on."""

    def forward() -> Tensor:
        nll, _, weight = module.likelihood(batch)
        return torch.where(weight > 0, nll, 0.0).mean()

    return forward


def announce(plan: Plan, config: Config) -> None:
    """Say the plan and raise OpenBookError where it cannot be."""
    say("the plan:")
    for line in lines(plan):
        say(f"  {line}")
    _check(plan, config)


def as_json(plan: Plan) -> dict[str, Any]:
    """For plan.json in the run folder."""
    derived = ("n_shard", "bytes_index", "ram_at_swap", "gpu_at_swap", "disk", "share")
    return asdict(plan) | {name: getattr(plan, name) for name in derived}


def _ranks(config: Config) -> dict[str, Any]:
    return {"world_size": config.trainer.world_size, "ranks_per_node": config.trainer.devices}


def _check(plan: Plan, config: Config) -> None:
    gpu = gpu_free_memory() if plan.gpu_at_swap else None
    check_fits(plan, available_memory(), gpu, disk_free(config.data.cache))
