from __future__ import annotations

import math
import random

import numpy as np
import pytest
from torchmetrics.functional.text import bleu_score
from torchmetrics.functional.text.rouge import rouge_score

from openbook.errors import OpenBookError
from openbook.metrics.generation import QBleuWeights, bleu_1, bleu_1_counts, distinct_n, q_bleu_1, rouge_l, words

WORDS = [
    "the",
    "The",
    "river",
    "Chad,",
    "5,000.5",
    "don't",
    "is",
    "of",
    "São",
    "Paulo.",
    "U.S.",
    "?",
    "$3",
    "well-known",
]
EXAMPLE = QBleuWeights(entities=0.6, relevant=0.1, question_type=0.2, delta=0.7)
"""The weights of the released script's own example and tests."""


def texts(draw: random.Random, most: int = 9) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(0, most)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The cat, the CAT.", ("the", "cat", "the", "cat")),
        ("It cost $5,000.50 -- or 12:30?", ("it", "cost", "$", "5,000.50", "or", "12:30")),
        ("don't stop, «now»", ("don't", "stop", "now")),
        ("U.S. well-known Chad,Mali", ("u.s", "well-known", "chad", "mali")),
        ("Sa\u0303o", ("são",)),
        ("हिन्दी", ("हिन्दी",)),
        ("... ?!", ()),
        ("", ()),
    ],
)
def test_words(text: str, found: tuple[str, ...]) -> None:
    assert words(text) == found


def test_rouge_l_by_hand() -> None:
    # longest common subsequence "police the gunman": 3 of 4 and 3 of 4
    assert rouge_l("police kill the gunman", ["police killed the gunman"]) == pytest.approx(0.75)
    # "the gunman" alone keeps its order: 2 of 4, although all words but one are shared (Lin 2004, section 3)
    assert rouge_l("the gunman kill police", ["police killed the gunman"]) == pytest.approx(0.5)
    # P = 2/2 and R = 2/4 with beta 1: 2/3; with beta 1.2: 2.44 * 0.5 / (0.5 + 1.44)
    assert rouge_l("the dog", ["the big dog ran"], beta=1.0) == pytest.approx(2 / 3)
    assert rouge_l("the dog", ["the big dog ran"]) == pytest.approx(2.44 * 0.5 / 1.94)
    # best precision (1, of the second answer) and best recall (1/1, of the third)
    assert rouge_l("the dog", ["x y", "the big dog ran", "dog"]) == pytest.approx(1.0)
    assert rouge_l("", ["x"]) == rouge_l("x", [""]) == rouge_l("", [""]) == rouge_l("a", ["b"]) == 0.0


def test_rouge_l_agrees_with_torchmetrics() -> None:
    draw = random.Random(5)
    seen = set()
    for _ in range(200):
        produced, gold = texts(draw), texts(draw)
        theirs = rouge_score(
            produced, gold, rouge_keys="rougeL", normalizer=lambda text: text, tokenizer=lambda text: list(words(text))
        )
        assert rouge_l(produced, [gold], beta=1.0) == pytest.approx(theirs["rougeL_fmeasure"].item(), abs=1e-6)
        seen.add(round(rouge_l(produced, [gold]), 3))
    assert len(seen) > 20


def test_bleu_1_by_hand() -> None:
    # Papineni et al. 2002, example 2: "the" counts as often as one reference has it, 2 of 7
    seven, references = "the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"]
    assert bleu_1_counts(seven, references) == (2, 7, 7)
    assert bleu_1(np.array([2, 7, 7])) == pytest.approx(2 / 7)
    assert bleu_1_counts("a b c", ["a b c d e", "x"]) == (3, 3, 1)  # as near: the shorter
    assert bleu_1_counts("", ["a b"]) == (0, 0, 2)
    # 5 matched of 6 produced, 9 in the references: brevity penalty exp(1 - 9/6)
    assert bleu_1(np.array([5.0, 6.0, 9.0])) == pytest.approx(5 / 6 * math.exp(-0.5))
    assert bleu_1(np.array([[0.0, 0.0, 2.0], [3.0, 3.0, 1.0]])).tolist() == [0.0, 1.0]


