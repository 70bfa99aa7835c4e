"""What a format is: a name, the records it knows as its own, and the questions of one record."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from openbook.batch import Passage
from openbook.data.readers.fields import Asked


class Family(NamedTuple):
    """reads: whether the first record of a file is of this format. questions: those of a record, given with a number
    that stands for an id where it has none, and passages in it that no question goes with; a BadLineError says what is
    wrong with it."""

    name: str
    reads: Callable[[Any], bool]
    questions: Callable[[Any, str], Iterable[Asked | Passage]]


def has(record: object, *keys: str) -> bool:
    """Whether a record is an object with all of these keys."""
    return isinstance(record, dict) and all(key in record for key in keys)
