"""Questions are counted as every model reads them, and once for models that read alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openbook.data import question_lengths
from openbook.data.question_file import QuestionFile
from openbook.data.question_lengths import Limits, Reader, check_lengths
from openbook.errors import OpenBookError
from tests.data.test_datamodule import question_file, tokenizer


def other_words() -> Any:
    words = tokenizer()
    words.add_tokens(["wh", "at"])
    return words


@pytest.mark.parametrize(
    ("readers", "times"),
    [
        ([Reader(tokenizer()), Reader(tokenizer(), before_answer=" ")], 1),
        ([Reader(tokenizer()), Reader(tokenizer(), prefix="is ")], 2),
        ([Reader(tokenizer()), Reader(other_words())], 2),
        ([Reader(tokenizer()), Reader(tokenizer(), through=(tokenizer(), ""))], 2),
    ],
)
def test_readers_that_read_alike_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: list[Reader], times: int
) -> None:
    counted, original = list[Reader](), question_lengths.over
    monkeypatch.setattr(
        question_lengths, "over", lambda reader, *more: counted.append(reader) or original(reader, *more)
    )
    questions = QuestionFile(question_file(tmp_path / "train.jsonl", 5))
    with pytest.raises(OpenBookError, match=r"longer than the limit.*got [34] tokens.*5 of 5 questions"):
        check_lengths(questions, readers, Limits(2, "error", answer=None, strict=False))
    assert counted == readers[:times]
    check_lengths(questions, readers, Limits(4, "error", answer=None, strict=False))
