"""Encoding the corpus leaves everything as it was; fresh scores teach, stale ones select."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DPRConfig, DPRContextEncoder, DPRQuestionEncoder

from openbook.batch import Retrieved
from openbook.data.corpus_build import build_corpus
from openbook.data.encoder_inputs import encoder_format, passage_inputs
from openbook.errors import OpenBookError
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.index.snapshot import Snapshot
from openbook.models.encoders import TextEncoder, load_encoder, load_tokenizer
from openbook.models.pretrained import check_model_folder
from openbook.retrieval.corpus_encoder import PassageCoder, encode_passes
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.passage_embedder import PassageEmbedder

BATCH, N_DOCS = 3, 5


def retriever(
    encoder_folder: Path, small_data: Path, cache: Path, dropout: float = 0.0, **settings: bool
) -> DenseRetriever:
    tokenizer = load_tokenizer(str(encoder_folder))
    corpus = build_corpus(small_data / "passages.jsonl", {"encoder": tokenizer}, cache)
    encoders = [load_encoder(str(encoder_folder), "mean", True, dropout) for _ in range(2)]
    passages = PassageEmbedder(encoders[1], corpus.tokens("encoder"), encoder_format(tokenizer), 31)
    return DenseRetriever(encoders[0], passages, temperature=0.1, **settings)


def encode(system: DenseRetriever, tokens_per_pass: int = 200, rows: range = range(37)) -> torch.Tensor:
    """[n, dim] as an index would be made of, in the order of the rows."""
    coder = PassageCoder(system.passage_encoder, system.passages.tokens, system.passages.style, 31)
    found = torch.empty(len(rows), 24)
    for chosen, embeddings in encode_passes(coder, coder.passes(rows, tokens_per_pass)):
        found[torch.from_numpy(chosen) - rows.start] = embeddings
    return found


def snapshot_of(embeddings: torch.Tensor) -> Snapshot:
    index = ShardIndex(embeddings.shape[1], len(embeddings), IndexOptions())
    index.write(np.arange(len(embeddings)), embeddings.numpy())
    return Snapshot(index.finish(), 0, "", "", len(embeddings))


def test_any_batching_gives_the_embeddings_of_one_by_one(
    encoder_folder: Path, small_data: Path, tmp_path: Path
) -> None:
    system = retriever(encoder_folder, small_data, tmp_path).eval()
    alone = torch.cat([system.passages.encode(torch.tensor([row])) for row in range(37)])
    for tokens_per_pass in (1, 97, 10_000):
        torch.testing.assert_close(encode(system, tokens_per_pass), alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encode(system, 97, range(11, 30)), alone[11:30], atol=1e-5, rtol=1e-4)


def test_encoding_leaves_mode_gradients_and_random_state(
    encoder_folder: Path, small_data: Path, tmp_path: Path
) -> None:
    system = retriever(encoder_folder, small_data, tmp_path, dropout=0.5).train()
    before = torch.get_rng_state()
    first, second = encode(system), encode(system)
    assert torch.equal(before, torch.get_rng_state())
    assert all(module.training for module in system.passage_encoder.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in system.passage_encoder.parameters())
    torch.testing.assert_close(first, second)  # dropout was off
    assert not torch.allclose(system.passages.encode(torch.arange(37)), first, atol=1e-3)  # and is on in training


def test_scores_are_inner_products_over_the_temperature(encoder_folder: Path, small_data: Path, tmp_path: Path) -> None:
    system = retriever(encoder_folder, small_data, tmp_path)
    question_emb = torch.nn.functional.normalize(torch.randn(BATCH, 24), dim=-1)
    rows = torch.tensor([[3, 8, 1, 30, -1], [8, 2, 36, 5, 0], [7, 3, -1, -1, -1]])
    scores = system.score(question_emb, Retrieved(rows, torch.full((BATCH, N_DOCS), 99.0)))
    passages = encode(system)
    for b in range(BATCH):
        for k in range(N_DOCS):
            expected = -torch.inf if rows[b, k] < 0 else (question_emb[b] @ passages[rows[b, k]]).item() / 0.1
            assert scores[b, k].item() == pytest.approx(expected, abs=1e-4)


def test_a_passage_that_several_questions_share_is_encoded_once(
    encoder_folder: Path, small_data: Path, tmp_path: Path
) -> None:
    system = retriever(encoder_folder, small_data, tmp_path)
    seen: list[int] = []
    system.passage_encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    rows = torch.tensor([[1, 2, 3], [3, 2, 1], [1, 4, 2]])
    system.score(torch.randn(3, 24), Retrieved(rows, torch.zeros(3, 3)))
    assert seen == [4]


@pytest.mark.parametrize("trained", [True, False])
def test_gradient_reaches_the_passage_encoder_only_when_it_trains(
    trained: bool, encoder_folder: Path, small_data: Path, tmp_path: Path
) -> None:
    system = retriever(encoder_folder, small_data, tmp_path, train_passage_encoder=trained)
    question_emb = torch.randn(2, 24, requires_grad=True)
    system.score(question_emb, Retrieved(torch.tensor([[1, 2], [2, 3]]), torch.zeros(2, 2))).sum().backward()
    gradients = [parameter.grad for parameter in system.passage_encoder.parameters()]
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients) == trained
    assert question_emb.grad is not None


def test_bf16_autocast_leaves_scores_in_fp32(encoder_folder: Path, small_data: Path, tmp_path: Path) -> None:
    system = retriever(encoder_folder, small_data, tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        scores = system.score(torch.randn(2, 24), Retrieved(torch.tensor([[1, 2], [2, 3]]), torch.zeros(2, 2)))
    assert scores.dtype == torch.float32
    assert (scores != scores.bfloat16().float()).any()


@pytest.mark.parametrize("rerank", [0, 3, 11, 37])
def test_reranking_orders_the_stale_candidates_by_fresh_scores(
    rerank: int, encoder_folder: Path, small_data: Path, tmp_path: Path
) -> None:
    """Against sorting by hand; with every passage a candidate, it is the search of a fresh index."""
    system = retriever(encoder_folder, small_data, tmp_path, dropout=0.5).train()
    stale = torch.nn.functional.normalize(torch.randn(37, 24), dim=-1)
    system.snapshot = snapshot_of(stale)
    system.rerank = rerank
    question_emb = torch.nn.functional.normalize(torch.randn(BATCH, 24), dim=-1)
    found = system.retrieve(question_emb, N_DOCS)
    fresh = question_emb @ encode(system).T
    for b in range(BATCH):
        candidates = (question_emb[b] @ stale.T).argsort(descending=True)[: max(rerank, N_DOCS)].tolist()
        if rerank:
            candidates[:rerank] = sorted(candidates[:rerank], key=lambda row: -fresh[b, row].item())
        assert found.rows[b].tolist() == candidates[:N_DOCS]
        assert found.index_scores[b].tolist() == pytest.approx(
            (stale @ question_emb[b])[candidates[:N_DOCS]].tolist(), abs=1e-5
        )
    assert system.passage_encoder.training
    assert not found.rows.requires_grad


@pytest.mark.parametrize("depth", [0, 2, 23])
def test_a_deeper_look_remembers_candidates_and_changes_no_passage(
    depth: int, encoder_folder: Path, small_data: Path, tmp_path: Path
) -> None:
    system = retriever(encoder_folder, small_data, tmp_path).train()
    system.snapshot = snapshot_of(encode(system))
    question_emb = torch.nn.functional.normalize(torch.randn(BATCH, 24), dim=-1)
    plain = system.retrieve(question_emb, N_DOCS)
    assert len(system.take_candidates()) == 0
    system.depth = depth
    found = system.retrieve(question_emb, N_DOCS)
    assert torch.equal(found.rows, plain.rows) and torch.equal(found.index_scores, plain.index_scores)
    expected = system.search(question_emb, max(depth, N_DOCS)).rows.flatten().tolist() if depth else []
    assert system.take_candidates().tolist() == expected
    assert len(system.take_candidates()) == 0
    system.eval().retrieve(question_emb, N_DOCS)
    assert len(system.take_candidates()) == 0, "validation questions made passages hot"
    system.rerank = 7
    reranked = system.retrieve(question_emb, N_DOCS)
    system.depth = 0
    assert torch.equal(reranked.rows, system.retrieve(question_emb, N_DOCS).rows), "depth is not a wider re-ranking"


def test_searching_holds_one_snapshot(encoder_folder: Path, small_data: Path, tmp_path: Path) -> None:
    system = retriever(encoder_folder, small_data, tmp_path)
    with pytest.raises(OpenBookError, match="before there is an index"):
        system.search(torch.randn(1, 24), 1)
    embeddings = encode(system)
    system.snapshot = snapshot_of(embeddings)
    assert system.search(embeddings[:5], 1).rows[:, 0].tolist() == list(range(5))


def test_the_fingerprint_is_of_the_weights(encoder_folder: Path, small_data: Path, tmp_path: Path) -> None:
    system = retriever(encoder_folder, small_data, tmp_path)
    encoder: TextEncoder = system.passage_encoder
    assert encoder.fingerprint() == system.question_encoder.fingerprint()
    before = encoder.fingerprint()
    with torch.no_grad():
        next(encoder.parameters())[0, 0] += 1e-3
    assert encoder.fingerprint() != before


def test_passages_are_read_as_the_tokenizer_would_write_them(
    encoder_folder: Path, small_data: Path, tmp_path: Path
) -> None:
    system = retriever(encoder_folder, small_data, tmp_path)
    ids, mask = passage_inputs(system.passages.tokens, [0], system.passages.style, 31)
    tokenizer = load_tokenizer(str(encoder_folder))
    assert tokenizer.decode(ids[0][mask[0]]).startswith("[CLS] beta alpha [SEP] the capital of beta alpha is")


def test_a_dpr_encoder_gives_what_dpr_gives(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = DPRConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        vocab_size=53,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    ids = torch.randint(1, 53, (5, 11))
    mask = torch.arange(11) < torch.tensor([11, 4, 7, 2, 9])[:, None]
    for name, kind in (("question", DPRQuestionEncoder), ("context", DPRContextEncoder)):
        dpr = kind(config).eval()
        dpr.save_pretrained(tmp_path / name)
        ours = load_encoder(str(tmp_path / name), "cls", False, 0.0).eval()
        torch.testing.assert_close(ours(ids, mask), dpr(ids, attention_mask=mask).pooler_output)


def test_missing_weights_are_not_made_up(encoder_folder: Path, tmp_path: Path) -> None:
    weights = load_file(encoder_folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((encoder_folder / "config.json").read_text())
    with pytest.raises(OpenBookError, match=r"1 missing, first encoder\.layer\.1\.output\.dense\.weight"):
        load_encoder(str(tmp_path), "mean", True, 0.0)


def test_code_in_a_model_folder_is_not_run(encoder_folder: Path, tmp_path: Path) -> None:
    config = json.loads((encoder_folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(OpenBookError, match="brings code of its own"):
        check_model_folder(str(tmp_path), "retriever.question_encoder")
    with pytest.raises(ValueError, match="custom code"):
        load_encoder(str(tmp_path), "mean", True, 0.0)
    assert not (tmp_path / "ran").exists()


def test_a_frozen_encoder_has_no_dropout(encoder_folder: Path, small_data: Path, tmp_path: Path) -> None:
    system = retriever(encoder_folder, small_data, tmp_path, dropout=0.5, train_passage_encoder=False).train()
    assert system.question_encoder.training
    rows = torch.arange(7)
    torch.testing.assert_close(system.passages.encode(rows), system.passages.encode(rows))
