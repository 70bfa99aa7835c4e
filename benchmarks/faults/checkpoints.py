"""Damaged checkpoints: a flipped bit, a zeroed page, an end that is cut. Each is refused, or loads as it was written;
of several kept ones the newest sound one is used and the damaged one named."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, product
from pathlib import Path

import torch

from openbook.errors import OpenBookError
from openbook.tracking.checkpoint import newest_sound, read_checkpoint
from tests.tracking.test_checkpoint import equal, flipped, write, zeroed

NAME = "checkpoints"
QUICK, FULL = 30, 300


def cut(content: bytearray, chance: random.Random, first: int, last: int) -> None:
    del content[chance.randrange(first, last) :]


KINDS = {"a flipped bit": flipped, "a zeroed page": zeroed, "a cut end": cut}


def tries(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    order = product(range(count), KINDS)
    for number, kind in islice(order, count):
        yield f"{kind}, {number}", partial(damaged, folder / f"{number}-{kind}".replace(" ", "-"), kind, number)


def damaged(folder: Path, kind: str, number: int) -> None:
    """The damage lies anywhere, in the first or in the last bytes, where zip keeps its lists."""
    folder.mkdir(parents=True)
    last = write(folder / "last.ckpt")
    whole = last.read_bytes()
    last.rename(folder / "last-1.ckpt")
    content, chance = bytearray(whole), random.Random(f"{kind}{number}")
    KINDS[kind](content, chance, *[(0, len(whole)), (0, 3000), (len(whole) - 3000, len(whole))][number % 3])
    last.write_bytes(content)
    try:
        loaded = read_checkpoint(last)
    except OpenBookError as error:
        said = str(error)
        assert "last.ckpt" in said and "weights_only" not in said, said
        assert newest_sound(last) == folder / "last-1.ckpt"
        loaded = read_checkpoint(folder / "last-1.ckpt")
    assert equal(loaded), "it loads with other numbers"


def by_stock_loading(folder: Path, count: int) -> int:
    """How many of as many damaged ones torch.load by itself takes with other numbers: the negative control."""
    wrong = 0
    folder.mkdir(parents=True)
    content = {"state_dict": read_checkpoint(write(folder / "whole.ckpt"))["state_dict"], "global_step": 3}
    torch.save(content, folder / "stock.ckpt")
    whole = (folder / "stock.ckpt").read_bytes()
    for number in range(count):
        spoiled, chance = bytearray(whole), random.Random(number)
        flipped(spoiled, chance, 0, len(whole))
        (folder / "stock.ckpt").write_bytes(spoiled)
        try:
            wrong += not equal(torch.load(folder / "stock.ckpt", weights_only=True))
        except Exception:  # of many kinds: zip's, pickle's, torch's own
            continue
    return wrong
