"""A pair of .source and .target files, as sequence-to-sequence trainers read them: line by line."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from openbook.batch import Example
from openbook.data.readers.checked_lines import BadLineError, decoded, read_lines
from openbook.data.readers.fields import Asked, answers_of, string
from openbook.data.readers.tables import Found, Place
from openbook.errors import OpenBookError


def pair(source: Path, target: Path) -> Iterator[Found]:
    """Line n of the one is the question of line n of the other: an answer, or an answer and a list of all."""
    for path in (source, target):
        if not path.is_file():
            raise OpenBookError("half of a pair of files is missing", where=path, expected="both, of as many lines")
    lines = (read_lines(source), read_lines(target))
    for question, answer in zip(*(chain(one, iter([None])) for one in lines), strict=False):
        if question is None and answer is None:
            return
        number = (question or answer or (0,))[0]
        place = Place(str(source if question else target), number)
        if question is None or answer is None or question[0] != answer[0]:
            yield (
                place,
                BadLineError("the two files do not go together", got="lines without their like", expected="pairs"),
            )
            return
        try:
            cells = decoded(answer[2]).split("\t")
            answers = tuple(dict.fromkeys(one for cell in cells for one in answers_of(cell, "answers")))
            asked = string(decoded(question[2]), "question", empty=False)
            yield place, Asked(Example(str(number), asked, answers))
        except BadLineError as fault:
            yield place, fault
