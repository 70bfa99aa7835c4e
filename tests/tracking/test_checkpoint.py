"""Checkpoints of which damage is seen: bits, pages, ends; which of the last ones a run goes on from."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.errors import OpenBookError
from openbook.tracking.checkpoint import damage, keep_last, newest_sound, older, read_checkpoint
from openbook.tracking.checkpoint import set_aside_damaged as set_aside
from openbook.tracking.checkpoint_io import WholeCheckpoints

CONTENT = {
    "state_dict": {f"layer{number}.weight": torch.arange(3000.0).view(30, 100) + number for number in range(8)},
    "global_step": 3,
}


def write(path: Path, step: int = 3) -> Path:
    WholeCheckpoints().save_checkpoint(CONTENT | {"global_step": step}, path)
    return path


def damaged(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[content.find(torch.arange(100.0, 110.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    return path


def equal(content: dict[str, Any]) -> bool:
    weights, mine = CONTENT["state_dict"], content["state_dict"]
    assert isinstance(weights, dict)
    return content["global_step"] == 3 and all(torch.equal(mine[name], value) for name, value in weights.items())


def flipped(content: bytearray, chance: random.Random, first: int, last: int) -> None:
    content[chance.randrange(first, last)] ^= 1 << chance.randrange(8)


def zeroed(content: bytearray, chance: random.Random, first: int, last: int) -> None:
    at = chance.randrange(first, last) // 4096 * 4096
    content[at : at + 4096] = bytes(len(content[at : at + 4096]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spoil", [flipped, zeroed])
@pytest.mark.parametrize("part", ["anywhere", "head", "tail"])
def test_damage_is_refused_or_without_effect(tmp_path: Path, spoil: Any, part: str) -> None:
    """200 kinds of each; what torch reads all the same must be what was written."""
    whole = write(tmp_path / "last.ckpt").read_bytes()
    first, last = {"anywhere": (0, len(whole)), "head": (0, 3000), "tail": (len(whole) - 3000, len(whole))}[part]
    chance, seen = random.Random(part), Counter[str]()
    for number in range(200):
        content = bytearray(whole)
        spoil(content, chance, first, last)
        (path := tmp_path / f"{number}.ckpt").write_bytes(content)
        try:
            loaded = read_checkpoint(path)
        except OpenBookError:
            seen["refused"] += 1
        else:
            seen["equal" if equal(loaded) else "different"] += 1
    assert not seen["different"] and seen["refused"] > 100, seen


def test_an_archive_that_only_torch_refuses_is_passed_over(tmp_path: Path) -> None:
    last = write(tmp_path / "last.ckpt", 7)
    keep_last(last, 2)
    content = bytearray(write(last, 8).read_bytes())
    content[content.rfind(b"PK\x06\x06") + 16] ^= 1  # the number of the archive's disk
    last.write_bytes(content)
    assert "multidisk" in damage(last)
    assert newest_sound(last) == tmp_path / "last-1.ckpt"


def test_a_whole_one_loads(tmp_path: Path) -> None:
    assert equal(read_checkpoint(write(tmp_path / "last.ckpt")))


def test_the_last_n_are_kept(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    write(tmp_path / "best.ckpt", step=2)
    for step in range(1, 6):
        keep_last(last, 3)
        write(last, step)
    assert [read_checkpoint(path)["global_step"] for path in (last, *older(last))] == [5, 4, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last-1.ckpt", "last-2.ckpt", "last.ckpt"]
    keep_last(last, 1)  # the setting was lowered
    assert last.is_file() and older(last) == []


def test_a_kill_between_making_room_and_writing_leaves_the_last_one(tmp_path: Path) -> None:
    last = write(tmp_path / "last.ckpt", 7)
    for _ in range(3):
        keep_last(last, 2)
        assert read_checkpoint(newest_sound(last))["global_step"] == 7


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    last = write(tmp_path / "last.ckpt", 7)
    keep_last(last, 2)
    assert read_checkpoint(newest_sound(last))["global_step"] == 7
    write(last, 8)
    assert [read_checkpoint(path)["global_step"] for path in (last, *older(last))] == [8, 7]


def test_the_newest_sound_one_is_used_and_the_damaged_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = tmp_path / "last.ckpt"
    assert newest_sound(last) == last  # none yet
    for step in (1, 2, 3):
        keep_last(last, 3)
        write(last, step)
    damaged(last)
    assert newest_sound(last) == tmp_path / "last-1.ckpt"
    said = capsys.readouterr().out
    assert "last.ckpt is damaged" in said and "last-1.ckpt is used instead" in said

    set_aside(last, newest_sound(last))
    assert not last.exists() and (tmp_path / "last.ckpt.damaged").is_file()
    keep_last(last, 3)  # the sound ones move up behind the next
    write(last, 4)
    assert [read_checkpoint(path)["global_step"] for path in (last, *older(last))] == [4, 2, 1]


def test_all_damaged_is_an_error_that_names_them(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    for step in (1, 2):
        keep_last(last, 2)
        write(last, step)
    damaged(last), damaged(tmp_path / "last-1.ckpt")
    with pytest.raises(OpenBookError, match=r"every checkpoint.*last\.ckpt: other bytes.*last-1\.ckpt: other bytes"):
        newest_sound(last)
