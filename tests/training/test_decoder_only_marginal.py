"""RAG with a decoder-only generator against nested loops in float64: one text at a time, all gradients included."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openbook.batch import MISSING_ROW, Batch, Example
from openbook.data.corpus_build import build_corpus
from openbook.inference.likelihood import label_logprobs, target_logprobs
from openbook.models.contexts import ContextBuilder, answer_hidden
from openbook.models.decoder_only.model import DecoderOnlyGenerator
from openbook.models.decoder_only.prompting import prompt_of
from openbook.models.encoders import load_tokenizer
from openbook.models.passes.activation_checkpointing import checkpoint_layers
from openbook.models.seq2seq import load_generator
from openbook.objectives.by_name import OBJECTIVES
from openbook.objectives.fused import fused_marginal_nll
from tests.decoder_only import FAMILIES, causal_folder

QUESTIONS = ["what is the capital of alpha beta ?", "which river ?", "a river flows through gamma , is it the king ?"]
ANSWERS = ["upsilon", "the river eta theta", ""]
ROWS = torch.tensor([[3, 8, 1, 30], [8, 2, MISSING_ROW, 5], [7, 3, 8, 9]])


@pytest.fixture(scope="module")
def system(
    small_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DecoderOnlyGenerator, ContextBuilder, Batch]:
    folder = causal_folder(tmp_path_factory.mktemp("causal"), small_data, family="smollm")
    tokenizer, generator = load_tokenizer(str(folder)), load_generator(str(folder), 0.0, 0)
    assert isinstance(generator, DecoderOnlyGenerator)
    prompt = prompt_of(tokenizer, str(folder))
    generator.follow(prompt)
    corpus = build_corpus(
        small_data / "passages.jsonl",
        {"generator": tokenizer},
        tmp_path_factory.mktemp("cache"),
        formats={"generator": prompt},
    )
    labels = prompt.targets(tokenizer, ANSWERS, 9)
    asked = tuple(map(tuple, prompt.questions(tokenizer, QUESTIONS)))
    examples = tuple(Example(str(n), "", ("",)) for n in range(3))
    batch = Batch(labels, labels >= 0, asked, labels, torch.ones(3), examples)
    return generator.double().eval(), ContextBuilder(corpus.tokens("generator"), prompt, 70, 130), batch


def looped(
    generator: DecoderOnlyGenerator, contexts: ContextBuilder, batch: Batch, doc_scores: Tensor, objective: str
) -> tuple[Tensor, Tensor]:
    """(-log p(y|x) of each question, token_logprobs), from one forward pass of transformers for every passage."""
    ids, mask = contexts(batch.context_questions, ROWS)
    each, tokens = [], torch.zeros(*ROWS.shape, batch.labels.shape[1], dtype=torch.float64)
    for b, scores in enumerate(doc_scores):
        answer, prior = batch.labels[b][batch.labels[b] >= 0], {}
        for k, row in enumerate(ROWS[b].tolist()):
            if row == MISSING_ROW:
                continue
            prompt = ids[b * ROWS.shape[1] + k][mask[b * ROWS.shape[1] + k]].tolist()
            text = torch.tensor([[*prompt, generator.decoder_start_token_id, *answer.tolist()]])
            logprobs = generator.model(input_ids=text).logits[0].log_softmax(-1)
            prior[k] = [logprobs[len(prompt) + t, label] for t, label in enumerate(answer.tolist())]
            tokens[b, k, : len(answer)] = torch.stack(prior[k]).detach()
        weights = {k: scores[k].exp() for k in prior}
        total = sum(weights.values())
        if objective == "rag_sequence":
            p = sum(weights[k] / total * torch.stack(prior[k]).sum().exp() for k in prior)
        else:
            p = torch.ones((), dtype=torch.float64)
            for t in range(len(answer)):
                p = p * sum(weights[k] / total * prior[k][t].exp() for k in prior)
        each.append(-torch.log(torch.as_tensor(p)))
    return torch.stack(each), tokens


@pytest.mark.parametrize("objective", ["rag_token", "rag_sequence"])
def test_likelihoods_and_all_gradients(
    objective: str, system: tuple[DecoderOnlyGenerator, ContextBuilder, Batch]
) -> None:
    generator, contexts, batch = system
    draw = torch.Generator().manual_seed(3)
    scores = torch.randn(ROWS.shape, generator=draw, dtype=torch.float64).masked_fill(ROWS == MISSING_ROW, -torch.inf)

    def gradients(ours: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        generator.zero_grad()
        doc_scores = scores.clone().requires_grad_()
        if ours:
            hidden = answer_hidden(generator, batch, ROWS, contexts)
            fused = fused_marginal_nll(
                hidden,
                generator.head_weight,
                generator.head_bias,
                batch.labels,
                doc_scores,
                OBJECTIVES[objective],
                chunk_bytes=2**14,  # several chunks
            )
            loss, each, tokens = fused
        else:
            each, tokens = looped(generator, contexts, batch, doc_scores, objective)
            loss = each.sum()
        loss.backward()
        assert doc_scores.grad is not None
        named = {name: value.grad.clone() for name, value in generator.named_parameters() if value.grad is not None}
        return each.detach(), tokens, named | {"doc_scores": doc_scores.grad}

    each, tokens, found = gradients(True)
    expected, expected_tokens, wanted = gradients(False)
    torch.testing.assert_close(each, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(tokens, expected_tokens, atol=1e-9, rtol=1e-9)
    assert found.keys() == wanted.keys() and len(found) == 1 + len(list(generator.named_parameters()))
    for name, gradient in found.items():
        wanted_here = wanted[name].nan_to_num()  # of a missing passage's score
        torch.testing.assert_close(gradient, wanted_here, atol=1e-9, rtol=1e-7, msg=lambda text, n=name: f"{n}: {text}")
        assert gradient.abs().max() > 1e-6


def test_given_answers_and_labels_share_the_contexts(
    system: tuple[DecoderOnlyGenerator, ContextBuilder, Batch],
) -> None:
    """Several targets over one memory have the log-probabilities that each has in a text of its own."""
    generator, contexts, batch = system
    ids, mask = contexts(batch.context_questions, ROWS)
    scores = torch.randn(ROWS.shape, dtype=torch.float64).masked_fill(ROWS == MISSING_ROW, -torch.inf)
    _, wanted = looped(generator, contexts, batch, scores, "rag_token")
    with torch.inference_mode():
        memory = generator.encode(ids, mask)
        targets = torch.stack([batch.labels, batch.labels.roll(1, 0), batch.labels], 1)
        found = target_logprobs(generator, memory, mask, targets)
        there = (ROWS != MISSING_ROW)[:, :, None]
        for place in (0, 2):
            torch.testing.assert_close(found[:, :, place].double() * there, wanted, atol=1e-5, rtol=1e-5)
        first = torch.tensor([20, 21, 22])
        labels = label_logprobs(generator, memory, mask, scores, first)
        logits = generator.model(
            input_ids=torch.tensor([[*ids[0][mask[0]].tolist(), generator.decoder_start_token_id]])
        ).logits[0, -1]
        alone = scores.clone()
        alone[:, 1:] = -torch.inf
        only_first = label_logprobs(generator, memory, mask, alone, first)
        torch.testing.assert_close(only_first[0].double(), logits.log_softmax(-1)[first], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(labels, only_first)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns(family: str, small_data: Path, tmp_path: Path) -> None:
    """20 steps of RAG-Token on fixed passages, layers checkpointed: the likelihood of the answers rises."""
    folder = causal_folder(tmp_path / family, small_data, family=family)
    tokenizer, generator = load_tokenizer(str(folder)), load_generator(str(folder), 0.1, 0)
    assert isinstance(generator, DecoderOnlyGenerator)
    prompt = prompt_of(tokenizer, str(folder))
    generator.follow(prompt)
    checkpoint_layers(generator)
    corpus = build_corpus(
        small_data / "passages.jsonl", {"generator": tokenizer}, tmp_path / "cache", formats={"generator": prompt}
    )
    contexts = ContextBuilder(corpus.tokens("generator"), prompt, 70)
    labels = prompt.targets(tokenizer, ANSWERS, 9)
    asked = tuple(map(tuple, prompt.questions(tokenizer, QUESTIONS)))
    batch = Batch(labels, labels >= 0, asked, labels, torch.ones(3), (Example("", "", ("",)),) * 3)
    doc_scores = torch.zeros(ROWS.shape).masked_fill(ROWS == MISSING_ROW, -torch.inf)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=3e-3)
    generator.train()
    losses = []
    for _ in range(20):
        hidden = answer_hidden(generator, batch, ROWS, contexts)
        head = (generator.head_weight, generator.head_bias)
        loss = fused_marginal_nll(hidden, *head, labels, doc_scores, OBJECTIVES["rag_token"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_checkpointed_layers_change_no_gradient(system: tuple[DecoderOnlyGenerator, ContextBuilder, Batch]) -> None:
    generator, contexts, batch = copy.deepcopy(system[0]), *system[1:]
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            checkpoint_layers(generator)
        generator.train()
        generator.zero_grad()
        answer_hidden(generator, batch, ROWS, contexts).square().sum().backward()
        found.append(
            {name: value.grad.clone() for name, value in generator.named_parameters() if value.grad is not None}
        )
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
