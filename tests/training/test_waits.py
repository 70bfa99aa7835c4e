"""A training step waits for a GPU twice, for what it searches by and for its loss: on a GPU, and by a GPU's rules."""

from __future__ import annotations

import math
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import BartConfig, BartForConditionalGeneration

from openbook.batch import IGNORED_LABEL, MISSING_ROW, Batch, Example
from openbook.callbacks import CollapseWatch
from openbook.config.training import OptimConfig
from openbook.data.corpus_build import build_corpus
from openbook.data.encoder_inputs import encoder_format
from openbook.data.inputs import special_ids
from openbook.index.shard_index import ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.models.attention import UNSEEN
from openbook.models.contexts import ContextBuilder
from openbook.models.encoders import load_encoder, load_tokenizer
from openbook.models.passes import packed
from openbook.models.seq2seq import load_generator
from openbook.objectives.fused import fused_marginal_nll
from openbook.objectives.marginal import rag_token_nll
from openbook.retrieval.bm25 import BM25Index, BM25Retriever, passage_texts
from openbook.retrieval.closed_book import ClosedBookRetriever
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.passage_embedder import PassageEmbedder
from openbook.training.rag_module import RagModule

BATCH, N_DOCS = 3, 5
WAITS = {
    "item",
    "tolist",
    "numpy",
    "cpu",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__array__",
    "nonzero",
    "argwhere",
    "unique",
    "masked_select",
    "equal",
    "allclose",
    "is_nonzero",
}
"""What makes the host wait where a tensor is on a GPU."""


class Gpu(TorchFunctionMode):
    """A GPU's rules on a CPU: it knows which tensors would be on the GPU (the storages given, what is made of them,
    what is made with `device=` and what `to_device` has moved), lists the calls that would wait for one of them, and
    refuses those that mix them with the host's."""

    def __init__(self, *tensors: Tensor):
        super().__init__()
        self.waits: list[str] = []
        self._kept: dict[int, Tensor] = {}  # alive, so that no other tensor gets their memory
        self.take(tensors)

    def take(self, tensors: Any) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr():
                self._kept[tensor.untyped_storage().data_ptr()] = tensor.detach()

    def has(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._kept

    def to_device(self, tensor: Tensor, device: torch.device) -> Tensor:
        with torch._C.DisableTorchFunction():
            copy = tensor.clone()
            self.take(copy)
        return copy

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        on_gpu = [tensor for tensor in given if self.has(tensor)]
        on_host = [tensor for tensor in given if not self.has(tensor) and tensor.dim() and tensor.numel()]
        assert not (on_gpu and on_host), f"{name} mixes tensors of the GPU and of the host"
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        by_mask = any(isinstance(part, Tensor) and part.dtype == torch.bool for part in tree_leaves(index))
        if (on_gpu and (name in WAITS or by_mask)) or (name == "tensor" and kwargs.get("device") is not None):
            self.waits.append(name)
        found = func(*args, **kwargs)
        if name == "cpu":
            return found.clone()
        if on_gpu or (not given and kwargs.get("device") is not None):
            self.take(found)
        return found


def system(
    kind: str, encoder_folder: Path, generator_folder: Path, small_data: Path, cache: Path, objective: str = "rag_token"
) -> tuple[RagModule, Batch]:
    tokenizer = load_tokenizer(str(encoder_folder))
    corpus = build_corpus(small_data / "passages.jsonl", {"encoder": tokenizer, "generator": tokenizer}, cache)
    retriever: Any = ClosedBookRetriever()
    if kind == "bm25":
        retriever = BM25Retriever(BM25Index(passage_texts(corpus)), corpus.n_passages)
    elif kind != "closed book":
        encoders = [load_encoder(str(encoder_folder), pooling, False, 0.0) for pooling in ("mean", "cls")]
        passages = PassageEmbedder(encoders[1], corpus.tokens("encoder"), encoder_format(tokenizer), 31)
        retriever = DenseRetriever(encoders[0], passages, temperature=20.0, train_passage_encoder=kind != "frozen")
        n_indexed = 4 if kind == "few passages" else corpus.n_passages
        vectors = retriever.passages.encode_once(torch.arange(n_indexed)).numpy()
        retriever.passages.cache.outdate()
        index = ShardIndex(24, n_indexed)
        index.write(np.arange(n_indexed), vectors)
        retriever.snapshot = Snapshot(index.finish(), 0, "", "", n_indexed)
    contexts = ContextBuilder(corpus.tokens("generator"), special_ids(tokenizer), 37)
    module = RagModule(
        retriever,
        load_generator(str(generator_folder), 0.0, 0),
        contexts,
        cast(Any, None),
        objective=objective,
        n_docs=1 if kind == "closed book" else N_DOCS,
        optim=OptimConfig(),
        max_steps=10,
    )
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 9, 10, 3, 0], [2, 11, 12, 13, 3]])
    labels = torch.tensor([[20, 21, 22, 3], [23, 3, IGNORED_LABEL, IGNORED_LABEL], [24, 25, 3, IGNORED_LABEL]])
    questions = ("what is the capital of alpha ?", "which river flows through beta", "? ?")
    batch = Batch(
        ids,
        ids != 0,
        tuple(tuple(range(6 + b, 10 + 2 * b)) for b in range(BATCH)),
        labels,
        torch.ones(BATCH),
        tuple(Example(text, text, ("",)) for text in questions),
    )
    return module, batch


