"""What a passage may be written as: Pyserini's and FlashRAG's `contents`, BEIR, KILT's and FEVER's Wikipedia, and rows
of two or three columns (ColBERT, MS MARCO, transformers' RAG)."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from openbook.batch import Passage
from openbook.data.readers.checked_lines import BadLineError
from openbook.data.readers.fields import listed, passage_of, require, string, text
from openbook.data.readers.questions.family import has

OWN = "openbook passages"
_SECTION = "Section::::"


class PassageFamily(NamedTuple):
    """reads: whether the first record of a file is of this format. passages: those of a record; a BadLineError says
    what is wrong with it."""

    name: str
    reads: Callable[[Any], bool]
    passages: Callable[[Any, str], Iterable[Passage]]


def own(record: dict[str, Any], number: str) -> Iterator[Passage]:
    identity = next(
        (record[key] for key in ("id", "_id", "docid", "pid", "passage_id") if record.get(key) is not None), number
    )
    title, body = (
        string(record.get("title") or "", "title"),
        string(require(record, "text", "a text named `text`"), "text", numbers=True),
    )
    if title.strip() and not body.strip():  # BEIR has documents that are a title alone
        title, body = "", title
    yield Passage(string(identity, "id", numbers=True, empty=False), title, string(body, "text", empty=False))


def contents(record: dict[str, Any], number: str) -> Iterator[Passage]:
    """The first line is the title, in FlashRAG's files between quotation marks; a single line has none."""
    identity = record.get("id", record.get("docid", number))
    title, _, body = text(record, "contents").partition("\n")
    if record.get("title") is not None:
        title, body = (
            string(record["title"], "title"),
            body if title.strip('" ') == str(record["title"]).strip('" ') else f"{title}\n{body}",
        )
    elif not body.strip():
        title, body = "", title
    yield Passage(string(identity, "id", numbers=True, empty=False), _unquoted(title), body.strip() or title)


def kilt(record: dict[str, Any], number: str) -> Iterator[Passage]:
    """A page's paragraphs, named page:paragraph as provenance counts them. The first is the title, those that begin
    with Section:::: are headings, and stand in the title of what follows."""
    page = string(record.get("_id", record.get("wikipedia_id")), "_id", numbers=True, empty=False)
    title, heading = string(record["wikipedia_title"], "wikipedia_title"), ""
    for paragraph, content in enumerate(listed(record, "text", str)):
        content = string(content, "text").strip()
        if content.startswith(_SECTION):
            heading = content.removeprefix(_SECTION).strip(". ").replace(":", " > ")
        elif content and (paragraph or content != title):
            yield Passage(f"{page}:{paragraph}", f"{title} > {heading}" if heading else title, content)


def fever(record: dict[str, Any], number: str) -> Iterator[Passage]:
    """A page of FEVER's Wikipedia under its own name, which its evidence names; an empty page has no passage."""
    name, body = string(require(record, "id", "`id`, `text`, `lines`"), "id"), string(record["text"], "text").strip()
    title = name.replace("_", " ").replace("-LRB-", "(").replace("-RRB-", ")").replace("-COLON-", ":")
    if name.strip() and body:
        yield Passage(name, title, body)


def numbered(record: list[str], number: str) -> Iterator[Passage]:
    """Id, text and title; or id and text."""
    _check_columns(record, 2, 3)
    if not record[0].strip().isdigit():
        raise BadLineError(
            "the first column is no number, as those of other lines are", got=record[0][:40], expected="id"
        )
    title = string(record[2], "title") if len(record) == 3 else ""
    yield Passage(record[0].strip(), title, string(record[1], "text", empty=False))


def titled(record: list[str], number: str) -> Iterator[Passage]:
    """Title and text; a title may be a number."""
    _check_columns(record, 2, 2)
    yield passage_of(_unquoted(record[0]), string(record[1], "text", empty=False))


def _check_columns(record: Any, least: int, most: int) -> None:
    if not isinstance(record, list) or not least <= len(record) <= most:
        expected = f"{least} or {most}" if most > least else f"{least}, title and text"
        raise BadLineError("a line has the wrong number of columns", got=f"{len(record)}", expected=expected)


def by_rows(family: PassageFamily, seen: Iterable[Any]) -> PassageFamily:
    """How a file of rows is read by its first records: by numbers where every one begins with a number."""
    if family is not ROWS:
        return family
    firsts = [one[0].strip() for one in seen if isinstance(one, list) and one]
    return family._replace(passages=numbered if all(map(str.isdigit, firsts)) else titled)


def _unquoted(title: str) -> str:
    title = title.strip()
    inner = title[1:-1]
    return inner if len(title) > 1 and title[0] == title[-1] == '"' and '"' not in inner else title


ROWS = PassageFamily(
    "ColBERT, MS MARCO and transformers' RAG", lambda one: isinstance(one, list) and len(one) in (2, 3), numbered
)
FAMILIES = (
    PassageFamily("KILT knowledge source", lambda one: has(one, "wikipedia_title", "text"), kilt),
    PassageFamily("FEVER Wikipedia pages", lambda one: has(one, "id", "text", "lines"), fever),
    PassageFamily("Pyserini and FlashRAG", lambda one: has(one, "contents"), contents),
    PassageFamily(OWN, lambda one: has(one, "text"), own),
    ROWS,
)
