"""From texts to the padded inputs of the encoders, by each tokenizer's own template.

    question   before (prefix question) after
    passage    before (prefix title) between (text) after           pair: the tokenizer's template for two texts
               before (prefix title text) after                     joined: one text, a space between title and text

What stands in brackets is tokenised as one string: most tokenizers write a word differently at the start of a text.
Token types are left at their default, 0 for both texts of a pair, as in DPR (Karpukhin et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from openbook.batch import MISSING_ROW
from openbook.data.corpus import PassageTokens
from openbook.data.inputs import SpecialIds, TokenIds, copy_ids, special_ids, token_ids
from openbook.data.store.pieces import Writing
from openbook.errors import OpenBookError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Layout = Literal["pair", "joined", "separated"]


@dataclass(frozen=True, slots=True)
class EncoderFormat:
    """What an encoder's tokenizer puts around a text and between title and text (token ids), how it pads, and the
    prefix before every text. `between` is empty where title and text are joined."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    pad: int
    pads_left: bool = False
    layout: Layout = "pair"
    prefix: str = ""

    @property
    def n_special(self) -> int:
        """Special tokens of one passage."""
        return len(self.before) + len(self.between) + len(self.after)

    @property
    def n_around(self) -> int:
        """Special tokens of one question."""
        return len(self.before) + len(self.after)

    @property
    def is_plain(self) -> bool:
        """Whether title and text are tokenised as the generator's are: apart, with a space before the text."""
        return self.layout == "separated" and not self.prefix

    def question_ids(self, tokenizer: Tokenizer, questions: Sequence[str]) -> list[list[int]]:
        """Token ids of prefix and question, without special tokens."""
        return token_ids(tokenizer, [self.prefix + question for question in questions])

    @property
    def writing(self) -> Writing:
        """How the corpus is tokenised for it."""
        return Writing(self.prefix, " " if self.layout == "separated" else "", joined=self.layout == "joined")


def separated(special: SpecialIds, prefix: str = "") -> EncoderFormat:
    """start title sep text end, whatever the tokenizer's template is."""
    before = () if special.start is None else (special.start,)
    return EncoderFormat(before, (special.sep,), (special.end,), special.pad, layout="separated", prefix=prefix)


def encoder_format(tokenizer: Tokenizer, layout: Layout = "pair", prefix: str = "") -> EncoderFormat:
    """The tokenizer's template for one text, or for two with layout "pair", found by what it writes around a letter.

    BERT: CLS, SEP, SEP; RoBERTa, MPNet: <s>, </s></s>, </s>; T5: none, </s>, </s>; Qwen3-Embedding: none, none,
    <|endoftext|>. Padding is the tokenizer's, its token and its side; without a padding token the end-of-sequence,
    which the mask hides. Raises OpenBookError where a template for two texts puts nothing between them, or there is
    no token to pad with.
    """
    if layout == "separated":
        return separated(special_ids(tokenizer), prefix)
    first, second = token_ids(tokenizer, ["a", "b"])
    around = tokenizer("a", return_attention_mask=False)["input_ids"]
    start = _place(first, around, tokenizer)
    before, after = around[:start], around[start + len(first) :]
    between: list[int] = []
    if layout == "pair":
        both = tokenizer("a", "b", return_attention_mask=False)["input_ids"]
        end = _place(first, both, tokenizer) + len(first)
        between = both[end : end + _place(second, both[end:], tokenizer)]
        if [*before, *first, *between, *second, *after] != both or not between:
            raise OpenBookError(
                "the encoder's tokenizer has no template that separates two texts",
                where="retriever.passage_layout",
                got=f"pair: {tokenizer.convert_ids_to_tokens(both)} for a and b",
                expected="a token between the two, and around them what is around one",
                action="Set retriever.passage_layout=joined.",
            )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise OpenBookError(
            "the encoder's tokenizer has no token to pad with",
            where=tokenizer.name_or_path or type(tokenizer).__name__,
            got="neither a padding nor an end-of-sequence token",
            action="Set tokenizer.pad_token and save it again.",
        )
    left = tokenizer.padding_side == "left"
    return EncoderFormat(tuple(before), tuple(between), tuple(after), pad, left, layout, prefix)


def question_inputs(questions: Sequence[TokenIds], style: EncoderFormat, max_length: int) -> tuple[Tensor, Tensor]:
    """As the question encoder reads them: (ids int64, mask bool), both [batch, question_len], padded to the longest; a
    question over max_length (special tokens included) is cut and keeps what is after it."""
    room = max_length - style.n_around
    kept = [ids[:room] for ids in questions]
    lengths = np.fromiter(map(len, kept), dtype=np.int64, count=len(kept))
    ids, mask, starts = _blank(style.n_around + lengths, style)
    every = np.fromiter((i for row in kept for i in row), np.int64, count=int(lengths.sum()))
    copy_ids(ids, starts + len(style.before), every, np.cumsum(lengths) - lengths, lengths)
    return torch.from_numpy(ids), torch.from_numpy(mask)


def passage_inputs(
    tokens: PassageTokens, rows: Sequence[int] | np.ndarray | Tensor, style: EncoderFormat, max_length: int
) -> tuple[Tensor, Tensor]:
    """As the passage encoder reads them: (ids int64, mask bool), both [n, passage_len], padded to the longest.

    The text is cut first; a title is cut only when it alone does not fit. Raises IndexError on a row that is not in
    the corpus: a missing row has no passage to encode.
    """
    rows = np.asarray(rows, dtype=np.int64).reshape(-1)
    if (rows == MISSING_ROW).any():
        raise IndexError(f"row {MISSING_ROW} is a missing hit: there is no passage to encode; mask it first")
    lengths = tokens.length(rows)
    sources, titles = tokens.offsets[rows], tokens.title_lengths[rows].astype(np.int64)
    room = max_length - style.n_special
    kept_titles = np.minimum(titles, room)
    kept_texts = np.minimum(lengths - titles, room - kept_titles)
    ids, mask, starts = _blank(style.n_special + kept_titles + kept_texts, style)
    starts = starts + len(style.before)
    copy_ids(ids, starts, tokens.flat, sources, kept_titles)
    copy_ids(ids, starts + kept_titles + len(style.between), tokens.flat, sources + titles, kept_texts)
    for place, token in enumerate(style.between):
        ids[np.arange(len(rows)), starts + kept_titles + place] = token
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _blank(lengths: np.ndarray, style: EncoderFormat) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids [n, longest] with only what is around the texts and padding in place, the mask of each row's length, and the
    column where each row starts."""
    longest = int(lengths.max(initial=0))
    starts = longest - lengths if style.pads_left else np.zeros_like(lengths)
    columns, rows = np.arange(longest), np.arange(len(lengths))
    mask = columns < lengths[:, None] if not style.pads_left else columns >= starts[:, None]
    ids = np.full(mask.shape, style.pad, dtype=np.int64)
    for place, token in enumerate(style.before):
        ids[rows, starts + place] = token
    for place, token in enumerate(reversed(style.after), 1):
        ids[rows, starts + lengths - place] = token
    return ids, mask, starts


def _place(part: list[int], whole: list[int], tokenizer: Tokenizer) -> int:
    """Where a letter's ids stand in what the tokenizer makes of it."""
    for start in range(len(whole) - len(part) + 1):
        if part and whole[start : start + len(part)] == part:
            return start
    raise OpenBookError(
        "the encoder's tokenizer writes a text otherwise within its template than alone",
        where=tokenizer.name_or_path or type(tokenizer).__name__,
        got=f"{whole}, in which {part} is not found",
        expected="special tokens around the text alone",
    )
