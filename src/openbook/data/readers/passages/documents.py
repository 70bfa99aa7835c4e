"""Folders of text, Markdown and HTML files as passages: cut section by section, with titles and headings kept.

A passage's id is the file's path in the folder and the passage's number in the file, `notes/oak.md#3`: a second reading
gives the same ids, and a change in one file leaves those of all others alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from openbook.batch import Passage
from openbook.data.readers.checked_lines import BadLineError
from openbook.data.readers.compressed import unpacked
from openbook.data.readers.passages.file_names import HTML, MARKDOWN, check_name, files_of, kind_of_text, title_of
from openbook.data.readers.passages.splitter import Splitter
from openbook.data.readers.tables import Place

LARGEST = 1 << 26  # bytes of one file
_MARK = b"\xef\xbb\xbf"  # in front of UTF-8, as Windows' editors write it
_HEADING = re.compile(r"(#{1,6})[ \t]+(.*)")
_SILENT = frozenset("script style nav template noscript svg head footer iframe".split())
_INLINE = frozenset(
    "a abbr b bdi bdo cite code data dfn em i kbd mark q s samp small span strong sub sup time u var wbr".split()
)
_BLOCKS = frozenset(
    "address article aside blockquote dd details div dl dt figure footer form header hr li main nav ol p pre section "
    "table tbody td tfoot th thead tr ul".split()
)
_HEADING_TAG = re.compile("h[1-6]")
_FENCE = re.compile(r"[ ]{0,3}(```+|~~~+)")


class Section(NamedTuple):
    """headings: from the outermost to the nearest one."""

    headings: tuple[str, ...]
    text: str


def has_mark(path: Path) -> bool:
    """Whether prose begins with UTF-8's mark, which `read` takes off; JSON and tables may not have one."""
    with unpacked(path) as handle:
        line = handle.readline(1 << 16)
    return line.startswith(_MARK) and b"\t" not in line and not line[len(_MARK) :].lstrip().startswith(b"{")


def documents(path: Path, splitter: Splitter) -> Iterator[tuple[Place, Passage | BadLineError]]:
    """The passages of all files of a folder, or of one file. A file without text has none."""
    folder = path if path.is_dir() else path.parent
    check_name(path)
    for file in files_of(path) if path.is_dir() else [path]:
        name = file.relative_to(folder).as_posix()
        try:
            title, sections = read(file)
        except BadLineError as fault:
            yield Place(str(file), 1), fault
            continue
        number = 0
        for headings, text in sections:
            shown = [title, *(heading for heading in headings if heading != title)]
            for piece in splitter.pieces(text):
                number += 1
                yield Place(str(file), 1), Passage(f"{name}#{number}", " > ".join(shown), piece)


def read(path: Path) -> tuple[str, list[Section]]:
    """A file's title and its sections. Without a title of its own it is the file's name."""
    with unpacked(path) as handle:
        raw = handle.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise BadLineError("a file is too long", got=f"more than {LARGEST:,} bytes", expected="files of one text each")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1}"
        action = "It is likely Windows-1252 (or Latin-1); convert it: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        raise BadLineError("the file is not UTF-8", got=got, expected="UTF-8", action=action) from None
    if "\0" in text:
        raise BadLineError("a file holds NUL characters", got=f"{text.count(chr(0))} of them", action="Remove them.")
    named, sections = {MARKDOWN: _markdown, HTML: _html}.get(kind_of_text(path), _plain)(text)
    return named or title_of(path), sections


def _plain(text: str) -> tuple[str, list[Section]]:
    return "", [Section((), text)]


