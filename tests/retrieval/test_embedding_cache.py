"""Embeddings kept while the weights are today's: found again, never after the weights have changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from openbook.batch import Retrieved
from openbook.data.encoder_inputs import passage_inputs
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.retrieval import embedding_cache as fresh
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.embedding_cache import EmbeddingCache
from openbook.retrieval.passage_embedder import PassageEmbedder
from openbook.setup import models as setup_models
from openbook.setup.inputs import data as setup_data
from openbook.training.rag_module import RagModule
from tests.small_system import DIM, SmallSystem, tiny_corpus, tiny_encoder, tiny_retriever

N = 41
CORPUS = tiny_corpus(N)


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def vectors(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None].expand(-1, 3).clone()


# The cache


def test_what_was_added_is_found_by_its_row() -> None:
    kept = EmbeddingCache()
    assert kept.missing(rows(3, 1)).tolist() == [3, 1]
    kept.add(rows(3, 1), vectors(0.3, 0.1))
    kept.add(rows(7), vectors(0.7))
    assert kept.missing(rows(9, 7, 3, 8)).tolist() == [9, 8]
    assert torch.equal(kept.get(rows(7, 3, 1, 3)), vectors(0.7, 0.3, 0.1, 0.3))
    assert torch.equal(kept.get(rows(1)), vectors(0.1))


def test_the_newest_of_a_row_counts_and_no_graph_is_kept() -> None:
    kept = EmbeddingCache()
    kept.add(rows(3, 1), vectors(0.3, 0.1))
    kept.add(rows(1, 5), vectors(0.2, 0.5).requires_grad_(True).bfloat16())
    found = kept.get(rows(1, 3))
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, vectors(0.2, 0.3), atol=1e-3, rtol=0)


def test_outdated_is_never_found_but_can_be_taken() -> None:
    kept = EmbeddingCache()
    kept.add(rows(3, 1), vectors(0.3, 0.1))
    kept.outdate()
    taken, embeddings = kept.take()
    assert taken.tolist() == [1, 3] and torch.equal(embeddings, vectors(0.1, 0.3))
    assert len(kept.take()[0]) == 0
    kept.add(rows(4), vectors(0.4))
    assert kept.missing(rows(4)).tolist() == [], "what is new is not outdated"
    kept.outdate()
    assert kept.missing(rows(4, 3)).tolist() == [4, 3]
    kept.add(rows(6), vectors(0.6))
    kept.outdate()
    kept.add(rows(2), vectors(0.2))
    assert kept.take()[0].tolist() == [2], "of the weights before last"


def test_a_full_cache_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "_MOST", 5)
    kept = EmbeddingCache()
    kept.add(rows(1, 2, 3), vectors(0.1, 0.2, 0.3))
    assert kept.missing(rows(2, 9)).tolist() == [9]
    assert kept.missing(rows(2, 7, 8)).tolist() == [2, 7, 8]
    kept.add(rows(2, 7, 8), vectors(0.2, 0.7, 0.8))
    assert torch.equal(kept.get(rows(8, 2)), vectors(0.8, 0.2))


# Re-ranking


@contextmanager
def counted(retriever: DenseRetriever) -> Iterator[list[int]]:
    """How many passages each forward pass of the passage encoder has."""
    seen: list[int] = []
    handle = retriever.passage_encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    yield seen
    handle.remove()


def reranking(rerank: int, dropout: float = 0.0) -> DenseRetriever:
    """Over an index that has nothing to do with the encoder."""
    retriever = tiny_retriever(CORPUS, dropout, rerank)
    index = ShardIndex(DIM, N, IndexOptions())
    draw = torch.Generator().manual_seed(5)
    index.write(CORPUS.my_rows(), torch.nn.functional.normalize(torch.randn(N, DIM, generator=draw), dim=-1).numpy())
    retriever.snapshot = Snapshot(index.finish(), 0, "", CORPUS.fingerprint, N)
    return retriever


def asked(n: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, DIM, generator=draw), dim=-1)


def encoded(retriever: DenseRetriever) -> torch.Tensor:
    """[N, DIM] of today's weights, nothing cached."""
    mode = retriever.passage_encoder.training
    retriever.passage_encoder.eval()
    with torch.no_grad():
        found = retriever.passage_encoder(*passage_inputs(CORPUS.tokens, range(N), CORPUS.style, 17))
    retriever.passage_encoder.train(mode)
    return found


def test_a_batchs_candidates_are_encoded_once_and_kept() -> None:
    retriever = reranking(7)
    questions = asked(5)
    candidates = set(retriever.search(questions, 7).rows.flatten().tolist())
    assert len(candidates) < 5 * 7, "no passage is shared: this proves nothing"
    with counted(retriever) as seen:
        first = retriever.retrieve(questions, 3)
        assert sum(seen) == len(candidates)
        again = retriever.retrieve(questions, 3)
        assert sum(seen) == len(candidates)
        assert torch.equal(first.rows, again.rows)
        more = asked(3, 1)
        new = set(retriever.search(more, 7).rows.flatten().tolist()) - candidates
        assert new
        retriever.retrieve(more, 3)
        assert sum(seen) == len(candidates) + len(new)
        with torch.no_grad():
            retriever.score(questions, first)
        assert sum(seen) == len(candidates) + len(new), "evaluation reads what re-ranking has encoded"


