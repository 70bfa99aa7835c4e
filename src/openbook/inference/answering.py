"""Questions to answers with their passages: retrieve, read, decode, compare with the gold answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from openbook.batch import IGNORED_LABEL, Batch, to_device
from openbook.config.evaluation import DecodeConfig
from openbook.data.corpus import Corpus
from openbook.errors import OpenBookError
from openbook.inference.beam_search import Hypothesis
from openbook.inference.evidence import best_passages, found_passages, reading_order
from openbook.inference.likelihood import EncodedOnce, label_logprobs, target_logprobs
from openbook.inference.rag_sequence import rag_sequence_fast, rag_sequence_thorough
from openbook.inference.rag_token import greedy, rag_token_beams
from openbook.inference.sampling import sample, uniforms
from openbook.metrics.matching import exact_match, f1
from openbook.metrics.prediction import Prediction, TokenProvenance
from openbook.metrics.summary import Task
from openbook.models.all_passages.reading import FusedContexts, side_by_side
from openbook.models.contexts import ContextBuilder, encode_contexts, null_documents
from openbook.models.generator import Generator
from openbook.objectives.by_name import OBJECTIVES
from openbook.objectives.marginal import all_passages_nll, doc_logprobs, posterior, token_posterior
from openbook.retrieval.base import Retriever


@dataclass(frozen=True)
class Answering:
    """How questions are answered and what is measured of it.

    targets: texts to labels [n, target_len], as the generator is trained on them; detokenize: ids to text. likelihood:
    the one that decodes ("rag_token", "rag_sequence", "closed_book", or "all_passages" at once). n_docs passages are
    read per question, whatever their number was in training. decode.max_tokens is set. labels: of task "labels".
    utility: whether gold answers are scored, with the passages and without. seed: of answers that are drawn.
    """

    generator: Generator
    contexts: ContextBuilder
    corpus: Corpus
    targets: Callable[[Sequence[str]], Tensor]
    detokenize: Callable[[list[int]], str]
    likelihood: str
    n_docs: int
    decode: DecodeConfig
    task: Task = "qa"
    labels: tuple[str, ...] = ()
    regex: bool = False
    utility: bool = True
    seed: int = 0

    @torch.inference_mode()
    def __call__(
        self, batch: Batch, retriever: Retriever[Any], index_is_exact: bool = False, depth: int = 0
    ) -> list[Prediction]:
        """One Prediction per example of the batch, padding examples (weight 0) left out.

        The index gives the top 20 for recall, or `depth` for a ranking; the first n_docs of them are read, ordered
        (unless the retriever's rerank is -1) and weighted by freshly computed scores, or by the index's own where
        index_is_exact says that they are the same (up to the dtype the corpus was encoded in). The caller puts the
        modules in eval mode.
        """
        top, doc_scores = best_passages(batch, retriever, self.n_docs, index_is_exact, depth)
        ids, mask = self._contexts(batch, top[:, : self.n_docs])
        in_passes = partial(encode_contexts, self.generator, tokens_per_pass=self.contexts.tokens_per_pass)
        encoded: Any = EncodedOnce(self.generator, in_passes)
        memory = encoded.encode(ids, mask)
        reader, read_ids, read_mask, read_scores = encoded, ids, mask, doc_scores
        if self.likelihood == "all_passages":
            reader, read_ids, read_mask = self._together(batch, top[:, : self.n_docs], memory)
            read_scores = torch.where((doc_scores > -torch.inf).any(1, keepdim=True), 0.0, -torch.inf)
        read_memory = reader.encode(read_ids, read_mask)
        candidates: Sequence[Sequence[Hypothesis]] = (
            self._labels(read_memory, read_mask, read_scores)
            if self.task == "labels"
            else self._search(reader, read_ids, read_mask, read_scores, [example.id for example in batch.examples])
        )
        scores_gold = self.utility and not self.regex  # a pattern is no text that could be likely
        gold = [list(self.targets(example.answers)) if scores_gold else [] for example in batch.examples]
        labels = _stacked(
            [[torch.tensor(found[0].token_ids), *others] for found, others in zip(candidates, gold, strict=True)]
        ).to(mask.device)
        # [batch, n_docs (1 of a reader of all), 1 + answers, length] and [batch, 1 + answers]
        token_logprobs = target_logprobs(self.generator, read_memory, read_mask, labels)
        nll = _nll(self.likelihood, token_logprobs, read_scores, labels)
        if self.likelihood == "all_passages":  # what each passage says of the answer that was read from all
            token_logprobs = target_logprobs(self.generator, memory, mask, labels[:, :1])
        alone = self._closed_book_nll(batch, labels) if scores_gold and retriever.has_passages else None
        first = token_logprobs[:, :, 0]
        after = posterior(first, doc_scores, labels[:, 0] != IGNORED_LABEL, self.likelihood)
        predictions = found_passages(batch, top, doc_scores, self.corpus, self.regex, after, depth)
        prior, rows = doc_logprobs(doc_scores).exp().tolist(), top.tolist()
        shares = token_posterior(first, doc_scores).transpose(1, 2).tolist()  # [batch, length, n_docs]
        kept = [number for number in range(len(batch.examples)) if batch.weight[number] > 0]
        for place, number in enumerate(kept):
            order, scored = reading_order(rows[number], prior[number]), slice(1, 1 + len(gold[number]))
            weights = [[share[passage] for passage in order] for share in shares[number]]
            predictions[place] = self._answered(predictions[place], candidates[number], weights)
            if scores_gold:
                predictions[place] = replace(
                    predictions[place],
                    gold_logprob=_finite(-float(nll[number, scored].min())),
                    closed_book_logprob=None if alone is None else _finite(-float(alone[number, scored].min())),
                )
        return predictions

    def _contexts(self, batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        ids, mask = self.contexts(batch.context_questions, rows)
        return to_device(ids, batch.labels.device), to_device(mask, batch.labels.device)

    def _together(self, batch: Batch, rows: Tensor, memory: Any) -> tuple[Any, Tensor, Tensor]:
        """The reader of all passages, with the ids and mask of what it reads; memory: of the passages one by one."""
        both = side_by_side(self.contexts, batch.context_questions, rows)
        ids, mask = (to_device(part, batch.labels.device) for part in both)
        if self.contexts.is_prompt:
            return EncodedOnce(self.generator), ids, mask
        return FusedContexts(self.generator, memory, len(rows)), ids, mask

    def _search(
        self, generator: Any, ids: Tensor, mask: Tensor, doc_scores: Tensor, questions: Sequence[str]
    ) -> Sequence[Sequence[Hypothesis]]:
        how, prior, reads = self.decode, doc_logprobs(doc_scores), self.likelihood
        limits, ngram = (how.max_tokens, how.min_tokens, how.length_penalty, how.n_best), how.no_repeat_ngram
        if how.sample or (reads == "rag_sequence" and how.rag_sequence == "greedy"):
            objective: Any = "closed_book" if reads == "all_passages" else reads  # one context
            if how.sample:
                decoded = sample(
                    generator,
                    ids,
                    mask,
                    prior,
                    objective,
                    uniforms(self.seed, questions, how.max_tokens),
                    how.min_tokens,
                    temperature=how.temperature,
                    top_p=how.top_p,
                    no_repeat_ngram=ngram,
                )
            else:
                ends = (how.max_tokens, how.min_tokens)
                decoded = greedy(generator, ids, mask, prior, objective, *ends, no_repeat_ngram=ngram)
            rows, eos = decoded.token_ids.tolist(), generator.eos_token_id
            cut = [tuple(row[: row.index(eos) + 1] if eos in row else row) for row in rows]
            return [
                [Hypothesis(row, logprob, logprob)]
                for row, logprob in zip(cut, decoded.sequence_logprob.tolist(), strict=True)
            ]
        if reads != "rag_sequence":
            return rag_token_beams(generator, ids, mask, prior, how.beams, *limits, no_repeat_ngram=ngram)
        search = rag_sequence_thorough if how.rag_sequence == "thorough" else rag_sequence_fast
        return search(generator, ids, mask, prior, how.beams, *limits, no_repeat_ngram=ngram)

    @cached_property
    def label_ids(self) -> Tensor:
        """[n_labels], the first token of every label, by which it is told from the others."""
        ids = self.targets(self.labels)[:, 0 if self.generator.first_token_id is None else 1]
        if len(set(ids.tolist())) < len(self.labels):
            raise OpenBookError(
                "labels begin with the same token",
                where="evaluate.labels",
                got=", ".join(self.labels),
                expected="labels that differ in their first token",
            )
        return ids

    def _labels(self, memory: Any, mask: Tensor, doc_scores: Tensor) -> list[list[Hypothesis]]:
        """Every label by the marginal of its first token, likeliest first."""
        ids = self.label_ids.tolist()
        scored = label_logprobs(self.generator, memory, mask, doc_scores, self.label_ids.to(mask.device)).tolist()
        return [
            [Hypothesis((ids[one],), row[one], row[one]) for one in sorted(range(len(ids)), key=lambda n: -row[n])]
            for row in scored
        ]

    def _closed_book_nll(self, batch: Batch, labels: Tensor) -> Tensor:
        ids, mask = self._contexts(batch, null_documents(batch))
        token_logprobs = target_logprobs(self.generator, self.generator.encode(ids, mask), mask, labels)
        return _nll("closed_book", token_logprobs, torch.zeros(len(labels), 1, device=labels.device), labels)

    def _answered(self, found: Prediction, candidates: Sequence[Hypothesis], weights: list[list[float]]) -> Prediction:
        """The passages that were found, with the answer read from them. weights [length, passages read]."""
        texts = [self._text(one) for one in candidates]
        by_token: tuple[TokenProvenance, ...] = ()
        if self.likelihood == "rag_token" and found.passages:
            by_token = tuple(
                TokenProvenance(
                    "(end)" if token == self.generator.eos_token_id else self.detokenize([token]), tuple(own)
                )
                for token, own in zip(candidates[0].token_ids, weights, strict=False)  # behind the answer is padding
            )
        return replace(
            found,
            prediction=texts[0],
            exact_match=exact_match(texts[0], found.answers, self.regex),
            f1=None if self.regex else f1(texts[0], found.answers),
            logprob=_finite(candidates[0].logprob),
            tokens=by_token,
            candidates=tuple(
                (text, one.logprob) for text, one in zip(texts, candidates, strict=True) if math.isfinite(one.logprob)
            ),
            label=texts[0] if self.task == "labels" else "",
        )

    def _text(self, hypothesis: Hypothesis) -> str:
        ids = list(hypothesis.token_ids)
        if self.task == "labels":
            return self.labels[self.label_ids.tolist().index(ids[0])]
        return self.detokenize(ids[:-1] if ids[-1] == self.generator.eos_token_id else ids)


def _finite(logprob: float) -> float | None:
    """None for a question without any passage: its likelihood is not known, and JSON has no infinity."""
    return logprob if math.isfinite(logprob) else None


def _stacked(targets: Sequence[Sequence[Tensor]]) -> Tensor:
    """[batch, n_targets, target_len] from each question's own targets; what is not there is padding."""
    rows = pad_sequence([one for own in targets for one in own], batch_first=True, padding_value=IGNORED_LABEL)
    return pad_sequence(rows.split([len(own) for own in targets]), batch_first=True, padding_value=IGNORED_LABEL)


def _nll(reads: str, token_logprobs: Tensor, doc_scores: Tensor, labels: Tensor) -> Tensor:
    """-log p(y|x) [batch, n_targets] of every target."""
    mask = labels != IGNORED_LABEL
    nll_of = all_passages_nll if reads == "all_passages" else OBJECTIVES[reads]
    parts = [nll_of(token_logprobs[:, :, n], doc_scores, mask[:, n]) for n in range(labels.shape[1])]
    return torch.stack(parts, 1)
