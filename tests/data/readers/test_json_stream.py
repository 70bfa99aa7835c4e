"""A document read element by element is what json reads whole, wherever the pieces of the file end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openbook.data.readers import json_stream
from openbook.data.readers.checked_lines import BadLineError
from openbook.data.readers.json_stream import Element, elements

RECORD: dict[str, Any] = {
    "a": 'q"\\ \u00e4\U0001f600',
    "b": [1, -2.5e3, True, None, {}],
    "c": {"d": [[], "  \n "]},
    "e": 12345678,
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 19, 64, 1000])
@pytest.mark.parametrize("indent", [None, 0, 40])
@pytest.mark.parametrize("escaped", [True, False])
def test_lists_and_objects(
    chunk: int, indent: int | None, escaped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    content: list[Any] = [RECORD, 17, "text", [RECORD], {}, -0.5]
    (tmp_path / "list").write_text(json.dumps(content, indent=indent, ensure_ascii=escaped), encoding="utf-8")
    assert [one.value for one in elements(tmp_path / "list")] == content  # type: ignore[union-attr]
    whole = {"version": 1.1, "data": content, "rows": {"0": RECORD, "1": 2}}
    (tmp_path / "object").write_text(json.dumps(whole, indent=indent, ensure_ascii=escaped), encoding="utf-8")
    found = [tuple(one)[1:] for one in elements(tmp_path / "object")]
    rows = [("rows", "0", RECORD), ("rows", "1", 2)]
    assert found == [("", "version", 1.1), *(("data", "", value) for value in content), *rows]


def test_lines_are_counted(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('\n[\n {"a":\n  1},\n\n 2, 3\n]\n')
    assert [one.line for one in elements(tmp_path / "j")] == [3, 6, 6]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "line", "n_before"),
    [
        ("[1,\n2,\n {x}]", 3, 2),
        ("[1, 2", 1, 2),
        ('[{"a": 1},\n{"a": "', 2, 1),
        ('{"data": [1,\n], 2}', 2, 1),
        ("[1]\n]", 2, 1),
    ],
)
def test_what_is_wrong_is_the_last_thing_found(content: str, line: int, n_before: int, tmp_path: Path) -> None:
    (tmp_path / "j").write_text(content)
    *before, last = elements(tmp_path / "j")
    assert len(before) == n_before and all(isinstance(one, Element) for one in before)
    assert last[0] == line and isinstance(last[1], BadLineError) and last[1].what == "malformed JSON"
