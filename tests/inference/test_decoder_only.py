"""Decoding with decoder-only generators: transformers' own beam search, and every way of decoding over one memory."""

from __future__ import annotations

import math

import pytest
import torch

from openbook.data.prompts import Prompt
from openbook.inference.rag_sequence import rag_sequence_fast, rag_sequence_thorough
from openbook.inference.rag_token import greedy, rag_token_beams
from openbook.models.decoder_only.model import DecoderOnlyGenerator
from tests.decoder_only import VOCAB, causal_model

START, END, PAD = 7, 0, 1


def generator_of(family: str) -> DecoderOnlyGenerator:
    generator = DecoderOnlyGenerator(causal_model(family))
    generator.follow(Prompt(((3,), (START,)), ("question",), frozenset(), END, PAD))
    generator.model.get_output_embeddings().weight.data[END] *= 4  # answers end before the limit
    return generator.eval()


def contexts(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    lengths = torch.randint(3, 12, (n,), generator=draw)
    mask = torch.arange(11) < lengths[:, None]
    return torch.randint(4, VOCAB, (n, 11), generator=draw).masked_fill(~mask, PAD), mask


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_one_passage_is_transformers_own_beam_search(family: str, beams: int) -> None:
    generator, (ids, mask) = generator_of(family), contexts(5)
    found = rag_token_beams(generator, ids, mask, torch.zeros(5, 1), beams, 7)
    ended = 0
    for row, hypotheses in enumerate(found):
        prompt = torch.cat([ids[row][mask[row]], torch.tensor([START])])[None]
        theirs = generator.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_beams=beams,
            max_new_tokens=7,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=False,
            pad_token_id=PAD,
            eos_token_id=END,
        )[0, prompt.shape[1] :]
        ours = list(hypotheses[0].token_ids)
        assert ours == theirs[: len(ours)].tolist()
        ended += ours[-1] == END
        text = torch.cat([prompt[0], torch.tensor(ours)])[None]
        logprobs = generator.model(input_ids=text).logits[0].log_softmax(-1)
        whole = sum(float(logprobs[prompt.shape[1] - 1 + t, token]) for t, token in enumerate(ours))
        assert hypotheses[0].logprob == pytest.approx(whole, abs=1e-4)
    assert ended > 0


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_likelihood_of_what_is_decoded_is_that_of_the_marginal(family: str) -> None:
    """Beams, greedy, thorough and fast decoding, each against plain forward passes over the texts they give."""
    generator, (ids, mask) = generator_of(family), contexts(6)
    prior = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).log_softmax(-1)

    def tokens(question: int, answer: tuple[int, ...]) -> torch.Tensor:
        """[n_docs, length] log-probabilities."""
        rows = []
        for row in range(3 * question, 3 * question + 3):
            text = torch.tensor([[*ids[row][mask[row]].tolist(), START, *answer]])
            logprobs = generator.model(input_ids=text).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
            rows.append(logprobs[torch.arange(len(answer)), torch.tensor(answer)])
        return torch.stack(rows).detach()

    def rag_token(question: int, answer: tuple[int, ...]) -> float:
        return float((prior[question][:, None] + tokens(question, answer)).logsumexp(0).sum())

    def rag_sequence(question: int, answer: tuple[int, ...]) -> float:
        return float((prior[question] + tokens(question, answer).sum(1)).logsumexp(0))

    for question, hypotheses in enumerate(rag_token_beams(generator, ids, mask, prior, 3, 6, n_best=3)):
        for one in hypotheses:
            assert one.logprob == pytest.approx(rag_token(question, one.token_ids), abs=1e-4)
    for objective, likelihood in (("rag_token", rag_token), ("rag_sequence", rag_sequence)):
        decoded = greedy(generator, ids, mask, prior, objective, 6)  # type: ignore[arg-type]
        for question, row in enumerate(decoded.token_ids.tolist()):
            answer = tuple(row[: row.index(END) + 1] if END in row else row)
            assert float(decoded.sequence_logprob[question]) == pytest.approx(likelihood(question, answer), abs=1e-4)
    thorough = rag_sequence_thorough(generator, ids, mask, prior, 2, 6, n_best=4, tokens_per_pass=24)
    for question, hypotheses in enumerate(thorough):
        assert len(hypotheses) > 1
        for one in hypotheses:
            assert one.logprob == pytest.approx(rag_sequence(question, one.token_ids), abs=1e-4)
    for hypotheses, fast in zip(thorough, rag_sequence_fast(generator, ids, mask, prior, 2, 6), strict=True):
        assert fast[0].logprob <= hypotheses[0].logprob + 1e-5 and math.isfinite(fast[0].logprob)