KINDS = ("dense", "frozen", "few passages", "bm25", "closed book")


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_waits_for_the_search_and_for_the_loss(
    kind: str,
    packs: bool,
    encoder_folder: Path,
    generator_folder: Path,
    small_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective = "closed_book" if kind == "closed book" else "emdr2" if kind == "frozen" else "rag_token"
    folders = (encoder_folder, generator_folder, small_data, tmp_path)
    plain, _ = system(kind, *folders, objective)
    monkeypatch.setattr("openbook.models.attention.implementation", lambda: UNSEEN)
    monkeypatch.setattr(packed, "PACKS", {"cpu"} if packs else set())
    module, batch = system(kind, *folders, objective)
    assert module.generator.packs == packs
    expected, logged = {}, {}
    monkeypatch.setattr(plain, "log", lambda name, value, **_: expected.__setitem__(name, value))
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.__setitem__(name, value))
    plain.training_step(batch, 0)

    gpu = Gpu(
        *module.parameters(), *module.buffers(), batch.question_ids, batch.question_mask, batch.labels, batch.weight
    )
    for name, imported in list(sys.modules.items()):
        if name.startswith("openbook.") and name != "openbook.batch" and hasattr(imported, "to_device"):
            monkeypatch.setattr(imported, "to_device", gpu.to_device)
    with gpu:
        outputs = module.training_step(batch, 0)
        waits, gpu.waits = gpu.waits, []
        outputs["loss"].backward()
        assert gpu.waits == []
    assert waits == (["cpu", "tolist"] if isinstance(module.retriever, DenseRetriever) else ["tolist"])
    assert logged == pytest.approx(expected, rel=1e-5) and len(logged) == 2 + (objective == "emdr2")
    assert not gpu.has(outputs["rows"])
    if kind != "closed book":
        missing = outputs["rows"] == MISSING_ROW
        assert missing.any() == (kind in ("few passages", "bm25"))
        assert ((outputs["doc_scores"] == -torch.inf) == missing).all()

    watch, watched = CollapseWatch(37), dict[str, float]()
    monkeypatch.setattr(module, "log", lambda name, value, **_: watched.__setitem__(name, value))
    with gpu:
        watch.on_train_batch_end(cast(Any, None), module, outputs, batch, 0)
    if kind != "closed book":
        assert watch.recent[0] == outputs["rows"][outputs["rows"] >= 0].tolist() and len(watched) == 3


