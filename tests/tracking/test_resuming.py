"""A run that goes on with another number of ranks still reads the same questions per pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from openbook.config.rules.combinations import batch_checks
from openbook.config.schema import Config
from openbook.config.training import TrainerConfig
from openbook.tracking.resuming import check_keys, keeping_the_batch
from openbook.tracking.search.run_search import identity_of


@pytest.mark.parametrize(
    ("before", "overrides", "expected"),
    [
        ((8, 1, 0), ["trainer.devices=2"], (4, 0)),
        ((4, 2, 0), ["trainer.devices=1"], (8, 0)),
        ((2, 4, 0), ["trainer.devices=3"], (3, 8)),
        ((2, 4, 0), ["trainer.devices=3", "trainer.nodes=2"], (2, 8)),
        ((3, 3, 8), ["trainer.devices=2"], (4, 0)),
        ((3, 3, 8), ["trainer.devices=5"], (2, 8)),
        ((1, 1, 0), ["trainer.devices=2"], (1, 1)),
    ],
)
def test_the_batch_is_shared_out_anew(
    before: tuple[int, int, int], overrides: list[str], expected: tuple[int, int]
) -> None:
    size, devices, together = before
    then = replace(Config(), trainer=TrainerConfig(batch_size=size, devices=devices, global_batch_size=together))
    words = dict(word.split("=") for word in keeping_the_batch(then, overrides))
    now = replace(
        then, trainer=replace(then.trainer, **{key.partition(".")[2]: int(text) for key, text in words.items()})
    )
    assert (now.trainer.batch_size, now.trainer.global_batch_size) == expected
    assert now.trainer.questions_per_pass == then.trainer.questions_per_pass
    assert not any(check.fails for check in batch_checks(now))
    assert check_keys(then, now, {}) and identity_of(then) == identity_of(now)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.lr=0.1"],
        ["trainer.devices=1"],
        ["trainer.devices=2", "trainer.batch_size=4"],
        ["trainer.devices=two"],
        ["trainer.devices=0"],
    ],
)
def test_what_is_said_or_unchanged_or_wrong_stays_as_it_is(overrides: list[str]) -> None:
    assert keeping_the_batch(Config(), overrides) == overrides


def test_shares_of_another_size_are_refused() -> None:
    for together, fails in ((7, False), (8, False), (9, False), (6, True), (10, True)):
        settings = TrainerConfig(batch_size=3, devices=3, global_batch_size=together)
        [check] = batch_checks(replace(Config(), trainer=settings))
        assert bool(check.fails) == fails, together
