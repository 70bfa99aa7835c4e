"""Damage in a signed folder is seen, whichever byte or file it is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from openbook.errors import OpenBookError
from openbook.utils.files.signed import NAME, check_text, damage, sign, signed_text, sound


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(bytes(range(200)))
    (tmp_path / "facts.json").write_text("{}")
    sign(tmp_path)
    return tmp_path


def test_a_whole_folder_is_sound(folder: Path) -> None:
    assert damage(folder) == "" and sound(folder)
    sign(folder)
    assert sound(folder)


@pytest.mark.parametrize("at", [0, 99, 199])
def test_a_flipped_bit_is_seen(folder: Path, at: int) -> None:
    content = bytearray((folder / "weights").read_bytes())
    content[at] ^= 16
    (folder / "weights").write_bytes(content)
    assert damage(folder) == "weights is changed"


def test_files_that_are_missing_cut_or_new_are_seen(folder: Path) -> None:
    (folder / "more").write_text("")
    assert damage(folder) == "more is not signed"
    (folder / "facts.json").unlink()
    assert damage(folder) == "facts.json is missing"


@pytest.mark.parametrize("content", ["", "[]", '{"weights": "0"'])
def test_a_damaged_signature_is_seen(folder: Path, content: str) -> None:
    (folder / NAME).write_text(content)
    assert damage(folder).startswith(NAME)


def test_what_is_damaged_is_said_and_what_is_not_there_is_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "weights").write_bytes(b"")
    assert not sound(folder, "the thing")
    assert "the thing in" in (said := capsys.readouterr().out) and "weights is changed" in said
    assert not sound(folder / "nowhere", "the thing")
    assert capsys.readouterr().out == ""


TEXT = "seed: 1\ndata:\n  corpus: a.jsonl\n  train: ü.jsonl\n"


@pytest.mark.parametrize(
    "change", [lambda text: text[:-1], lambda text: "\n".join(text.split("\n")[:2]) + "\n", str.upper]
)
def test_a_signed_text_that_was_cut_or_changed_is_refused(tmp_path: Path, change: Callable[[str], str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(signed_text(TEXT), encoding="utf-8")
    check_text(path)
    head, _, text = signed_text(TEXT).partition("\n")
    path.write_text(f"{head}\n{change(text)}", encoding="utf-8")
    with pytest.raises(OpenBookError, match="cut, damaged, or changed by hand"):
        check_text(path)
    path.write_text(change(TEXT), encoding="utf-8")  # of an older run, or on purpose
    check_text(path)