def _markdown(text: str) -> tuple[str, list[Section]]:
    """The title is the front matter's, or a heading of the first level. Signs inside the text stay as they are."""
    title, lines = "", text.splitlines()
    if lines and lines[0].strip() == "---" and "---" in [line.strip() for line in lines[1:]]:
        end = 1 + [line.strip() for line in lines[1:]].index("---")
        front = [line.partition(":") for line in lines[1:end]]
        title = next((value.strip(" \"'") for key, _, value in front if key.strip().lower() == "title"), "")
        lines = lines[end + 1 :]
    outline, fence = _Outline(title), ""
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        marks = _FENCE.match(line)
        if marks:
            fence = "" if fence and marks[1].startswith(fence) else fence or marks[1]
        heading = None if fence or marks else _HEADING.fullmatch(line)
        underlined = not fence and line.strip() and re.fullmatch(r"=+|-{2,}", after.strip())
        if heading:
            # Taken off here: an expression for it would try each space of a line in cubic time.
            outline.head(len(heading[1]), heading[2].rstrip(" \t").rstrip("#"))
        elif underlined and not outline.text_before():
            outline.head(1 if after.strip()[0] == "=" else 2, line.strip())
        elif not (re.fullmatch(r"=+|-{2,}", line.strip()) and not fence):
            outline.add(line + "\n")
    return outline.done()


class _Outline:
    """Headings and the text under each."""

    def __init__(self, title: str = ""):
        self.title, self._headings, self._text = title, dict[int, str](), list[str]()
        self._sections: list[Section] = []

    def text_before(self) -> bool:
        """Whether the line before is text, of which an underline would be no heading but the end of a paragraph."""
        return bool(self._text and self._text[-1].strip())

    def head(self, level: int, heading: str) -> None:
        self._close()
        heading = " ".join(heading.split())
        if not self.title and level == 1 and not self._sections:
            self.title = heading
        self._headings = {one: text for one, text in self._headings.items() if one < level} | {level: heading}

    def add(self, text: str) -> None:
        self._text.append(text)

    def _close(self) -> None:
        if (text := "".join(self._text)).strip():
            self._sections.append(Section(tuple(filter(None, self._headings.values())), text))
        self._text = []

    def done(self) -> tuple[str, list[Section]]:
        self._close()
        return self.title, self._sections


def _html(text: str) -> tuple[str, list[Section]]:
    parser = _Html()
    parser.feed(text)
    parser.close()
    return parser.outline.done()


class _Html(HTMLParser):
    """Text and headings of a page, without what is no text of it (scripts, styles, navigation).

    A heading ends with the end of any heading, as browsers have it, and where a block begins behind its text or one
    ends that it stands in: a mistyped or missing end must not make a heading of all that follows. Those of menus are
    none.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.outline = _Outline()
        self._silent: list[str] = []
        self._level, self._heading, self._in_title = 0, list[str](), False
        self._blocks: list[str] = []  # opened in the heading before its text, and not ended yet

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "body":
            self._silent = []  # the end of the head may be left out
        if self._level and (_HEADING_TAG.fullmatch(tag) or (tag in _BLOCKS and self._heading_text())):
            self._end_heading()
        if tag in _SILENT:
            self._silent.append(tag)
        self._in_title = self._in_title or (tag == "title" and "svg" not in self._silent)
        if _HEADING_TAG.fullmatch(tag):
            if not self._silent:
                self._level, self._heading, self._blocks = int(tag[1]), [], []
        elif tag not in _INLINE:
            if self._level and tag in _BLOCKS:
                self._blocks.append(tag)
            self.handle_data("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._level and _HEADING_TAG.fullmatch(tag):
            self._end_heading()
        elif self._level and tag in self._blocks:
            del self._blocks[self._blocks.index(tag) :]
        elif self._level and tag in _BLOCKS:
            self._end_heading()
        if tag in self._silent:
            del self._silent[self._silent.index(tag) :]
        if tag == "title":
            self._in_title = False
        elif tag not in _INLINE and not _HEADING_TAG.fullmatch(tag):
            self.handle_data("\n")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.outline.title = f"{self.outline.title}{data}".strip()
        elif self._silent:
            return
        elif self._level:
            self._heading.append(data)
        else:
            self.outline.add(data)

    def close(self) -> None:
        super().close()
        if self._level:
            self._end_heading()

    def _heading_text(self) -> str:
        return "".join(self._heading).strip()

    def _end_heading(self) -> None:
        if text := self._heading_text():
            self.outline.head(self._level, text)
        self._level = 0