def test_a_cache_changes_no_order() -> None:
    retriever, questions = reranking(11), asked(5)
    retriever.retrieve(asked(7, 1), 3)
    found = retriever.retrieve(questions, 4)
    scores = questions @ encoded(retriever).T
    for b in range(5):
        candidates = retriever.search(questions, 11).rows[b].tolist()
        assert found.rows[b].tolist() == sorted(candidates, key=lambda row: -scores[b, row].item())[:4]


def test_training_encodes_with_gradient_whatever_is_kept_and_keeps_it() -> None:
    retriever = reranking(7)
    retriever.train()
    question = asked(1)
    found = retriever.retrieve(question, 3)
    with counted(retriever) as seen:
        retriever.score(question, found).sum().backward()
        assert seen == [3]
    assert any(
        parameter.grad is not None and parameter.grad.any() for parameter in retriever.passage_encoder.parameters()
    )
    kept_rows, kept = retriever.passages.cache.take()
    assert set(found.rows[0].tolist()) <= set(kept_rows.tolist())
    torch.testing.assert_close(kept, encoded(retriever)[kept_rows], atol=1e-5, rtol=1e-4)


def test_under_dropout_only_what_was_encoded_without_it_is_kept() -> None:
    retriever = reranking(0, dropout=0.4)
    retriever.train()
    question, state = asked(1), torch.get_rng_state()
    retriever.score(question, Retrieved(rows(1, 2, 3)[None], torch.zeros(1, 3)))
    assert len(retriever.passages.cache.take()[0]) == 0
    torch.set_rng_state(state)
    kept = retriever.passages.encode_once(rows(1, 2))
    assert torch.equal(state, torch.get_rng_state()) and retriever.passage_encoder.training
    torch.testing.assert_close(kept, encoded(retriever)[1:3], atol=1e-5, rtol=1e-4)
    noisy = retriever.score(question, Retrieved(rows(1, 2)[None], torch.zeros(1, 2)))
    assert not torch.allclose(noisy, question @ kept.T / 0.5, atol=1e-3), "training was given eval embeddings"
    assert torch.equal(retriever.passages.encode_once(rows(1, 2)), kept)


def test_a_frozen_passage_encoders_passages_are_encoded_once() -> None:
    passages = PassageEmbedder(tiny_encoder(2), CORPUS.tokens, CORPUS.style, 17)
    retriever = DenseRetriever(tiny_encoder(1), passages, temperature=0.5, train_passage_encoder=False)
    retriever.train()
    with counted(retriever) as seen:
        for _ in range(3):
            retriever.score(asked(1), Retrieved(rows(1, 2, 3)[None], torch.zeros(1, 3)))
    assert sum(seen) == 3


# When the weights change


@pytest.fixture
def module(small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RagModule:
    monkeypatch.setenv("OPENBOOK_RUN_DIR", "")
    config = small_system.config(tmp_path / "run", "retriever.rerank=7")
    return setup_models.rag_module(config, setup_data.parts(config))


def test_the_real_optimizer_outdates_what_is_kept(module: RagModule) -> None:
    """A fused AdamW writes weights without raising their version: nothing but its own hook tells."""
    retriever = module.retriever
    assert retriever is not None
    optimizer = module.configure_optimizers()["optimizer"]
    wanted = torch.arange(5)
    before = retriever.passages.encode_once(wanted)
    retriever.passages.encode(wanted).sum().backward()
    with counted(retriever) as seen:
        assert torch.equal(retriever.passages.encode_once(wanted), before) and not seen
        optimizer.step()
        after = retriever.passages.encode_once(wanted)
        assert sum(seen) == 5
    assert not torch.allclose(after, before, atol=1e-3)
    retriever.passage_encoder.eval()
    torch.testing.assert_close(after, retriever.passages.encode(wanted).detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("whole", [True, False])
def test_loading_weights_outdates_what_is_kept(whole: bool, module: RagModule) -> None:
    retriever = module.retriever
    assert retriever is not None
    part = module if whole else retriever.passage_encoder
    state = {name: value.clone() for name, value in part.state_dict().items()}
    kept = retriever.passages.encode_once(torch.arange(5))
    for value in state.values():
        value.add_(0.05 * torch.randn_like(value)) if value.is_floating_point() else None
    part.load_state_dict(state)
    with counted(retriever) as seen:
        found = retriever.passages.encode_once(torch.arange(5))
    assert sum(seen) == 5 and not torch.allclose(found, kept, atol=1e-3)
