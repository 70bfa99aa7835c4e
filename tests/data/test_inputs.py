"""Inputs of the models, against loops written from the layout in the module's docstring."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from openbook.batch import IGNORED_LABEL, MISSING_ROW, NULL_ROW, Retrieved
from openbook.data.corpus import PassageTokens
from openbook.data.inputs import (
    SpecialIds,
    check_question_length,
    context_inputs,
    decoder_inputs,
    special_ids,
    targets,
)
from openbook.data.length_batches import cheapest_passes
from openbook.errors import OpenBookError

BERT = SpecialIds(start=1, sep=2, end=2, pad=0)
T5 = SpecialIds(start=None, sep=3, end=3, pad=0)


TITLES = [[11, 12], [], [13, 14, 15], [16], [17, 18, 19, 20, 21, 22, 23]]
TEXTS = [[31, 32, 33], [34, 35, 36, 37, 38], [39], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50], [51, 52]]
QUESTIONS = [[61, 62, 63], [64], [65, 66, 67, 68, 69]]


@pytest.fixture
def store() -> PassageTokens:
    both = [title + text for title, text in zip(TITLES, TEXTS, strict=True)]
    return PassageTokens(
        np.concatenate(both).astype(np.uint16),
        np.cumsum([0, *map(len, both)]),
        np.asarray([len(title) for title in TITLES], dtype=np.int32),
    )


def unpadded(ids: torch.Tensor, mask: torch.Tensor, pad: int) -> list[list[int]]:
    """The rows without padding; checks that the mask is a prefix and that what it leaves out is padding."""
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert (ids[~mask] == pad).all()
    assert mask.shape[1] == mask.sum(1).max()
    rows = [row[: int(keep.sum())].tolist() for row, keep in zip(ids, mask, strict=True)]
    assert all(keep[: int(keep.sum())].all() for keep in mask)
    return rows


@pytest.mark.parametrize("special", [BERT, T5])
@pytest.mark.parametrize("max_length", [8, 11, 13, 41])
def test_context_inputs_equal_the_layout(store: PassageTokens, special: SpecialIds, max_length: int) -> None:
    rows = np.asarray([[0, 3], [4, 2], [1, 0]])
    start = [] if special.start is None else [special.start]
    expected = []
    for question, docs in zip(QUESTIONS, rows, strict=True):
        for row in docs:
            passage = (TITLES[row] + TEXTS[row])[: max_length - len(start) - 2 - len(question)]
            expected.append([*start, *question, special.sep, *passage, special.end])
    ids, mask = context_inputs(QUESTIONS, store, torch.from_numpy(rows), special, max_length)
    assert unpadded(ids, mask, special.pad) == expected
    assert ids.shape[1] <= max_length


def test_a_missing_row_reads_no_passage_at_all(store: PassageTokens) -> None:
    ids, mask = context_inputs(QUESTIONS[:2], store, np.asarray([[-1, 2, -1], [-1, -1, -1]]), BERT, 17)
    found = unpadded(ids, mask, BERT.pad)
    first, second = [1, 61, 62, 63, 2, 2], [1, 64, 2, 2]
    assert found == [first, [1, 61, 62, 63, 2, 13, 14, 15, 39, 2], first, second, second, second]


def test_the_null_document_is_read_like_a_missing_row_and_counts(store: PassageTokens) -> None:
    rows = np.asarray([[NULL_ROW, MISSING_ROW]])
    (null, missing), _ = context_inputs(QUESTIONS[:1], store, rows, BERT, 17)
    assert null.tolist() == missing.tolist()
    assert Retrieved(torch.from_numpy(rows), torch.zeros(1, 2)).mask.tolist() == [[True, False]]


@pytest.mark.parametrize("row", [-3, 5, 99])
def test_rows_outside_the_corpus_raise(store: PassageTokens, row: int) -> None:
    with pytest.raises(IndexError, match=rf"rows \[{row}\] are not in the corpus of 5 passages"):
        context_inputs(QUESTIONS[:1], store, np.asarray([[0, row]]), BERT, 17)


def test_a_question_longer_than_a_context_is_refused(store: PassageTokens) -> None:
    check_question_length(5, BERT, 8)
    check_question_length(6, T5, 8)
    with pytest.raises(OpenBookError, match=r"longer than a whole context \(q.jsonl:7\): got 6 tokens and 3 special"):
        check_question_length(6, BERT, 8, "q.jsonl:7")
    with pytest.raises(OpenBookError, match="at most 7 in all"):
        context_inputs(QUESTIONS, store, np.zeros((3, 2), np.int64), BERT, 7)


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<a>", "<b>", "one", "two", "three", "four", "<unk>"]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)


def test_special_ids_of_the_three_families() -> None:
    bert = tokenizer(cls_token="<a>", sep_token="<b>", pad_token="<pad>")
    assert special_ids(bert) == SpecialIds(start=1, sep=2, end=2, pad=0)
    bart = tokenizer(bos_token="<a>", cls_token="<a>", eos_token="<b>", sep_token="<b>", pad_token="<pad>")
    assert special_ids(bart) == SpecialIds(start=1, sep=2, end=2, pad=0)
    t5 = tokenizer(eos_token="<b>", pad_token="<pad>")
    assert special_ids(t5) == SpecialIds(start=None, sep=2, end=2, pad=0)
    with pytest.raises(OpenBookError, match=r"lacks a special token.*got no padding token"):
        special_ids(tokenizer(eos_token="<b>"))
    with pytest.raises(OpenBookError, match="neither an end-of-sequence nor a separator"):
        special_ids(tokenizer(pad_token="<pad>"))


def test_targets_end_with_end_of_sequence_whatever_their_length() -> None:
    t5 = tokenizer(eos_token="<b>", pad_token="<pad>")
    labels = targets(t5, ["one two three four", "", "two", "one two"], 3)
    assert labels.dtype == torch.int64
    padding = IGNORED_LABEL
    assert labels.tolist() == [[3, 4, 2], [2, padding, padding], [4, 2, padding], [3, 4, 2]]


def test_decoder_inputs_shift_right() -> None:
    labels = torch.tensor([[3, 4, 2], [2, IGNORED_LABEL, IGNORED_LABEL]])
    assert decoder_inputs(labels, start_id=1, pad_id=0).tolist() == [[1, 3, 4], [1, 2, 0]]
    assert labels[1, 1] == IGNORED_LABEL, "the labels themselves must stay"


@pytest.mark.parametrize("cost", [0, 5, 40, 10_000])
@pytest.mark.parametrize("most", [1, 31, 64, 10_000])
def test_the_cheapest_passes_are_the_cheapest_of_all(cost: int, most: int) -> None:
    """Against every way to cut 11 rows, longest first; a pass holds one row at least."""
    lengths = np.array([7, 13, 13, 29, 2, 5, 17, 29, 11, 3, 19])
    falling = np.sort(lengths)[::-1]

    def price(sizes: list[int]) -> float:
        firsts = np.cumsum([0, *sizes[:-1]])
        padded = [int(falling[first]) * size for first, size in zip(firsts, sizes, strict=True)]
        fits = all(size == 1 or tokens <= most for size, tokens in zip(sizes, padded, strict=True))
        return sum(padded) + cost * len(sizes) if fits else np.inf

    ways = []
    for cuts in range(2 ** (len(lengths) - 1)):
        places = [0, *(place + 1 for place in range(len(lengths) - 1) if cuts >> place & 1), len(lengths)]
        ways.append([stop - start for start, stop in pairwise(places)])
    passes = cheapest_passes(lengths, most, cost)
    assert sorted(np.concatenate(passes).tolist()) == list(range(len(lengths)))
    assert lengths[np.concatenate(passes)].tolist() == falling.tolist()
    assert price([len(part) for part in passes]) == min(price(sizes) for sizes in ways)


def test_no_rows_need_no_pass() -> None:
    assert cheapest_passes(np.array([], dtype=np.int64), 64, 5) == []
