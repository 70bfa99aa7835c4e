"""Losses and gradients against transformers' RAG classes on the same weights, passages and contexts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    RagConfig,
    RagSequenceForGeneration,
    RagTokenForGeneration,
    T5ForConditionalGeneration,
)

from openbook.batch import IGNORED_LABEL, Batch, Example, Retrieved
from openbook.data.corpus_build import build_corpus
from openbook.data.encoder_inputs import encoder_format
from openbook.data.inputs import special_ids
from openbook.models import attention
from openbook.models.contexts import ContextBuilder, answer_hidden
from openbook.models.encoders import load_encoder, load_tokenizer
from openbook.models.passes import packed
from openbook.models.seq2seq import Seq2SeqGenerator, load_generator
from openbook.objectives.by_name import OBJECTIVES
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.passage_embedder import PassageEmbedder
from tests.plain_loss import answer_logprobs
from tests.tiny_models import t5_config

BATCH, N_DOCS = 3, 5
PEERS = {"rag_token": RagTokenForGeneration, "rag_sequence": RagSequenceForGeneration}


def labels() -> Tensor:
    """Ordinary targets of two to four tokens; 3 is the end-of-sequence. The first token is not <s> (see objectives)."""
    rows = [[20, 21, 22, 3], [23, 3], [24, 25, 3]]
    return torch.tensor([row + [IGNORED_LABEL] * (4 - len(row)) for row in rows])


def system(
    encoder_folder: Path, generator_folder: Path, small_data: Path, cache: Path
) -> tuple[DenseRetriever, Seq2SeqGenerator, ContextBuilder]:
    tokenizer = load_tokenizer(str(encoder_folder))
    corpus = build_corpus(small_data / "passages.jsonl", {"encoder": tokenizer, "generator": tokenizer}, cache)
    encoders = [load_encoder(str(encoder_folder), pooling, False, 0.0) for pooling in ("mean", "cls")]
    passages = PassageEmbedder(encoders[1], corpus.tokens("encoder"), encoder_format(tokenizer), 31)
    retriever = DenseRetriever(encoders[0], passages, temperature=2.0)
    generator = load_generator(str(generator_folder), 0.0, 0)
    assert isinstance(generator, Seq2SeqGenerator)
    return retriever, generator, ContextBuilder(corpus.tokens("generator"), special_ids(tokenizer), 37)


def peer(name: str, generator: Seq2SeqGenerator) -> torch.nn.Module:
    question_config = BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, vocab_size=41)
    config = RagConfig.from_question_encoder_generator_configs(question_config, generator.model.config, n_docs=N_DOCS)
    from transformers import AutoModel

    return PEERS[name](
        config=config, question_encoder=AutoModel.from_config(question_config), generator=generator.model
    )


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("name", PEERS)
def test_loss_and_all_gradients(
    name: str,
    packs: bool,
    encoder_folder: Path,
    generator_folder: Path,
    small_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if packs:  # as on a GPU
        monkeypatch.setattr(packed, "PACKS", {"cpu"})
        monkeypatch.setattr(attention, "implementation", lambda: attention.UNSEEN)
    retriever, generator, contexts = system(encoder_folder, generator_folder, small_data, tmp_path)
    assert generator.packs == retriever.passage_encoder.packs == packs
    questions = tuple(tuple(range(6 + b, 10 + 2 * b)) for b in range(BATCH))
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 9, 10, 3, 0], [2, 11, 12, 13, 3]])
    batch = Batch(
        ids, ids != 0, questions, labels(), torch.ones(BATCH), tuple(Example(str(b), "", ("",)) for b in range(BATCH))
    )
    rows = torch.tensor([[3, 8, 1, 30, 12], [8, 2, 36, 5, 0], [7, 3, 8, 9, 11]])

    def scores() -> Tensor:
        found = retriever.score(
            retriever.question_encoder(batch.question_ids, batch.question_mask),
            Retrieved(rows, torch.zeros(BATCH, N_DOCS)),
        )
        found.retain_grad()
        return found

    def gradients(loss: Tensor, doc_scores: Tensor) -> dict[str, Tensor]:
        retriever.zero_grad()
        generator.zero_grad()
        loss.sum().backward()
        parts = {"question": retriever.question_encoder, "passage": retriever.passage_encoder, "generator": generator}
        named = {
            f"{part}.{key}": value.grad
            for part, m in parts.items()
            for key, value in m.named_parameters()
            if value.grad is not None
        }
        assert doc_scores.grad is not None
        return {"doc_scores": doc_scores.grad, **{key: grad.clone() for key, grad in named.items()}}

    doc_scores = scores()
    ours = OBJECTIVES[name](answer_logprobs(generator, batch, rows, contexts), doc_scores, batch.target_mask)
    our_gradients = gradients(ours, doc_scores)

    doc_scores = scores()
    context_ids, context_mask = contexts(questions, rows)
    start = torch.full((BATCH, 1), generator.decoder_start_token_id)
    carried = torch.cat([start, batch.labels.masked_fill(batch.labels < 0, generator.pad_token_id)], 1)
    theirs = peer(name, generator)(
        context_input_ids=context_ids,
        context_attention_mask=context_mask,
        doc_scores=doc_scores,
        decoder_input_ids=carried,
        labels=carried,
        reduce_loss=False,
    ).loss
    their_gradients = gradients(theirs, doc_scores)

    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert our_gradients.keys() == their_gradients.keys()
    assert {key.split(".")[0] for key in our_gradients} == {"doc_scores", "question", "passage", "generator"}
    for key, gradient in our_gradients.items():
        torch.testing.assert_close(
            gradient, their_gradients[key], atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
    for part in ("question", "passage", "generator"):
        assert max(gradient.abs().max() for key, gradient in our_gradients.items() if key.startswith(part)) > 1e-4


def t5(scaled: bool) -> Seq2SeqGenerator:
    torch.manual_seed(5)
    config = t5_config(43, layers=1, d_kv=5, tie_word_embeddings=scaled)
    return Seq2SeqGenerator(T5ForConditionalGeneration(config).eval())


@pytest.mark.parametrize("kind", ["bart", "t5 tied", "t5 untied"])
def test_four_calls_give_the_models_own_logits(kind: str, generator_folder: Path) -> None:
    generator = load_generator(str(generator_folder), 0.0, 0) if kind == "bart" else t5(kind == "t5 tied")
    assert isinstance(generator, Seq2SeqGenerator)
    context_ids = torch.randint(4, 40, (7, 13))
    context_mask = torch.arange(13) < torch.tensor([13, 5, 8, 2, 13, 11, 3])[:, None]
    inputs = torch.randint(4, 40, (7, 3))
    expected = generator.model(input_ids=context_ids, attention_mask=context_mask, decoder_input_ids=inputs).logits
    hidden, cache = generator.decode(inputs, generator.encode(context_ids, context_mask), context_mask)
    assert cache is None
    torch.testing.assert_close(generator.logits(hidden), expected)
    with torch.inference_mode():
        memory, cache, steps = generator.encode(context_ids, context_mask), None, []
        for t in range(3):
            hidden, cache = generator.decode(inputs[:, t : t + 1], memory, context_mask, cache)
            steps.append(generator.logits(hidden))
    torch.testing.assert_close(torch.cat(steps, 1), expected.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("cost", "least", "most"), [(0, 2, 6), (10**6, 1, 1)])
def test_passes_change_no_hidden_state(
    cost: int,
    least: int,
    most: int,
    encoder_folder: Path,
    generator_folder: Path,
    small_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Contexts of unlike length, of several questions, cut into passes: every answer comes back to its own place."""
    _, generator, contexts = system(encoder_folder, generator_folder, small_data, tmp_path)
    questions = tuple(tuple(range(6, 8 + 7 * b)) for b in range(BATCH))
    batch = Batch(labels(), labels() >= 0, questions, labels(), torch.ones(BATCH), (Example("", "", ("",)),) * BATCH)
    rows = torch.tensor([[3, -1], [8, 2], [-1, 7]])
    alone = [
        answer_hidden(
            generator,
            replace(batch, context_questions=(questions[b],), labels=batch.labels[b : b + 1]),
            rows[b : b + 1, k : k + 1],
            contexts,
        )[0, 0]
        for b in range(BATCH)
        for k in range(2)
    ]
    monkeypatch.setattr("openbook.models.contexts.TOKENS_OF_A_PASS", {"cpu": cost})
    encoded: list[int] = []
    encode = generator.encode
    monkeypatch.setattr(generator, "encode", lambda ids, mask: (encoded.append(len(ids)), encode(ids, mask))[1])
    hidden = answer_hidden(generator, batch, rows, contexts)
    assert least <= len(encoded) <= most
    assert sum(encoded) == BATCH * 2
    for found, wanted in zip(hidden.flatten(0, 1), alone, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
