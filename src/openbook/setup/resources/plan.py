"""The plan of one experiment: sizes from the configuration, seconds from a timed sample."""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from openbook.batch import Batch, Retrieved
from openbook.config.checks import has_index
from openbook.config.schema import Config
from openbook.data.corpus import Corpus
from openbook.index.faiss_factory import search_device
from openbook.index.plan import PLANNING_PASSES, Plan, sizes, times
from openbook.index.plan_fit import check_fits
from openbook.refresh.manager import RefreshManager
from openbook.retrieval.dense import DenseRetriever
from openbook.setup.encoders import encoder_dim
from openbook.setup.resources import model_memory
from openbook.setup.resources.model_memory import Kept, ModelMemory
from openbook.setup.resources.space import bytes_of, check_checkpoints, checkpoint_bytes, n_checkpoints
from openbook.training.dpr_module import DprModule
from openbook.training.rag_module import RagModule
from openbook.utils.console import say
from openbook.utils.disk import device_of, size_of
from openbook.utils.host_memory import available_memory, disk_free, gpu_free_memory


def check_early(config: Config, corpus: Corpus) -> None:
    """Refuse an index that cannot fit before any model is loaded or trained. Models of the hub are not checked here."""
    dim = encoder_dim(config) if has_index(config) else None
    if dim:
        plan = Plan(
            corpus.n_passages,
            dim,
            config.index.factory,
            config.refresh.mode,
            search_device(config.index.device, config.index.factory, dim),
            world_size=config.trainer.world_size,
            ranks_per_node=config.trainer.devices,
            trains=config.retriever.train_passage_encoder,
            keep_vectors=config.index.keep_vectors,
        )
        _check(plan, config)


def plan_of(config: Config, manager: RefreshManager, module: RagModule | DprModule) -> Plan:
    """The plan without its measured seconds."""
    retriever = cast(DenseRetriever, module.retriever)
    refresh, schedule, encoder = config.refresh, manager.options.schedule, retriever.passage_encoder
    copies = (2 if refresh.mode == "amortized" else 1) if encoder.trains else 0  # of the passage encoder
    return Plan(
        n_passages=manager.corpus.n_passages,
        dim=encoder.dim,
        factory=config.index.factory,
        mode=refresh.mode,
        device=manager.index.device,
        world_size=config.trainer.world_size,
        ranks_per_node=config.trainer.devices,
        trains=encoder.trains,
        every=None
        if schedule.watches_staleness
        else min((span.every for span in schedule.spans if span.every), default=0),
        refresh_share=refresh.share,
        slice_passages=manager.corpus.tokens_per_pass,
        encoder_bytes=sum(value.numel() for value in encoder.parameters()) * manager.corpus.dtype.itemsize,
        bookkeeping=PLANNING_PASSES,
        models_on="gpu" if next(encoder.parameters()).is_cuda else "cpu",
        gpu_temp_memory=config.index.gpu_temp_memory,
        keep_vectors=config.index.keep_vectors,
        checkpoints=n_checkpoints(config),
        checkpoint_bytes=checkpoint_bytes(module) + copies * bytes_of(encoder.parameters()),
    )


def timed(
    plan: Plan,
    config: Config,
    manager: RefreshManager,
    module: RagModule | DprModule,
    batch: Batch,
    kept: Kept | None = None,
) -> Plan:
    """The plan with seconds measured on a few encoder passes and a few training steps on `batch`, in about the
    time of four steps. Weights, gradients and random states are left unchanged. kept: counts what autograd keeps."""
    retriever, corpus = cast(DenseRetriever, module.retriever), manager.corpus
    batch = batch.to(next(retriever.parameters()).device)
    # Random passages, which cost as much as retrieved ones.
    depth = 0 if isinstance(module, DprModule) else max(module.n_docs, retriever.rerank)
    candidates = torch.from_numpy(
        np.random.default_rng(config.seed).integers(corpus.n_passages, size=(len(batch.examples), depth))
    )

    def steps() -> None:
        """A training step without the search and the optimizer."""
        for _ in range(config.trainer.accumulate):
            autocast = torch.autocast(batch.weight.device.type, corpus.dtype, enabled=corpus.dtype != torch.float32)
            with autocast, kept.counting(module) if kept else nullcontext():
                loss = _loss(module, batch, candidates)
            loss.backward()
        retriever.passages.cache.outdate()

    coder = corpus.coder(retriever.passage_encoder)
    passes = coder.passes(range(plan.n_shard), corpus.tokens_per_pass, config.seed)
    plan = replace(
        plan,
        refresh_seconds=time_encoding(coder, passes, coder.tokens_in(passes), config.seed),
        step_seconds=0.0 if in_parts_on_gpu(config, batch) else time_step(steps),
    )
    module.zero_grad(set_to_none=True)
    retriever.passages.cache.take()
    return plan


