"""Whether a folder is one of documents or one of records, where it holds files of both."""

from pathlib import Path

from openbook.data.readers.compressed import packing
from openbook.data.readers.passages.file_names import files_of, visible
from openbook.data.readers.tables import TEXT, kind_of
from openbook.errors import OpenBookError

_BESIDE = ("readme", "license")  # how the names of files begin that only say what the others are


def is_of_documents(folder: Path, header: frozenset[str]) -> bool:
    """Whether a folder's text, Markdown and HTML files are its passages; what there is more of decides. header: names
    of columns (see `tables.kind_of`). OpenBookError where it holds as many files of the one kind as of the other."""
    files = files_of(folder)
    texts = [path for path in files if not path.name.lower().startswith(_BESIDE)]
    if not texts:
        return False
    known = set(files)
    tables = [path for path in visible(folder) if path not in known and _has_records(path, header)]
    if len(texts) == len(tables):
        raise OpenBookError(
            "the folder may be one of documents or of records",
            where=folder,
            got=f"{len(texts)} files of text, first {texts[0].name}, and as many of records, first {tables[0].name}",
            expected="more of one kind than of the other",
            action="Name a file, or move those of one kind to another folder.",
        )
    return len(texts) > len(tables)


def _has_records(path: Path, header: frozenset[str]) -> bool:
    """Whether a file holds JSON, a table or Parquet, and no picture and no prose of another kind."""
    if not packing(path):
        with open(path, "rb") as handle:
            head = handle.read(4096)
        if b"\0" in head and not head.startswith(b"PAR1"):
            return False
    return path.suffix != ".py" and kind_of(path, header) != TEXT