def test_the_rules_find_waits_and_mixtures() -> None:
    there, here = torch.arange(7.0), torch.arange(7)
    gpu = Gpu(there)
    with gpu:
        doubled = 2 * there
        doubled.tolist()
        assert doubled.sum() > 0
        _ = doubled[doubled > 3], doubled[2:], doubled.nonzero(), torch.zeros(3, device="cpu").tolist()
        here.tolist()
        with pytest.raises(AssertionError, match="mixes"):
            _ = there[here]
    assert gpu.waits == ["tolist", "__bool__", "__getitem__", "nonzero", "tolist"]


def test_what_counts_may_come_from_the_host() -> None:
    """Bit for bit the same loss and gradients, whoever says which targets count."""
    draw = torch.Generator().manual_seed(3)
    hidden, head = (torch.randn(shape, generator=draw) for shape in ((BATCH, N_DOCS, 4, 11), (53, 11)))
    scores = torch.randn(BATCH, N_DOCS, generator=draw)
    scores[1, 2:] = scores[2] = -torch.inf
    labels = torch.tensor([[20, 21, 22, 3], [23, 3, -100, -100], [24, 25, 3, -100]])
    counted = (labels >= 0)[:, None] & (scores != -torch.inf)[:, :, None]
    found = []
    for told in (None, counted):
        leaves = [part.clone().requires_grad_() for part in (hidden, head, scores)]
        values = fused_marginal_nll(
            leaves[0], leaves[1], None, labels, leaves[2], rag_token_nll, chunk_bytes=53 * 4 * 9, counted=told
        )
        values.loss.backward()
        found.append([*values, *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_batch_knows_its_target_lengths() -> None:
    labels = torch.tensor([[20, 21, 3], [3, IGNORED_LABEL, IGNORED_LABEL]])
    batch = Batch(labels, labels > 0, ((),) * 2, labels, torch.ones(2), (Example("", "", ("",)),) * 2)
    assert batch.target_lengths == (3, 1)
    assert replace(batch, labels=labels.flip(0)).target_lengths == (1, 3)
    elsewhere = batch.to("meta")
    assert elsewhere.labels.device.type == elsewhere.weight.device.type == "meta"
    assert elsewhere.target_lengths == (3, 1)


def with_wide_heads(generator_folder: Path, folder: Path) -> Path:
    """A BART of the same tokenizer with heads of 16 numbers, which attention without padding knows."""
    shutil.copytree(generator_folder, folder)
    config = BartConfig.from_pretrained(folder, d_model=32)
    torch.manual_seed(2)
    BartForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_a_gpu_waits_twice(
    kind: str,
    autocast: torch.dtype | None,
    encoder_folder: Path,
    generator_folder: Path,
    small_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In fp32 with padding, in bf16 without."""
    objective = "closed_book" if kind == "closed book" else "rag_token"
    wide = with_wide_heads(generator_folder, tmp_path / "wide")
    module, batch = system(kind, encoder_folder, wide, small_data, tmp_path / "cache", objective)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    on_cpu = module.training_step(batch, 0)["loss"].item()
    module.retriever.weights_changed()
    module, batch = module.cuda(), batch.to("cuda")
    context = torch.autocast("cuda", autocast or torch.bfloat16, enabled=autocast is not None)
    with context:
        assert module.generator.packs == (autocast is not None)
        found = module.training_step(batch, 0)["loss"].item()  # libraries are loaded
    assert found == pytest.approx(on_cpu, rel=1e-2 if autocast is None else 5e-2)
    module.retriever.weights_changed()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with context:
                outputs = module.training_step(batch, 0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(one.message) for one in seen if "synchronizing CUDA operation" in str(one.message)]
    assert 1 <= len(waits) <= (2 if isinstance(module.retriever, DenseRetriever) else 1), waits
    outputs["loss"].backward()
    assert math.isfinite(outputs["loss"].item()) and outputs["rows"].device.type == "cpu"
