"""A question file, validated once and then read line by line."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from openbook.batch import Example
from openbook.data.readers.formats import index_questions, parse_example
from openbook.utils.atomic import replacing


class QuestionFile:
    """A question file, checked as a whole when opened (OpenBookError, see formats) and then read line by line.

    Each process opens the file when it first reads from it, so that this can be pickled for workers. With a `cache`
    folder the line index (16 bytes a question) lies there, memory-mapped, and only its path is pickled. unanswered:
    whether a question may lack an answer.
    """

    def __init__(self, path: str | Path, cache: str | Path | None = None, unanswered: bool = False):
        self.path, self._cache = Path(path), cache
        self._handle: IO[bytes] | None = None
        self._hold(index_questions(self.path, unanswered), "")

    def leave_out(self, indices: Sequence[int]) -> None:
        """From now on these questions are not in the file; the others move up."""
        self._place(0)
        assert self._places is not None
        places = np.delete(np.asarray(self._places), list(indices), axis=0)
        self._hold(places, hashlib.sha256(places.tobytes()).hexdigest()[:8])

    def _hold(self, places: np.ndarray, kept: str) -> None:
        """kept: which of the questions these are, where not all."""
        self._places: np.ndarray | None = places
        self._length = len(places)
        self._index: Path | None = None
        if self._cache is not None:
            name = hashlib.sha256(f"{self.path.resolve()}{kept}".encode()).hexdigest()[:12]
            self._index = Path(self._cache) / f"questions-{name}.npy"
            self._index.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._index) as temporary:
                np.save(temporary, self._places)
            self._places = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None} | ({"_places": None} if self._index else {})

    def __len__(self) -> int:
        return self._length

    def line_number(self, index: int) -> int:
        """The line of a question, from 1."""
        return int(self._place(index)[1])

    def __getitem__(self, index: int) -> Example:
        """Raises IndexError outside 0 .. len - 1."""
        start, number = self._place(index).tolist()
        if self._handle is None:
            self._handle = open(self.path, "rb")  # noqa: SIM115  (kept open for the life of this process)
        self._handle.seek(start)
        return parse_example(self._handle.readline(), f"{self.path}:{number}", default_id=str(number))

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def _place(self, index: int) -> np.ndarray:
        if not 0 <= index < self._length:
            raise IndexError(f"question {index} is not in {self.path}, which has {self._length}")
        if self._places is None:
            assert self._index is not None
            self._places = np.load(self._index, mmap_mode="r").view(np.ndarray)
        return self._places[index]
