"""Answers that are regular expressions: what is learned in their place."""

import json
from pathlib import Path

from openbook.batch import Example
from openbook.data.readers.questions.regex_targets import Targets, target_of, with_targets
from openbook.metrics.matching import matches_in


def test_what_a_pattern_matches() -> None:
    """Whatever the case, with accents as they stand, and single spaces."""
    assert matches_in("In 1969, then\n July\n 1969.", r"(July\s+)?1969") == ["1969", "July 1969"]
    assert matches_in("Beyoncé and BEYONCÉ", "beyonc(é|e)") == ["Beyoncé", "BEYONCÉ"]
    assert matches_in("nothing", "x*") == []


def test_the_most_frequent_match_is_learned() -> None:
    """1969 three times, July 1969 twice, over all patterns and passages; of equals the first."""
    example = Example("a", "when ?", (r"19\d\d", r"July 19\d\d"))
    texts = ["1969 July 1969", "July 1969 1970"]
    assert target_of(example, texts) == (("1969",), "matched")
    assert target_of(example, ["1971 1970"]) == (("1971",), "matched")
    assert target_of(example, ["no year"]) == ((), "left_out")
    assert target_of(Example("b", "who ?", ("Ada", "A(da)?")), []) == (("Ada",), "plain")


def test_a_file_of_patterns(tmp_path: Path) -> None:
    passages = tmp_path / "p.jsonl"
    passages.write_text(json.dumps({"id": "1", "title": "t", "text": "It was in 1969."}) + "\n")
    questions = tmp_path / "q.jsonl"
    rows = [
        {"id": "a", "question": "when ?", "answers": [r"19\d\d"], "positive_ids": ["1"]},
        {"id": "b", "question": "who ?", "answers": ["Ada"], "positive_ids": []},
        {"id": "c", "question": "why ?", "answers": ["x+"], "positive_ids": ["1", "2"]},
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path, found = with_targets(questions, passages, tmp_path)
    assert [json.loads(line)["answers"] for line in path.read_text().splitlines()] == [["1969"], ["Ada"]]
    assert found == Targets(matched=1, plain=1, left_out=1)
    assert with_targets(questions, passages, tmp_path) == (path, found)
    questions.write_text(json.dumps(rows[1]) + "\n")
    assert with_targets(questions, passages, tmp_path) == (questions, Targets())