def test_bleu_1_agrees_with_torchmetrics() -> None:
    draw = random.Random(6)
    seen = set()
    for _ in range(60):
        produced = [texts(draw) for _ in range(draw.randint(1, 5))]
        # torchmetrics takes the first of two answers equally near in length, the published scorers the shorter
        golds = [
            sorted((texts(draw) for _ in range(draw.randint(1, 3))), key=lambda t: len(words(t))) for _ in produced
        ]
        counts = np.array([bleu_1_counts(*pair) for pair in zip(produced, golds, strict=True)]).sum(axis=0)
        theirs = bleu_score(
            [" ".join(words(text)) for text in produced],
            [[" ".join(words(t)) for t in group] for group in golds],
            n_gram=1,
        )
        assert float(bleu_1(counts)) == pytest.approx(theirs.item(), abs=1e-6)
        seen.add(round(theirs.item(), 3))
    assert len(seen) > 20


def test_q_bleu_1_gives_the_released_scripts_number() -> None:
    # Its own test asks for 0.765 where fluency is 0.8 (ROUGE-L there, BLEU-1 here: 4 of 5 words either way):
    # entities {Is} 1, relevant {great question} 1/2, no question word 0, function words 1.
    pair = ("Is this a great question?", ["Is this a good question?"])
    assert q_bleu_1(*pair, weights=EXAMPLE) == pytest.approx(0.7 * (0.6 + 0.1 / 2 + 0 + 0.1) + 0.3 * 0.8)
    assert q_bleu_1(*pair, weights=EXAMPLE) == pytest.approx(0.765)


def test_q_bleu_1_by_hand() -> None:
    produced, gold = "Which river crosses Mali ?", "Which long river flows through Mali and Niger?"
    # entities {mali} and {mali, niger}: P = 1 * exp(1 - 2/1), R = 1/2: F = 2PR / (P + R)
    short = math.exp(-1)
    entities = 2 * short * 0.5 / (short + 0.5)
    # question type {which river} and {which long}: 1/2. relevant {crosses} and {river flows}: 0
    # function words {} and {through and}: 0. All words: {which river mali} of 4, gold has 8: 3/4 * exp(1 - 8/4)
    answerability = 0.41 * entities + 0.36 * 0 + 0.2 * 0.5 + 0.03 * 0
    expected = 0.66 * answerability + 0.34 * 0.75 * math.exp(-1)
    assert q_bleu_1(produced, [gold]) == pytest.approx(expected)
    assert q_bleu_1(produced, ["?", gold, "x"]) == pytest.approx(expected)
    same = "Which big river flows through Mali and the north?"
    assert q_bleu_1(same, [same]) == pytest.approx(1.0)
    assert q_bleu_1("", [same]) == q_bleu_1("", [""]) == q_bleu_1(same, ["...?"]) == 0.0


def test_a_wrong_entity_costs_more_than_a_wrong_word() -> None:
    gold = ["Which river flows through Mali?"]
    other_verb, other_land = "Which river crosses through Mali?", "Which river flows through Chad?"
    # 4 of 5 words are right either way
    assert q_bleu_1(other_verb, gold) - q_bleu_1(other_land, gold) == pytest.approx(0.66 * (0.41 - 0.36))


def test_distinct_n_by_hand() -> None:
    told = ["the cat sat", "The cat ran", "no"]
    assert distinct_n(told, 1) == 5 / 7
    assert distinct_n(told, 2) == 3 / 4
    assert distinct_n(told, 3) == 2 / 2
    assert distinct_n(told, 4) is None
    assert distinct_n(["a a a"], 2) == 1 / 2  # no n-gram spans two texts
    assert distinct_n(["a b", "a b"], 2) == 1 / 2


def test_no_answers_is_an_error() -> None:
    for metric in (rouge_l, bleu_1_counts, q_bleu_1):
        with pytest.raises(OpenBookError, match="a prediction needs a list of answers"):
            metric("x", [])
