"""docs/data.md: its tables are what the readers know, and its steps can be walked, with tiny models."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from openbook.__main__ import main
from openbook.data.readers.detect import DOCUMENTS, PAIR, PASSAGES, QUESTIONS, RANKING
from tests.small_system import SmallSystem

PAGE = (Path(__file__).parent.parent / "docs/data.md").read_text(encoding="utf-8")


def table(title: str) -> dict[str, list[str]]:
    """{first cell: the others} of the table under a line that begins so."""
    rows = re.findall(r"^\|(.*)\|$", PAGE.split(f"\n{title}")[1].split("\n\n")[1], re.MULTILINE)[2:]
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    return {first: others for first, *others in cells}


def test_the_tables_are_what_the_readers_know() -> None:
    assert table("Questions, for").keys() == {one.name for one in QUESTIONS} | {RANKING, PAIR}
    assert table("Passages, for").keys() == {one.name for one in PASSAGES} | {DOCUMENTS}


@pytest.mark.filterwarnings("ignore")
def test_the_steps(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENBOOK_RUN_DIR", "")
    walk = PAGE.split("## From a folder")[1].split("\n## Formats")[0]
    for name, content in re.findall(r"^`([\w./]+)`:\n\n```\n(.*?)```", walk, re.MULTILINE | re.DOTALL):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")
    tiny = [
        word for word in small_system.words(tmp_path / "x")[1:] if not re.match(r"run\.dir|data\.(corpus|t|v)", word)
    ]
    commands = [
        shlex.split(line)[1:]
        for block in re.findall(r"```bash\n(.*?)```", walk, re.DOTALL)
        for line in block.splitlines()
    ]
    assert [words[0] for words in commands] == ["convert", "train", "answers", "evaluate"]
    for words in commands:
        assert main(words + (tiny if words[0] == "train" else [])) == 0, words
    passages = [json.loads(line) for line in Path("looked_at/passages.jsonl").read_text().splitlines()]
    assert [(one["id"], one["title"]) for one in passages] == [
        ("lisbon.md#1", "Lisbon"),
        ("lisbon.md#2", "Lisbon > Food"),
        ("oslo.html#1", "Oslo"),
        ("vienna.txt#1", "vienna"),
    ]
    assert json.loads(Path("runs/notes/summary.json").read_text())["questions"] == {
        "train": 4,
        "validation": 1,
        "test": 2,
    }
    assert Path("runs/notes/evaluations/1/run.trec").is_file()
    assert "judged by answers, 2 questions: success_at_1" in " ".join(capsys.readouterr().out.split())
