"""Prompts of generators: a template around title, passage and question, and for decoder-only ones the answer behind it.

    prompt    (begin) words title words text words question words      in the template's own order
    labels    answer end, then IGNORED_LABEL

The parts are tokenised apart, as the corpus store has the passages already, and joined as ids. One space right before a
field goes with the field: " Paris" is one token of byte-level BPE where " " and "Paris" are two. (A tokenizer that
writes a space before every text, as Llama 2's, has it anyway.)

The template must end with words of its own before the answer: their last token is where every answer starts, what an
encoder-decoder calls its decoder_start_token_id. A context is the prompt without that token. An encoder-decoder with a
template reads all of it, between the special tokens that its tokenizer writes around a text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from openbook.batch import IGNORED_LABEL, MISSING_ROW, NULL_ROW
from openbook.data.corpus import PassageTokens
from openbook.data.inputs import TokenIds, copy_ids, padded, token_ids
from openbook.data.store.pieces import Writing
from openbook.errors import OpenBookError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

PLAIN = "{title}: {passage}\n\nQuestion: {question}\nAnswer: {answer}"
CLOSED = "Question: {question}\nAnswer: {answer}"
FIELDS = ("title", "passage", "question", "answer")
_FIELD = re.compile(r"( ?)\{(\w*)\}")


@dataclass(frozen=True)
class Prompt:
    """A template as token ids. words: [n_fields + 1] ids between the fields, `fields` their names without the answer.
    spaced: the fields that are tokenised with a space before them. end: of every answer; pad: read by nothing.
    between: what separates the passages of a reader of all of them, an empty line.
    encoded: whether an encoder reads the whole prompt; first: ids that answers then begin with (BART's <s>)."""

    words: tuple[tuple[int, ...], ...]
    fields: tuple[str, ...]
    spaced: frozenset[str]
    end: int
    pad: int
    encoded: bool = False
    first: tuple[int, ...] = ()
    between: tuple[int, ...] = ()

    @property
    def start(self) -> int:
        """The prompt's last token, which is the first that the decoder reads."""
        return self.words[-1][-1]

    @property
    def n_in_context(self) -> int:
        """Tokens of a context beside title, text and question."""
        return sum(map(len, self.context_words()))

    def spaced_texts(self, field: str, texts: Sequence[str]) -> list[str]:
        """The texts as they are tokenised at this field."""
        return [f" {text}" for text in texts] if field in self.spaced else list(texts)

    @property
    def spaces(self) -> tuple[str, str]:
        """What stands before title and text where the corpus is tokenised."""
        before = {field: " " if field in self.spaced else "" for field in ("title", "passage")}
        return before["title"], before["passage"]

    @property
    def is_plain(self) -> bool:
        """Whether title and text are tokenised as for an encoder-decoder: with a space before the text alone."""
        return self.spaces == ("", " ")

    @property
    def writing(self) -> Writing:
        """How the corpus is tokenised for it."""
        return Writing(*self.spaces, bare_titles=True)

    def questions(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each question as contexts hold it."""
        return token_ids(tokenizer, self.spaced_texts("question", texts))

    def targets(self, tokenizer: Tokenizer, answers: Sequence[str], max_length: int) -> Tensor:
        """Labels [batch, target_len] int64: `first`, each answer's ids and the end, then IGNORED_LABEL. An answer over
        max_length (all included) is cut and keeps its end; an empty one has no ids."""
        spaced = [self.spaced_texts("answer", [answer])[0] if answer else "" for answer in answers]
        room = max_length - 1 - len(self.first)
        rows = [[*self.first, *ids[:room], self.end] for ids in token_ids(tokenizer, spaced)]
        return padded(rows, IGNORED_LABEL)[0]

    def check_room(self, n_question: int, max_length: int, least: int = 0, where: object = "") -> None:
        """Raise OpenBookError where a question of so many tokens leaves a context of max_length fewer than `least` for
        the passage: neither question nor template is ever cut."""
        if n_question + self.n_in_context + least > max_length:
            raise OpenBookError(
                "contexts have no room for a passage beside the prompt and a question",
                where=where,
                got=f"{max_length} tokens",
                expected=f"at least {self.n_in_context} of the prompt + {n_question} of the question"
                + (f" + {least}" if least else ""),
                action="Raise data.max_context_tokens, or shorten generator.prompt.",
            )

    def inputs(
        self, question_ids: Sequence[TokenIds], tokens: PassageTokens, rows: np.ndarray | Tensor, max_length: int
    ) -> tuple[Tensor, Tensor]:
        """Contexts as the generator reads them, padded on the right: (ids int64, mask bool), both [batch * n_docs,
        context_len], the contexts of one question side by side.

        question_ids: [batch], as `questions` gives them. rows: [batch, n_docs]. Of a passage that is too long the text
        is cut first, then the title. A missing row, like the null document, has an empty title and text.
        """
        rows = np.asarray(rows, dtype=np.int64)
        n_docs, flat_rows = rows.shape[1], rows.reshape(-1)
        asked = np.fromiter(map(len, question_ids), dtype=np.int64, count=len(question_ids))
        self.check_room(int(asked.max(initial=0)), max_length)
        every_question = np.fromiter((i for ids in question_ids for i in ids), np.int64, count=int(asked.sum()))
        present = (flat_rows != MISSING_ROW) & (flat_rows != NULL_ROW)
        readable = np.where(present, flat_rows, 0)  # row 0 stands in only to be cut to no tokens below
        starts, titles = tokens.offsets[readable], tokens.title_lengths[readable].astype(np.int64)
        room = max_length - self.n_in_context - np.repeat(asked, n_docs)
        kept_titles = np.where(present & ("title" in self.fields), np.minimum(titles, room), 0)
        texts = np.where(present & ("passage" in self.fields), tokens.length(readable) - titles, 0)
        sources = {
            "title": (tokens.flat, starts, kept_titles),
            "passage": (tokens.flat, starts + titles, np.minimum(texts, room - kept_titles)),
            "question": (every_question, np.repeat(np.cumsum(asked) - asked, n_docs), np.repeat(asked, n_docs)),
        }
        nowhere, pieces = np.zeros_like(flat_rows), list[tuple[np.ndarray, np.ndarray, np.ndarray]]()
        for words, field in zip(self.context_words(), (*self.fields, ""), strict=True):
            pieces.append((np.asarray(words, dtype=np.int64), nowhere, np.full_like(flat_rows, len(words))))
            if field:
                pieces.append(sources[field])
        lengths = np.sum([length for *_, length in pieces], axis=0)
        mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
        ids = np.full(mask.shape, self.pad, dtype=np.int64)
        column = np.zeros_like(flat_rows)
        for flat, first, length in pieces:
            copy_ids(ids, column, flat, first, length)
            column = column + length
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def context_words(self) -> tuple[tuple[int, ...], ...]:
        """The words of a context; a decoder-only model's ends before the prompt's last token."""
        return self.words if self.encoded else (*self.words[:-1], self.words[-1][:-1])


def with_line_ends(template: str) -> str:
    """The two signs \\n are a line's end, as a shell hands it over."""
    return template.replace("\\n", "\n")


def read_template(template: str, needed: Sequence[str]) -> tuple[list[str], list[str], frozenset[str]]:
    """(words between the fields, fields, fields with a space before them) of a template. OpenBookError on one that
    cannot be a prompt. needed: fields that must be in it."""
    words, fields, spaced, at = list[str](), list[str](), set[str](), 0
    template = with_line_ends(template)
    for found in _FIELD.finditer(template):
        space, field = found.groups()
        words.append(template[at : found.start()])
        fields.append(field)
        if space:
            spaced.add(field)
        at = found.end()
    unknown = [field for field in fields if field not in FIELDS]
    problems = (
        (unknown, f"an unknown field {{{(unknown or [''])[0]}}}"),
        (len(set(fields)) < len(fields), "a field twice"),
        (missing := [field for field in needed if field not in fields], f"no {{{(missing or [''])[0]}}}"),
        (fields[-1:] != ["answer"] or template[at:], "something behind {answer}, or no {answer}"),
        (not words or not words[-1], "no words right before {answer}, from which answers could start"),
    )
    for wrong, what in problems:
        if wrong:
            raise OpenBookError(
                "the prompt cannot be used",
                where="generator.prompt",
                got=f"{template!r}, {what}",
                expected=f"each of {', '.join(f'{{{field}}}' for field in needed)} once, {{answer}} last and words "
                "before it",
                action=f"For example {PLAIN!r}; or plain, chat or auto.",
            )
    return words, fields[:-1], frozenset(spaced)


def make_prompt(
    tokenizer: Tokenizer,
    words: Sequence[str],
    fields: Sequence[str],
    spaced: frozenset[str],
    *,
    begin: Sequence[int],
    end: int,
    pad: int,
    first: tuple[int, ...] = (),
    encoded: bool = False,
) -> Prompt:
    """words [n_fields + 1] as ids, with `end` behind those that an encoder reads. OpenBookError where the tokenizer
    does not know a sign of them."""
    own_space = writes_space(tokenizer)
    ids = [[*begin, *token_ids(tokenizer, [words[0]])[0]], *(_continued(tokenizer, text) for text in words[1:])]
    ids[-1] += [end] if encoded else []
    unknown = tokenizer.unk_token_id
    at = next((text for text, one in zip(words, ids, strict=True) if unknown is not None and unknown in one), None)
    if at is not None or not ids[-1]:
        raise OpenBookError(
            "the tokenizer cannot write the prompt",
            where="generator.prompt",
            got=repr(words[-1] if at is None else at),
            expected="words that are in its vocabulary",
            action="Set a generator.prompt of words that it knows.",
        )
    lines = (tuple(_continued(tokenizer, text)) for text in ("\n\n", "\n", " "))
    between = next((one for one in lines if one and unknown not in one), ())
    written = tuple(map(tuple, ids))
    bare = frozenset() if own_space else spaced
    return Prompt(written, tuple(fields), bare, end, pad, encoded, first, between)


def writes_space(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts a space before every text, as SentencePiece's dummy prefix does."""
    return tokenizer.convert_ids_to_tokens(token_ids(tokenizer, ["a"])[0])[0].startswith("\u2581")


def _continued(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that stands behind another, without the space that some tokenizers put before every text."""
    alone = token_ids(tokenizer, [text])[0]
    if not text or not writes_space(tokenizer):
        return alone
    for before in ("a", ".", "\n"):
        one, both = token_ids(tokenizer, [before, before + text])
        if both[: len(one)] == one:
            return both[len(one) :]
    return alone
