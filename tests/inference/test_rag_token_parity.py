"""rag_token_beams against transformers' RagTokenForGeneration.generate: same weights, contexts and document scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    BartForConditionalGeneration,
    BertConfig,
    RagConfig,
    RagTokenForGeneration,
)

from openbook.inference.rag_token import greedy, rag_token_beams
from openbook.models.seq2seq import Seq2SeqGenerator
from tests.tiny_models import bart_config

BATCH, N_DOCS, CONTEXT_LEN, VOCAB, MAX_LENGTH = 3, 5, 13, 47, 11
PAD, START, EOS = 1, 2, 3


def both(seed: int) -> tuple[Seq2SeqGenerator, RagTokenForGeneration]:
    torch.manual_seed(seed)
    bart = bart_config(
        VOCAB, layers=(1, 2), heads=(2, 4), pad=PAD, bos=START, eos=EOS, max_position_embeddings=64, init_std=0.5
    )
    model = BartForConditionalGeneration(bart).eval()
    model.final_logits_bias[0, EOS] = 4.0  # so that answers end at different lengths
    asked = BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=17, vocab_size=41)
    rag = RagConfig.from_question_encoder_generator_configs(asked, bart, n_docs=N_DOCS)
    peer = RagTokenForGeneration(config=rag, question_encoder=AutoModel.from_config(asked), generator=model)
    return Seq2SeqGenerator(model), peer.eval()


def asked(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ragged contexts and document scores before the softmax."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, CONTEXT_LEN + 1, (BATCH * N_DOCS,), generator=draw)
    ids = torch.randint(4, VOCAB, (BATCH * N_DOCS, CONTEXT_LEN), generator=draw)
    mask = torch.arange(CONTEXT_LEN) < lengths[:, None]
    return ids.masked_fill(~mask, PAD), mask.long(), torch.randn(BATCH, N_DOCS, generator=draw)


def without_padding(row: list[int]) -> tuple[int, ...]:
    """What follows the start token, end-of-sequence kept."""
    return tuple(row[1 : row.index(EOS) + 1] if EOS in row else row[1:])


@torch.inference_mode()
@pytest.mark.parametrize("min_length", [0, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 4])
def test_beams_equal_generate(beams: int, length_penalty: float, min_length: int) -> None:
    lengths = set()
    for seed in range(3):
        generator, peer = both(seed)
        ids, mask, scores = asked(seed)
        answers = rag_token_beams(
            generator, ids, mask, scores.log_softmax(1), beams, MAX_LENGTH, min_length, length_penalty, n_best=beams
        )
        # generate counts the start token
        rows = peer.generate(
            context_input_ids=ids,
            context_attention_mask=mask,
            doc_scores=scores,
            n_docs=N_DOCS,
            num_beams=beams,
            num_return_sequences=beams,
            max_length=MAX_LENGTH + 1,
            min_length=min_length,
            length_penalty=length_penalty,
            early_stopping=False,
            do_sample=False,
        )
        expected = [without_padding(row) for row in rows.tolist()]
        assert [found.token_ids for found_of in answers for found in found_of] == expected
        assert min(map(len, expected)) >= min_length
        lengths |= set(map(len, expected))
    assert len(lengths) > 1 or length_penalty == 2.0, "answers of one length say little about the penalty"


@torch.inference_mode()
def test_one_beam_equals_generate() -> None:
    for seed in range(3):
        generator, peer = both(seed)
        ids, mask, scores = asked(seed)
        rows = peer.generate(
            context_input_ids=ids,
            context_attention_mask=mask,
            doc_scores=scores,
            n_docs=N_DOCS,
            num_beams=1,
            max_length=MAX_LENGTH + 1,
            do_sample=False,
        )
        expected = [without_padding(row) for row in rows.tolist()]
        plain = greedy(generator, ids, mask, scores.log_softmax(1), "rag_token", MAX_LENGTH)
        assert [without_padding([START, *row]) for row in plain.token_ids.tolist()] == expected


@torch.inference_mode()
def test_probabilities_are_those_of_the_model() -> None:
    """log p(y|x) of every answer by one forward pass of the peer over all its tokens."""
    generator, peer = both(0)
    ids, mask, scores = asked(0)
    answers = rag_token_beams(generator, ids, mask, scores.log_softmax(1), 3, MAX_LENGTH, n_best=3)
    for b, found_of in enumerate(answers):
        rows = slice(b * N_DOCS, (b + 1) * N_DOCS)
        for found in found_of:
            tokens = torch.tensor([[START, *found.token_ids]])
            output = peer(
                context_input_ids=ids[rows],
                context_attention_mask=mask[rows],
                doc_scores=scores[b : b + 1],
                decoder_input_ids=tokens[:, :-1],
                do_marginalize=True,
                n_docs=N_DOCS,
            )
            expected = output.logits.log_softmax(-1).gather(2, tokens[:, 1:, None]).sum()
            assert found.logprob == pytest.approx(expected.item(), abs=1e-4)


@torch.inference_mode()
def test_missing_passages_are_as_if_they_had_not_been_found() -> None:
    generator, _ = both(1)
    ids, mask, scores = asked(1)
    logprobs = scores.log_softmax(1)
    three = [part.view(BATCH, N_DOCS, -1)[:, :3].flatten(0, 1) for part in (ids, mask)]
    fewer = rag_token_beams(generator, *three, logprobs[:, :3], 3, MAX_LENGTH)
    logprobs[:, 3:] = -torch.inf
    mask.view(BATCH, N_DOCS, -1)[:, 3:] = 0
    more = rag_token_beams(generator, ids, mask, logprobs, 3, MAX_LENGTH)
    for (one,), (other,) in zip(fewer, more, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_no_ngram_comes_twice_as_in_generate(ngram: int, beams: int) -> None:
    """Of several passages as in RagTokenForGeneration, of one as in the generator's own class."""
    differ = 0
    for seed in range(4):
        generator, peer = both(seed)
        # transformers counts the start token among the answer's, so it must not be written
        generator.model.final_logits_bias[0, START] = -1e4
        generator.model.final_logits_bias[0, EOS] = 1.0
        ids, mask, scores = asked(seed)
        how = {"num_beams": beams, "max_length": MAX_LENGTH + 1, "do_sample": False, "no_repeat_ngram_size": ngram}
        several = peer.generate(
            context_input_ids=ids, context_attention_mask=mask, doc_scores=scores, n_docs=N_DOCS, **how
        )
        single = generator.model.generate(input_ids=ids, attention_mask=mask, **how)
        prior = scores.log_softmax(1)
        for rows, weights in ((several, prior), (single, prior.new_zeros(len(ids), 1))):
            expected = [without_padding(row) for row in rows.tolist()]
            arguments = (generator, ids, mask, weights)
            free, found = (
                [one[0].token_ids for one in rag_token_beams(*arguments, beams, MAX_LENGTH, 0, 1.0, no_repeat_ngram=n)]
                for n in (0, ngram)
            )
            assert found == expected
            if beams == 1:
                plain = greedy(*arguments, "rag_token", MAX_LENGTH, no_repeat_ngram=ngram).token_ids.tolist()
                assert [without_padding([START, *row]) for row in plain] == expected
            differ += free != found
    assert differ >= 3, "the constraint says little where nothing repeats"
