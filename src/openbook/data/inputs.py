"""From token ids to the padded inputs of the generator (data/encoder_inputs.py: of the encoders). No strings here:
passages come from the corpus store as ids.

    context   start question sep title text end       as the generator reads it; the passage is cut, never the question
    labels    (start) answer end, then IGNORED_LABEL; BART and others write their targets with a start

Every batch is padded to its own longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from openbook.batch import IGNORED_LABEL, MISSING_ROW, NULL_ROW
from openbook.data.corpus import PassageTokens
from openbook.errors import OpenBookError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """The special tokens that inputs are made with. `start` is None where the model knows none (T5)."""

    start: int | None
    sep: int
    end: int
    pad: int

    @property
    def n_in_context(self) -> int:
        """Special tokens in one context: start (where there is one), sep and end."""
        return 2 + (self.start is not None)


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """BERT: CLS, SEP, SEP, PAD; BART: <s>, </s>, </s>, <pad>; T5: none, </s>, </s>, <pad>.

    Raises OpenBookError where the tokenizer has no end or no padding token.
    """
    start, sep, end = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.eos_token_id
    start = tokenizer.bos_token_id if start is None else start
    sep, end = end if sep is None else sep, sep if end is None else end
    if end is None or tokenizer.pad_token_id is None:
        raise OpenBookError(
            "the tokenizer lacks a special token",
            where=tokenizer.name_or_path or type(tokenizer).__name__,
            got="no padding token" if end is not None else "neither an end-of-sequence nor a separator token",
            expected="both a padding token and an end-of-sequence (or separator) token",
            action="Set it in the tokenizer's configuration, for example tokenizer.pad_token = tokenizer.eos_token.",
        )
    return SpecialIds(start, sep, end, tokenizer.pad_token_id)


def check_question_length(n_tokens: int, special: SpecialIds, max_length: int, where: object = "") -> None:
    """Raise OpenBookError when a question of n_tokens leaves a context of max_length no room for its special tokens.
    Questions are never cut in a context, so this is checked when the data is set up."""
    if n_tokens + special.n_in_context > max_length:
        raise OpenBookError(
            "a question is longer than a whole context",
            where=where,
            got=f"{n_tokens} tokens and {special.n_in_context} special ones",
            expected=f"at most {max_length} in all",
            action="Shorten the question or raise the context length; the passage needs room beside it.",
        )


def context_inputs(
    question_ids: Sequence[TokenIds],
    tokens: PassageTokens,
    rows: np.ndarray | Tensor,
    special: SpecialIds,
    max_length: int,
) -> tuple[Tensor, Tensor]:
    """As the generator reads them: (context_ids int64, mask bool), both [batch * n_docs, context_len], the contexts of
    one question side by side.

    question_ids: [batch] token ids without special tokens. rows: [batch, n_docs]. A missing row, like the null
    document, gives a context with the question and no passage; its doc_logprob is -inf, so that it counts for nothing.
    Raises OpenBookError on a question that leaves no room for its special tokens, IndexError on a row that is not in
    the corpus.
    """
    rows = np.asarray(rows, dtype=np.int64)
    n_docs = rows.shape[1]
    flat_rows = rows.reshape(-1)
    question_lengths = np.fromiter(map(len, question_ids), dtype=np.int64, count=len(question_ids))
    if question_lengths.size:
        check_question_length(int(question_lengths.max()), special, max_length)
    asked = np.repeat(question_lengths, n_docs)
    present = (flat_rows != MISSING_ROW) & (flat_rows != NULL_ROW)
    readable = np.where(present, flat_rows, 0)  # row 0 stands in only to be cut to no tokens on the next line
    lengths = np.where(present, tokens.length(readable), 0)
    kept = np.minimum(lengths, max_length - special.n_in_context - asked)

    n_start = special.n_in_context - 2
    ids, mask = _blank(n_start + asked + 1 + kept + 1, special)
    every_question = np.fromiter((i for ids in question_ids for i in ids), np.int64, count=int(question_lengths.sum()))
    question_starts = np.repeat(np.cumsum(question_lengths) - question_lengths, n_docs)
    copy_ids(ids, np.full_like(flat_rows, n_start), every_question, question_starts, asked)
    copy_ids(ids, n_start + asked + 1, tokens.flat, tokens.offsets[readable], kept)  # title and text lie side by side
    ids[np.arange(len(flat_rows)), n_start + asked] = special.sep
    return torch.from_numpy(ids), torch.from_numpy(mask)


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text without special tokens."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def decoded(tokenizer: Tokenizer, ids: Sequence[TokenIds]) -> list[str]:
    """The text of each row of ids, without special tokens: of an uncased tokenizer in lower case."""
    return [str(text) for text in tokenizer.batch_decode([list(row) for row in ids], skip_special_tokens=True)]


def target_start(tokenizer: Tokenizer) -> int | None:
    """The token that answers begin with by the tokenizer's own convention for targets; None where they begin with their
    text. BART: <s>; mBART-50, M2M100: the language; T5, Pegasus, Marian: none. A tokenizer without a begin-of-sequence
    token (BERT's) has no such convention: its CLS is what the decoder starts from."""
    if tokenizer.bos_token_id is None and getattr(tokenizer, "tgt_lang", None) is None:
        return None
    try:
        first = tokenizer(text_target="")["input_ids"][0]
    except (TypeError, ValueError, KeyError, IndexError):  # a multilingual one whose target language is not set
        return None
    return None if first == special_ids(tokenizer).end else int(first)


def targets(tokenizer: Tokenizer, answers: Sequence[str], max_length: int) -> Tensor:
    """Labels [batch, target_len] int64: `target_start`, where there is one, each answer's ids and the end-of-sequence,
    then IGNORED_LABEL. An answer over max_length (both included) is cut and keeps its end; an empty one has no ids."""
    end, first = special_ids(tokenizer).end, target_start(tokenizer)
    start = [] if first is None else [first]
    rows = [[*start, *ids[: max_length - 1 - len(start)], end] for ids in token_ids(tokenizer, answers)]
    return padded(rows, IGNORED_LABEL)[0]


def decoder_inputs(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    """[batch, target_len]: what the decoder reads to predict `labels`: start_id, then the labels but the last, with
    pad_id where they are ignored."""
    shifted = labels.new_full(labels.shape, start_id)
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill_(shifted == IGNORED_LABEL, pad_id)


def _blank(lengths: np.ndarray, special: SpecialIds) -> tuple[np.ndarray, np.ndarray]:
    """ids [n, longest] with only start, end and padding in place, and the mask of each row's length."""
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    ids = np.full(mask.shape, special.pad, dtype=np.int64)
    if special.start is not None:
        ids[:, :1] = special.start
    ids[np.arange(len(lengths)), lengths - 1] = special.end
    return ids, mask


def copy_ids(ids: np.ndarray, columns: np.ndarray, flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
    """ids[i, columns[i] : columns[i] + lengths[i]] = flat[starts[i] : starts[i] + lengths[i]] for all i at once."""
    first = np.cumsum(lengths) - lengths
    source = np.arange(int(lengths.sum()))
    target = np.repeat(np.arange(len(lengths)) * ids.shape[1] + columns - first, lengths) + source
    source += np.repeat(starts - first, lengths)
    ids.reshape(-1)[target] = flat[source]  # one index each: half the time of rows and columns


def padded(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """(ids int64, mask bool), both [n, longest]."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    ids = np.full(mask.shape, padding, dtype=np.int64)
    ids[mask] = np.fromiter((i for row in rows for i in row), np.int64, count=int(lengths.sum()))
    return torch.from_numpy(ids), torch.from_numpy(mask)
