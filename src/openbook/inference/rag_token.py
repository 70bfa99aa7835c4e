"""Decoding of the marginal over passages: beam search for RAG-Token, greedy for both objectives.

With log-weights w[b,k] over passages, the next token's marginal is

    log p(y_t | x, y_<t) = logsumexp_k( w[b,k] + log p_G(y_t | x, z_k, y_<t) )

RAG-Token keeps w = doc_logprobs at every step, and so is a language model like any other, which beams can search (Lewis
et al. 2020, sections 2.1 and 2.5). `greedy` serves RAG-Sequence too: there w moves to the posterior given the prefix,
w <- log_softmax_k( w + log p_G(y_t | x, z_k, y_<t) ), which is greedy on the exact marginal of the prefix. The paper
searches once per passage and scores the candidates afterwards: rag_sequence.py. `follow` is its loop, which sampling
(sampling.py) shares.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from openbook.errors import OpenBookError
from openbook.inference.beam_search import BeamSearch, Hypothesis, only_token, repeating_tokens
from openbook.models.generator import Generator

Objective = Literal["rag_token", "rag_sequence", "closed_book"]


@torch.inference_mode()
def rag_token_beams(
    generator: Generator,
    context_ids: Tensor,
    context_mask: Tensor,
    doc_logprobs: Tensor,
    beams: int,
    max_length: int,
    min_length: int = 0,
    length_penalty: float = 0.0,
    n_best: int = 1,
    *,
    no_repeat_ngram: int = 0,
) -> list[list[Hypothesis]]:
    """The n_best answers to each question under the RAG-Token marginal, best first, by beam search.

    context_ids, context_mask: [batch * n_docs, context_len], the contexts of a question side by side; n_docs is free.
    doc_logprobs: [batch, n_docs] fp32, log p(z|x), -inf where there is no passage; such a passage has no influence. A
        question with no passage at all gets end-of-sequence alone, logprob -inf. One context per question with a
        doc_logprob of 0 is the plain beam search of the generator.
    max_length, min_length: tokens, end-of-sequence included; min_length forbids end-of-sequence as token 1 to
        min_length - 1 and leaves the probabilities as they are. length_penalty: see Hypothesis; any number.
    no_repeat_ngram: see BeamSearch; like min_length it narrows the choice only.

    Equal to RagTokenForGeneration.generate with the same num_beams, length_penalty and no_repeat_ngram_size, except
    that transformers' length_penalty is 1.0 by default. Marginals are computed in fp32 whatever the autocast dtype. The
    caller puts the generator in eval mode.
    """
    batch, n_docs = checked_shape(context_ids, doc_logprobs, "rag_token", max_length, min_length)
    if not 1 <= n_best <= beams:
        raise OpenBookError(
            "more answers than beams" if beams > 0 else "no beams",
            got=f"n_best {n_best}, beams {beams}",
            expected="1 <= n_best <= beams",
        )
    search = BeamSearch(
        (doc_logprobs > -torch.inf).any(dim=1).tolist(),
        beams=beams,
        max_length=max_length,
        min_length=min_length,
        length_penalty=length_penalty,
        eos=generator.eos_token_id,
        first=generator.first_token_id,
        no_repeat_ngram=no_repeat_ngram,
    )
    memory = generator.encode(context_ids, context_mask)
    first_row = torch.arange(batch * n_docs).view(batch, n_docs, 1)
    tokens = torch.full((batch, 1), generator.decoder_start_token_id)
    cache: Any = None
    while any(search.open):
        rows = tokens.shape[1]
        inputs = tokens[:, None].expand(-1, n_docs, -1).reshape(-1, 1).to(context_ids.device)
        hidden, cache = generator.decode(inputs, memory, context_mask, cache)
        parents, tokens = search.advance(_marginal(generator.logits(hidden[:, -1]), doc_logprobs))
        continued = (first_row * rows + parents[:, None]).flatten()
        if any(search.open) and not torch.equal(continued, torch.arange(len(inputs))):
            cache = generator.reorder(cache, continued.to(context_ids.device))
    return search.best(n_best)


def _marginal(logits: Tensor, doc_logprobs: Tensor) -> Tensor:
    """[batch, rows, vocab] fp32 from logits [batch * n_docs * rows, vocab], a question at a time: nothing else of the
    size of the logits is made."""
    batch, n_docs = doc_logprobs.shape
    parts = logits.view(batch, n_docs, -1, logits.shape[1])
    dtype = torch.promote_types(torch.promote_types(logits.dtype, doc_logprobs.dtype), torch.float32)
    marginal = torch.full((batch, *parts.shape[2:]), -torch.inf, dtype=dtype, device=logits.device)
    for part, prior, into in zip(parts, doc_logprobs, marginal, strict=True):
        # A missing passage's context may be empty, and attention over nothing is NaN: it is left out, not added.
        there = prior > -torch.inf
        if bool(there.any()):
            weighted = part[there].to(dtype)
            weighted += prior[there].to(dtype)[:, None, None] - weighted.logsumexp(-1, keepdim=True)
            torch.logsumexp(weighted, dim=0, out=into)
    return marginal


@dataclass(frozen=True)
class Decoded:
    """The produced answers.

    token_ids: [batch, length], without the start token; end-of-sequence is kept, padding after it.
    sequence_logprob: [batch], log p(y|x) of the produced tokens under the marginal.
    """

    token_ids: Tensor
    sequence_logprob: Tensor


@torch.inference_mode()
def greedy(
    generator: Generator,
    context_ids: Tensor,
    context_mask: Tensor,
    doc_logprobs: Tensor,
    objective: Objective,
    max_length: int,
    min_length: int = 0,
    *,
    no_repeat_ngram: int = 0,
) -> Decoded:
    """Take the most probable token of the marginal at every step, until end-of-sequence or max_length tokens.

    context_ids, context_mask: [batch * n_docs, context_len], the contexts of a question side by side.
    doc_logprobs: [batch, n_docs] fp32, log p(z|x), -inf where there is no passage; such a passage has no influence,
        whatever the generator says about it. A question with no passage at all gets end-of-sequence alone and a
        sequence_logprob of -inf. "closed_book" is one context per question with a doc_logprob of 0.
    max_length, min_length: tokens, end-of-sequence included; min_length forbids end-of-sequence as token 1 to
        min_length - 1. It narrows the choice only, the probabilities stay the model's.
    no_repeat_ngram: no answer has the same so many tokens in a row twice; 0: it may. It too narrows the choice only. An
        answer that could not go on otherwise ends.

    Marginals are computed in fp32 whatever the autocast dtype. The caller puts the generator in eval mode.
    """

    def most_probable(step: int, marginal: Tensor) -> Tensor:
        return marginal.argmax(dim=1)

    return follow(
        most_probable,
        generator,
        context_ids,
        context_mask,
        doc_logprobs,
        objective,
        max_length,
        min_length,
        no_repeat_ngram,
    )


def follow(
    choose: Callable[[int, Tensor], Tensor],
    generator: Generator,
    context_ids: Tensor,
    context_mask: Tensor,
    doc_logprobs: Tensor,
    objective: Objective,
    max_length: int,
    min_length: int,
    no_repeat_ngram: int,
) -> Decoded:
    """One token after another of every question by `choose`, a function of its place (from 0) and the marginal [batch,
    vocab], -inf where a token is ruled out. The other arguments are those of `greedy`."""
    batch, n_docs = checked_shape(context_ids, doc_logprobs, objective, max_length, min_length)
    missing = doc_logprobs == -torch.inf
    hopeless = missing.all(dim=1)
    weights = doc_logprobs.to(torch.promote_types(doc_logprobs.dtype, torch.float32))
    sequence_logprob = weights.new_zeros(batch)
    finished = torch.zeros_like(hopeless)
    eos, pad = generator.eos_token_id, generator.pad_token_id

    memory = generator.encode(context_ids, context_mask)
    cache: Any = None
    newest = torch.full((batch,), generator.decoder_start_token_id, dtype=torch.long, device=context_ids.device)
    produced: list[Tensor] = []
    for length in range(1, max_length + 1):
        inputs = newest.repeat_interleave(n_docs).unsqueeze(1)
        hidden, cache = generator.decode(inputs, memory, context_mask, cache)
        logits = generator.logits(hidden[:, -1]).view(batch, n_docs, -1)
        token_logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        # A missing passage's context may be empty, and attention over nothing is NaN: -inf + NaN would spread.
        token_logprobs = token_logprobs.masked_fill(missing.unsqueeze(2), -torch.inf)
        marginal = torch.logsumexp(weights.unsqueeze(2) + token_logprobs, dim=1)
        if length < min_length:
            marginal[:, eos] = -torch.inf
        if length == 1 and generator.first_token_id is not None:
            only_token(marginal, generator.first_token_id)
        for row, prefix in enumerate(torch.stack(produced, 1).tolist() if no_repeat_ngram and produced else []):
            marginal[row, repeating_tokens(prefix, no_repeat_ngram)] = -torch.inf

        stuck = marginal.amax(dim=1) == -torch.inf
        newest = torch.where(finished, pad, torch.where(stuck, eos, choose(length - 1, marginal)))
        joint = weights + token_logprobs.take_along_dim(newest.view(batch, 1, 1), 2).squeeze(2)
        step_logprob = torch.logsumexp(joint, dim=1, keepdim=True)

        live = ~finished
        sequence_logprob = torch.where(live, sequence_logprob + step_logprob.squeeze(1), sequence_logprob)
        if objective == "rag_sequence":
            weights = torch.where(
                live.unsqueeze(1), joint - step_logprob.masked_fill(hopeless.unsqueeze(1), 0.0), weights
            )

        produced.append(newest)
        finished = finished | (newest == eos)
        if bool(finished.all()):
            break

    return Decoded(torch.stack(produced, dim=1), sequence_logprob)


def checked_shape(
    context_ids: Tensor, doc_logprobs: Tensor, objective: str, max_length: int, min_length: int
) -> tuple[int, int]:
    """(batch, n_docs), or an OpenBookError on what cannot be decoded."""
    if objective not in get_args(Objective):
        raise OpenBookError(
            "unknown objective", got=repr(objective), expected="one of " + ", ".join(get_args(Objective))
        )
    if not 0 <= min_length <= max_length or max_length < 1:
        raise OpenBookError(
            "answers of no possible length",
            got=f"min_length {min_length}, max_length {max_length}",
            expected="0 <= min_length <= max_length and max_length >= 1",
        )
    batch, n_docs = doc_logprobs.shape
    if context_ids.shape[0] != batch * n_docs:
        raise OpenBookError(
            "contexts do not fit doc_logprobs",
            got=f"{context_ids.shape[0]} contexts",
            expected=f"batch {batch} * n_docs {n_docs} = {batch * n_docs}",
        )
    if bool(doc_logprobs.isnan().any()):
        raise OpenBookError(
            "doc_logprobs holds NaN",
            expected="log p(z|x), -inf where there is no passage",
            action="Fill masked passages with -inf after the log-softmax: a row of only masked ones makes it NaN.",
        )
    return batch, n_docs
