"""Beam search over next-token log-probabilities, whatever they come from; batched over questions.

At every step the 2 * beams best continuations of a question are examined, best first. Those that end (end-of-sequence,
or the last token allowed) become hypotheses if they are among the first `beams`; the others go on, as many as there are
beams. A question is done when it has `beams` hypotheses and its best running prefix, scored at its present length,
does not beat the worst of them. That is what transformers' beam search does with early_stopping=False. Its
length_penalty is 1.0 unless told otherwise; here it is 0.0, which ranks by probability.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """An answer that was found.

    token_ids: without the start token; end-of-sequence is kept where it was produced.
    logprob: log p(y|x) of these tokens. score: logprob / len(token_ids) ** length_penalty, which
        ranks hypotheses.
    """

    token_ids: tuple[int, ...]
    logprob: float
    score: float


class BeamSearch:
    """The state of a search: give `advance` the log-probabilities of the next token, then continue the rows it names.

    Every question starts with one row, the empty prefix, and has `beams` rows after the first step. possible: [batch],
    False for questions that have no probabilities at all; those get end-of-sequence alone, of log-probability -inf.
    first: the one token that every answer begins with, if there is one; its probability counts as any other's.
    no_repeat_ngram: no answer has the same so many tokens in a row twice; 0: it may.
    """

    def __init__(
        self,
        possible: list[bool],
        *,
        beams: int,
        max_length: int,
        min_length: int,
        length_penalty: float,
        eos: int,
        first: int | None = None,
        no_repeat_ngram: int = 0,
    ):
        self.beams, self.max_length, self.min_length = beams, max_length, min_length
        self.length_penalty, self.eos, self.first = length_penalty, eos, first
        self.no_repeat_ngram = no_repeat_ngram
        self.length = 0
        self.open = list(possible)
        self._prefixes: list[list[tuple[int, ...]]] = [[()] for _ in possible]
        self._running: Tensor = torch.zeros(len(possible), 1)
        self._found: list[list[Hypothesis]] = [[] for _ in possible]

    def advance(self, logprobs: Tensor) -> tuple[Tensor, Tensor]:
        """parents and tokens [batch, beams] int64, on the CPU: row i of the next step is row parents[b, i] of this one
        with tokens[b, i] after it. logprobs: [batch, rows, vocab]; it is changed."""
        self.length += 1
        rows, vocab = logprobs.shape[1:]
        if self.length < self.min_length:
            logprobs[:, :, self.eos] = -torch.inf
        if self.length == 1 and self.first is not None:
            only_token(logprobs, self.first)
        for b, prefixes in enumerate(self._prefixes if self.no_repeat_ngram else []):
            for row, prefix in enumerate(prefixes):
                logprobs[b, row, repeating_tokens(prefix, self.no_repeat_ngram)] = -torch.inf
        logprobs += self._running.to(logprobs)[:, :, None]
        best = logprobs.flatten(1).topk(min(2 * self.beams, rows * vocab), dim=1)
        candidates = (
            [(value, *divmod(place, vocab)) for value, place in zip(*row, strict=True)]
            for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        chosen = [self._question(b, row) if self.open[b] else [] for b, row in enumerate(candidates)]
        # Where too little goes on, rows that can never be chosen keep the shape.
        filled = [going + [(-math.inf, 0, self.eos)] * (self.beams - len(going)) for going in chosen]
        self._running = torch.tensor([[row[0] for row in going] for going in filled], dtype=best.values.dtype)
        parents, tokens = (torch.tensor([[row[part] for row in going] for going in filled]) for part in (1, 2))
        return parents, tokens

    def _question(self, b: int, candidates: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
        """(log-probability, row, token) of what goes on, at most one for each beam; what ends is kept as found."""
        divisor = self.length**self.length_penalty
        prefixes, found = self._prefixes[b], self._found[b]
        going: list[tuple[float, int, int]] = []
        for rank, (logprob, row, token) in enumerate(candidates):
            if logprob == -math.inf or math.isnan(logprob):
                continue
            if token == self.eos or self.length == self.max_length:
                if rank < self.beams:
                    found.append(Hypothesis((*prefixes[row], token), logprob, logprob / divisor))
            elif len(going) < self.beams:
                going.append((logprob, row, token))
        found.sort(key=lambda hypothesis: -hypothesis.score)
        del found[self.beams :]
        self._prefixes[b] = [(*prefixes[row], token) for _, row, token in going]
        self.open[b] = bool(going) and not (len(found) == self.beams and going[0][0] / divisor <= found[-1].score)
        return going if self.open[b] else []

    def best(self, n_best: int) -> list[list[Hypothesis]]:
        """The n_best hypotheses of every question, best first; fewer where fewer were found, at least one."""
        return [found[:n_best] or [Hypothesis((self.eos,), -math.inf, -math.inf)] for found in self._found]


def repeating_tokens(prefix: Sequence[int], n: int) -> list[int]:
    """The tokens that would make the last n tokens, n >= 1, the same as n tokens in a row before them. The start token,
    which the answer does not hold, does not count; in transformers' generate it does."""
    newest = tuple(prefix[len(prefix) - n + 1 :])
    return [prefix[at + n - 1] for at in range(len(prefix) - n + 1) if tuple(prefix[at : at + n - 1]) == newest]


def only_token(logprobs: Tensor, token: int) -> None:
    """Rule out every other token, in place; the probability of this one stays what it is."""
    kept = logprobs[..., token].clone()
    logprobs.fill_(-torch.inf)
    logprobs[..., token] = kept