def in_parts_on_gpu(config: Config, batch: Batch) -> bool:
    """Whether the generator may be too large for the GPU on which rank 0 plans alone: then no step is measured."""
    return config.generator.sharded and config.trainer.world_size > 1 and batch.weight.is_cuda


def _loss(module: RagModule | DprModule, batch: Batch, candidates: Tensor) -> Tensor:
    """Of one forward pass: of RAG on the first n_docs of candidates [batch, depth], of DPR on what it trains on."""
    if isinstance(module, DprModule):
        nll, _, weight = module.likelihood(batch)
        return torch.where(weight > 0, nll, 0.0).mean()
    retriever = cast(DenseRetriever, module.retriever)
    rows = candidates[:, : module.n_docs]
    queries, of = module.represented(batch)
    if retriever.rerank > 0:
        retriever.passages.encode_once(torch.unique(candidates))
    unknown = torch.zeros(len(of), rows.shape[1], device=batch.weight.device)
    scores = retriever.score(queries, Retrieved(rows[of], unknown))
    read = module.read(batch, rows, scores[: len(rows)], batch.weight)
    return module.loss_of_all(read, scores, of, batch, batch.weight)


def announce_sizes(plan: Plan, config: Config, run: Path | None = None) -> None:
    """Print what is known before anything is measured; OpenBookError where the machine cannot hold it. run: the run
    folder, where there is one."""
    say("\n".join(["estimate:", *_aligned(sizes(plan))]))
    _check(plan, config, run)


def announce(plan: Plan, config: Config, memory: ModelMemory, dtype: torch.dtype) -> None:
    """Print what was measured, and the models' memory; OpenBookError where the card cannot hold them. dtype: that
    products are computed in."""
    say("\n".join(_aligned(times(plan) | model_memory.described(memory, config, dtype))))
    on_gpu = plan.models_on == "gpu"
    model_memory.check_card(memory, config, torch.cuda.get_device_properties().total_memory if on_gpu else None)


def _aligned(described: Mapping[str, str]) -> list[str]:
    """A line per subject; the longest is "training time"."""
    return [f"  {name:<15}{text}" for name, text in described.items()]


def as_json(plan: Plan, memory: ModelMemory) -> dict[str, Any]:
    """For plan.json in the run folder."""
    derived = ("n_shard", "bytes_index", "ram_at_swap", "gpu_at_swap", "disk", "share")
    return asdict(plan) | {name: getattr(plan, name) for name in derived} | {"models": model_memory.as_json(memory)}


def _check(plan: Plan, config: Config, run: Path | None = None) -> None:
    """What is on the disk already and will be replaced (checkpoints of a run that is resumed, kept vectors) counts as
    free."""
    gpu, cache = gpu_free_memory() if plan.gpu_at_swap else None, Path(config.data.cache)
    free, reused = disk_free(cache), size_of(cache / "vectors")
    if run is not None and device_of(run) != device_of(cache):
        check_checkpoints(plan.disk_of_checkpoints, run)
        plan = replace(plan, checkpoints=0)
    elif run is not None:
        reused += size_of(run / "checkpoints")
    check_fits(plan, available_memory(), gpu, None if free is None else free + reused)


def time_encoding(
    coder: Callable[[np.ndarray], object],
    passes: list[np.ndarray],
    tokens: np.ndarray,
    seed: int = 0,
    seconds: float = 1.5,
) -> float:
    """Predicted seconds to encode all rows with coder(rows of one pass). tokens [number of passes].

    After a warm-up, as many passes as fit into `seconds` are timed, at least five. They are evenly spaced over the
    tokens of all passes sorted by the length of their passages, from a seeded start: each represents equally many
    tokens, so that long passages, whose tokens cost more, are weighted correctly. A corpus with no more passes than
    that is timed whole.
    """
    if not passes:
        return 0.0
    order = np.argsort(tokens / [len(rows) for rows in passes], kind="stable")
    n_tokens = tokens[order]

    def timed(number: int) -> float:
        started = time.perf_counter()
        coder(passes[order[number]])
        return time.perf_counter() - started

    middle = int(np.searchsorted(np.cumsum(n_tokens), n_tokens.sum() / 2))
    n_timed = max(5, int(seconds / max(min(timed(middle), timed(middle)), 1e-9)))
    if n_timed >= len(passes):
        return sum(timed(number) for number in range(len(passes)))
    points = (np.arange(n_timed) + np.random.default_rng(seed).random()) / n_timed * n_tokens.sum()
    chosen = np.searchsorted(np.cumsum(n_tokens), points, side="right")
    return float(n_tokens.sum() * np.mean([timed(int(number)) / n_tokens[number] for number in chosen]))


def time_step(step: Callable[[], None], warm: int = 1, timed: int = 2) -> float:
    """Median seconds of step(), after `warm` untimed calls. Torch's random states are restored; whatever else the step
    changes is for the caller to restore."""
    seconds, on_gpu = [], torch.cuda.is_available()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
        for _ in range(warm + timed):
            started = time.perf_counter()
            step()
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[warm:])
