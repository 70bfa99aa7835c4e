from __future__ import annotations

import itertools
import random

import pytest
from torchmetrics.functional.text import squad

from openbook.errors import OpenBookError
from openbook.metrics.matching import answers_in_texts, exact_match, f1, has_answer, normalize_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat, sat.", "cat sat"),
        ("An apple a day", "apple day"),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("the", ""),
        ("Theodore-the-Great", "theodorethegreat"),
        ("São Paulo\n", "são paulo"),
    ],
)
def test_normalize_answer(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


def test_f1_by_hand() -> None:
    # produced: big red dog (3 tokens), gold: red dog house party (4): 2 in common, P = 2/3, R = 2/4, F1 = 4/7
    assert f1("the big red dog", ["red dog house party"]) == pytest.approx(4 / 7)
    # a token counts as often as both have it: common = 1, P = 1/3, R = 1/1
    assert f1("no no no", ["no"]) == pytest.approx(0.5)
    assert f1("x", ["y", "x"]) == 1.0


def test_answers_agree_with_torchmetrics() -> None:
    words = ["the", "a", "An", "Paris", "paris.", "New", "York", "U.S.", "42", "é", "-", "dog's", "", "THE,", "«x»"]
    draw = random.Random(7)
    cases = [(a, [b]) for a, b in itertools.product(words, repeat=2)]
    cases += [
        (
            " ".join(draw.choices(words, k=draw.randint(0, 6))),
            [" ".join(draw.choices(words, k=draw.randint(0, 6))) for _ in range(draw.randint(1, 4))],
        )
        for _ in range(400)
    ]
    seen = set()
    for produced, golds in cases:
        theirs = squad(
            [{"prediction_text": produced, "id": "1"}],
            [{"answers": {"answer_start": [0] * len(golds), "text": golds}, "id": "1"}],
        )
        assert exact_match(produced, golds) == pytest.approx(theirs["exact_match"].item() / 100), (produced, golds)
        assert f1(produced, golds) == pytest.approx(theirs["f1"].item() / 100, abs=1e-6), (produced, golds)
        seen.add(round(f1(produced, golds), 3))
    assert len(seen) > 10


@pytest.mark.parametrize("answers", [[], "Paris"])
def test_no_answers_is_an_error(answers: list[str] | str) -> None:
    with pytest.raises(
        OpenBookError, match=r"a prediction needs a list of answers: got .*, expected at least one text"
    ):
        exact_match("Paris", answers)


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("The party was in Rome.", ["art"], False),
        ("The ART of war", ["art"], True),
        ("He went to New  York, then home", ["new york"], True),
        ("He went to New-York", ["New York"], False),
        ("York, New", ["New York"], False),
        ("the São Paulo skyline", ["Sa\u0303o Paulo"], True),
        ("the Sao Paulo skyline", ["São Paulo"], False),
        ("It cost $5.00 there", ["$5.00"], True),
        ("It cost $5.007 there", ["5.00"], False),
        ("anything", ["", "  "], False),
        ("", ["x"], False),
        ("a\u00a0b\nc", ["a b c"], True),
        ("in 1066", ["1 066", "1066"], True),
        ("हिन्दी भाषा", ["हिन्द"], False),
    ],
)
def test_has_answer(text: str, answers: list[str], found: bool) -> None:
    assert has_answer(text, answers) is found


def test_an_answer_is_one_of_several() -> None:
    assert exact_match("The 1,000", ["10", "1000"]) == 1.0  # SQuAD takes the comma away
    assert exact_match("3.14", ["314"]) == 1.0  # and the full stop
    assert exact_match("¿Qué?", ["Qué"]) == 0.0  # but only ASCII punctuation
    assert exact_match("cafe\u0301", ["Café"]) == exact_match("Café", ["cafe\u0301"]) == 1.0  # letters, not code points
    assert f1("un cafe\u0301", ["un café"]) == 1.0 and exact_match("cafe", ["café"]) == 0.0  # an accent counts
    assert exact_match("", ["the", "x"]) == f1("", ["an"]) == 1.0
    assert f1("", ["x"]) == f1("x", ["the"]) == 0.0


@pytest.mark.parametrize(
    ("text", "patterns", "matched", "held"),
    [
        ("1918", ["19(17|18)"], True, True),
        (
            "1918, in November",
            ["nov(ember)?\\s*1918", "^1918"],
            True,
            True,
        ),  # matched at the start: the rest may follow
        ("in 1918", ["1918"], False, True),
        ("november 11", ["NOV(ember|\\.)? 11"], True, True),  # whatever the case
        ("first\nParis", ["^paris$"], False, True),  # ^ at every line: found, but not at the start
        ("party", ["art"], False, True),  # a pattern, not a token
        ("café", ["cafe\u0301"], False, True),  # DPR compares decomposed letters, DrQA code points
        ("cafe\u0301", ["café"], False, True),
        ("Rome", ["Paris", "Athens"], False, False),
    ],
)
def test_regex_answers(text: str, patterns: list[str], matched: bool, held: bool) -> None:
    assert exact_match(text, patterns, regex=True) == float(matched)
    assert has_answer(text, patterns, regex=True) is held


def test_a_pattern_that_does_not_compile_is_named() -> None:
    for ask in (exact_match, has_answer):
        with pytest.raises(
            OpenBookError, match=r"an answer is not a regular expression: got '\(1918' \(.*expected a pat"
        ):
            ask("1918", ["1918", "(1918"], regex=True)
        assert not ask("x", ["(1918"])
    with pytest.raises(OpenBookError, match="a prediction needs a list of answers"):
        exact_match("1918", [], regex=True)


def test_answers_in_text_without_spaces_between_words() -> None:
    assert has_answer("东山上长的是北树", ["北树"]) and not has_answer("东山上长的是北树", ["树北"])
    assert has_answer("富士山は日本で一番高い山です", ["日本"])
    assert not has_answer("the party", ["art"])  # where there are spaces a word is a word


def test_many_answers_in_many_texts_are_what_has_answer_finds() -> None:
    texts = ["The Danube flows through Vienna.", "an art party", "东山上长的是北树", "CAFE\u0301 au lait, U.S."]
    answers = [
        "danube",
        "the  danube",
        "art",
        "part",
        "长的是",
        "café au",
        "U.S.",
        "u.s",
        "Vienna .",
        "lait u",
        "",
        "???",
    ]
    held = {answer for answer in answers if any(has_answer(text, [answer]) for text in texts)}
    assert answers_in_texts(answers, texts) == held
    assert {"danube", "art", "café au", "长的是"} <= held and not {"part", "lait u", ""} & held
