"""Inputs of the encoders, against loops written from the layout in the module's docstring and real tokenizers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors

from openbook.batch import NULL_ROW
from openbook.data.corpus import PassageTokens
from openbook.data.corpus_build import build_corpus, tokens_fingerprint
from openbook.data.encoder_inputs import EncoderFormat, encoder_format, passage_inputs, question_inputs
from openbook.data.inputs import token_ids
from openbook.errors import OpenBookError
from tests.data.test_inputs import QUESTIONS, TEXTS, TITLES, unpadded
from tests.data.test_inputs import store as store  # a fixture
from tests.encoder_families import byte_level, passages_of, texts_of

BERT = EncoderFormat((1,), (2,), (2,), pad=0)
FORMATS = {
    "BERT": BERT,
    "T5": EncoderFormat((), (3,), (3,), pad=0),
    "RoBERTa": EncoderFormat((1,), (2, 2), (2,), pad=5),
    "padded on the left": EncoderFormat((1, 4), (6, 7, 8), (2, 3), pad=0, pads_left=True),
    "without separator": EncoderFormat((), (), (9,), pad=9, pads_left=True),
}


@pytest.mark.parametrize("style", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("max_length", [9, 11, 13, 29])
def test_passage_inputs_equal_the_layout(store: PassageTokens, style: EncoderFormat, max_length: int) -> None:
    rows = [3, 0, 4, 1, 2, 3, 0]
    room = max_length - style.n_special
    expected = []
    for row in rows:
        title = TITLES[row][:room]
        text = TEXTS[row][: room - len(title)]
        expected.append([*style.before, *title, *style.between, *text, *style.after])
    ids, mask = passage_inputs(store, rows, style, max_length)
    if style.pads_left:
        assert unpadded(ids.flip(1), mask.flip(1), style.pad) == [row[::-1] for row in expected]
    else:
        assert unpadded(ids, mask, style.pad) == expected


@pytest.mark.parametrize("row", [-3, 5, 99, NULL_ROW])
def test_rows_outside_the_corpus_raise(store: PassageTokens, row: int) -> None:
    with pytest.raises(IndexError, match="not in the corpus"):
        passage_inputs(store, [0, row], BERT, 17)


def test_a_missing_row_is_no_passage_to_encode(store: PassageTokens) -> None:
    with pytest.raises(IndexError, match="missing hit"):
        passage_inputs(store, [0, -1], BERT, 17)


def test_no_rows_and_no_passages(store: PassageTokens) -> None:
    ids, mask = passage_inputs(store, [], BERT, 17)
    assert ids.shape == mask.shape == (0, 0)
    empty = PassageTokens(np.zeros(0, np.uint16), np.zeros(2, np.int64), np.zeros(1, np.int32))
    assert passage_inputs(empty, [0], BERT, 17)[0].tolist() == [[1, 2, 2]]


def test_question_inputs_are_cut_with_their_end_kept() -> None:
    ids, mask = question_inputs(QUESTIONS, BERT, 5)
    assert unpadded(ids, mask, 0) == [[1, 61, 62, 63, 2], [1, 64, 2], [1, 65, 66, 67, 2]]
    assert question_inputs([[]], FORMATS["T5"], 5)[0].tolist() == [[3]]
    ids, mask = question_inputs(QUESTIONS, FORMATS["without separator"], 4)
    assert ids.tolist() == [[61, 62, 63, 9], [9, 9, 64, 9], [65, 66, 67, 9]]
    assert mask.tolist() == [[True] * 4, [False, False, True, True], [True] * 4]


# Templates and texts, as transformers' tokenizers write them

TOKENIZERS = [
    *("BertTokenizer", "MPNetTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer", "DebertaV2Tokenizer"),
    *("DebertaTokenizer", "T5Tokenizer"),
]


def trained(name: str, data: Path) -> transformers.PreTrainedTokenizerBase:
    return getattr(transformers, name)().train_new_from_iterator(texts_of(data), vocab_size=300)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_inputs_are_the_tokenizers_own(name: str, side: str, small_data: Path, tmp_path: Path) -> None:
    """Questions, and passages in both layouts, with a prefix."""
    tokenizer = trained(name, small_data)
    tokenizer.padding_side = side
    pairs = [(one["title"], one["text"]) for one in passages_of(small_data)]
    prefix = "passage: "
    for layout in ("pair", "joined"):
        style = encoder_format(tokenizer, layout, prefix)
        corpus = build_corpus(
            small_data / "passages.jsonl", {"encoder": tokenizer}, tmp_path / layout, formats={"encoder": style}
        )
        ids, mask = passage_inputs(corpus.tokens("encoder"), range(37), style, 200)
        if layout == "pair":
            given = ([prefix + title for title, _ in pairs], [text for _, text in pairs])
        else:
            given = ([f"{prefix}{title} {text}" for title, text in pairs],)
        expected = tokenizer(*given, padding=True, return_tensors="pt")
        assert torch.equal(ids, expected["input_ids"])
        assert torch.equal(mask, expected["attention_mask"].bool())
    questions = ["what is alpha ?", "which river flows through the capital of delta ?", ""]
    style = encoder_format(tokenizer, "joined", "query: ")
    ids, mask = question_inputs(style.question_ids(tokenizer, questions), style, 200)
    expected = tokenizer([f"query: {question}" for question in questions], padding=True, return_tensors="pt")
    assert torch.equal(ids, expected["input_ids"]) and torch.equal(mask, expected["attention_mask"].bool())


def test_a_passage_without_a_title(small_data: Path) -> None:
    tokenizer = trained("RobertaTokenizer", small_data)
    writing = encoder_format(tokenizer, "joined").writing
    ids = writing.ids(lambda texts: token_ids(tokenizer, texts), [("", "alpha"), ("a", "b")])
    assert [tokenizer.decode(text) for title, text in ids if not title] == ["alpha", "a b"]


def test_a_tokenizer_without_a_template_for_two_texts(small_data: Path) -> None:
    tokenizer = byte_level("", "<|endoftext|>", "<|endoftext|>", left=True)(texts_of(small_data))
    style = encoder_format(tokenizer, "joined")
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert style == EncoderFormat((), (), (end,), end, pads_left=True, layout="joined")
    with pytest.raises(OpenBookError, match=r"separates two texts \(retriever.passage_layout\).*passage_layout=joined"):
        encoder_format(tokenizer, "pair")


def test_without_a_padding_token_the_end_pads(small_data: Path) -> None:
    tokenizer = trained("GPT2Tokenizer", small_data)
    assert tokenizer.pad_token is None
    assert encoder_format(tokenizer, "joined").pad == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(OpenBookError, match="no token to pad with"):
        encoder_format(tokenizer, "joined")


def test_a_template_that_changes_the_text_is_refused(small_data: Path) -> None:
    tokenizer = trained("BertTokenizer", small_data)
    special = [("[SEP]", tokenizer.sep_token_id)]
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(single="[SEP]", pair="$A $B", special_tokens=special)
    with pytest.raises(OpenBookError, match="otherwise within its template than alone"):
        encoder_format(tokenizer, "joined")


def test_token_ids_are_stored_once_for_each_way_of_writing_them(small_data: Path, tmp_path: Path) -> None:
    """A pair is what the generator reads, too, only where a space before a text is nothing to the tokenizer."""
    for name, alike in (("BertTokenizer", True), ("RobertaTokenizer", False)):
        tokenizer = trained(name, small_data)
        styles = [
            encoder_format(tokenizer, layout, prefix)  # type: ignore[arg-type]
            for layout, prefix in (("separated", ""), ("pair", ""), ("joined", ""), ("joined", "a"), ("joined", "b"))
        ]
        names = [tokens_fingerprint(tokenizer, style) for style in styles]
        assert len(set(names)) == (4 if alike else 5)
        assert (names[0] == names[1]) == alike
