"""Every mode of refresh through `train` and `resume`: the same numbers twice, after an interruption, on two ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openbook.commands.train import resume, train
from openbook.config.checks import problems_of
from openbook.errors import OpenBookError
from openbook.setup.preflight import check
from openbook.tracking.checkpoint import read_checkpoint
from tests.small_system import SmallSystem, column, on_two_ranks, train_until

pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = (
    "evaluate.before_training=false",
    "data.test=",
    "trainer.max_steps=9",
    "trainer.validate_every=2",
    "trainer.tokens_per_pass=120",
    "refresh.overlap_k=3",
    "index.keep_vectors=0",
    "optim.lr_question_encoder=0.001",
    "optim.lr_passage_encoder=0.001",
    "optim.lr_generator=0.001",
)
MODES = {
    "blocking": ("refresh.every=3",),
    "amortized": ("refresh.mode=amortized", "refresh.every=4", "refresh.spread=3"),  # copied at 4, swapped at 7
    "amortized IVF": (
        "refresh.mode=amortized",
        "refresh.every=3",
        "refresh.spread=3",
        "index.factory=IVF2,Flat",
        "index.nprobe=1",
    ),
    "rolling": ("refresh.mode=rolling", "refresh.every=3", "refresh.share=0.4"),
    "rolling with looks": (
        "refresh.mode=rolling",
        "refresh.every=5",
        "refresh.look_every=2",
        "retriever.rerank=7",
        "retriever.dropout=0.1",
    ),
    "hot": ("refresh.mode=hot", "refresh.every=4", "refresh.share=0.7"),
    "staleness": (
        "refresh.every=staleness",
        "refresh.look_every=1",
        "refresh.min_overlap=0.9",
        "refresh.floor=2",
        "refresh.ceiling=4",
    ),
}
SEEN = (
    "train/nll",
    "train/staleness",
    "train/steps_since_refresh",
    "refresh/generation",
    "refresh/overlap_at_k",
    "refresh/rank_correlation",
    "refresh/score_drift",
    "refresh/cosine_drift",
    "refresh/mean_age",
    "refresh/encoded_passages",
    "staleness/overlap_at_k",
    "staleness/rank_correlation",
    "validation/recall_at_5",
    "validation/exact_match",
)


@pytest.mark.parametrize("mode", MODES)
def test_the_same_numbers_twice_and_after_an_interruption(mode: str, small_system: SmallSystem, tmp_path: Path) -> None:
    """Dead before step 7; its last checkpoint was after step 4, in the middle of whatever was going on."""
    whole = train(small_system.config(tmp_path / "a", *QUICK, *MODES[mode]))
    train_until(small_system.config(tmp_path / "b", *QUICK, *MODES[mode], "trainer.checkpoint_every=4"), 6)
    assert read_checkpoint(tmp_path / "b" / "checkpoints" / "last.ckpt")["global_step"] == 4
    first, wanted = column(tmp_path / "b", "train/nll"), column(whole, "train/nll")
    assert first == {step: wanted[step] for step in first} and max(first) >= 5, "the same seed"
    resumed = resume(str(tmp_path / "b"), [])
    for name in SEEN:
        assert column(resumed, name) == pytest.approx(column(whole, name), rel=1e-5, abs=1e-6), name
    assert len(column(resumed, "train/nll")) == 9
    one, two = (json.loads((run / "summary.json").read_text())["index"] for run in (whole, resumed))
    assert one == two
    if "amortized" in mode or mode == "blocking" or mode == "staleness":
        assert column(whole, "refresh/generation"), "nothing was refreshed: this proves nothing"
    else:
        assert column(whole, "refresh/encoded_passages")[9] > 0


# Two ranks

STEADY = (
    "optim.final_lr=1",
    "evaluate.before_training=false",
    "data.test=",
    "trainer.validate_every=4",
    "refresh.overlap_k=3",
    "trainer.tokens_per_pass=120",
    "optim.lr_question_encoder=0.001",
    "optim.lr_passage_encoder=0.001",
    "optim.lr_generator=0.001",
)
TWO = {
    "amortized": ("refresh.mode=amortized", "refresh.every=3", "refresh.spread=2"),
    # Which passages come first depends on the shards. Here everything is renewed at every step, or nothing but what
    # training encodes anyway: then vectors and ages are those of one rank.
    "rolling": ("refresh.mode=rolling", "refresh.every=1"),
    "hot": ("refresh.mode=hot", "refresh.share=0"),
}


def test_two_ranks_give_the_numbers_of_one_in_every_mode(small_system: SmallSystem, tmp_path: Path) -> None:
    """And a run goes on as it would have, on as many ranks and on more."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    budget = ("refresh.mode=hot", "refresh.every=4", "refresh.share=0.7")

    def words(run: Path, *more: str) -> list[str]:
        ranks = 1 if run.parent == one else 2
        return small_system.words(run, *STEADY, f"trainer.devices={ranks}", f"trainer.batch_size={4 // ranks}", *more)

    for mode, more in TWO.items():
        train(small_system.config(one / mode, *words(one / mode, *more)[1:]))
    train(small_system.config(one / "grows", *words(one / "grows", *TWO["rolling"], "trainer.max_steps=3")[1:]))
    on_two_ranks(
        [
            *(["train", *words(two / mode, *more)] for mode, more in TWO.items()),
            ["train", *words(two / "whole", *budget)],
            ["train", *words(two / "stopped", *budget, "trainer.max_steps=3")],
            ["resume", str(two / "stopped"), "trainer.max_steps=6"],
            ["resume", str(one / "grows"), "trainer.devices=2", "trainer.batch_size=2", "trainer.max_steps=6"],
        ]
    )

    def same(run: Path, wanted: Path, *names: str, rel: float = 2e-4) -> None:
        for name in ("train/nll", "train/staleness", "train/posterior_entropy", "validation/recall_at_5", *names):
            expected = column(wanted, name)
            assert expected, name
            found = column(run, name)
            if name.startswith("validation/"):  # a run that goes on was also validated where it ended first
                found = {step: value for step, value in found.items() if step in expected}
            assert found == pytest.approx(expected, rel=rel, abs=1e-5), (run.name, name)

    same(two / "amortized", one / "amortized", "refresh/overlap_at_k", "refresh/score_drift", "refresh/generation")
    same(two / "rolling", one / "rolling", "refresh/mean_age", "refresh/encoded_passages")
    same(two / "hot", one / "hot", "refresh/mean_age", "refresh/encoded_passages")
    same(one / "grows", one / "rolling", "refresh/mean_age", "refresh/encoded_passages")
    same(two / "stopped", two / "whole", "refresh/mean_age", "refresh/encoded_passages", rel=1e-5)
    assert column(two / "hot", "refresh/mean_age")[6] < 6, "nothing was written back"
    assert column(two / "whole", "refresh/encoded_passages")[6] > 20


# What cannot be


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("refresh.mode=rolling", "refresh.every=staleness", "refresh.look_every=5"),
            r"rolling and hot refresh all the time \(refresh\.every\): got 'staleness', expected steps or spans",
        ),
        (
            ("refresh.mode=hot", "refresh.every=staleness", "refresh.look_every=5"),
            r"rolling and hot refresh all the time.* Or set refresh\.mode=amortized",
        ),
        (("refresh.every=staleness",), r"staleness decides but is never measured \(refresh\.look_every\): got 0"),
        (
            ("refresh.mode=amortized", "refresh.every=5", "refresh.spread=6"),
            r"would not end before the next begins \(refresh\.spread\): got 6, expected at most 5",
        ),
        (
            ("refresh.mode=amortized", "refresh.every=0-100:20,100-200:0,200-:7", "refresh.spread=8"),
            r"\(refresh\.spread\): got 8, expected at most 7",
        ),
        (
            (
                "refresh.mode=amortized",
                "refresh.every=staleness",
                "refresh.look_every=2",
                "refresh.floor=3",
                "refresh.spread=4",
            ),
            r"\(refresh\.spread\): got 4, expected at most 3",
        ),
        (
            ("refresh.every=staleness", "refresh.look_every=2", "refresh.floor=9", "refresh.ceiling=8"),
            r"fewest steps between refreshes above the most",
        ),
        (("refresh.share=1.5",), r"value out of range \(refresh\.share\): got 1\.5, expected a share from 0 to 1"),
        (("refresh.min_overlap=-0.1",), r"\(refresh\.min_overlap\): got -0\.1, expected a share from 0 to 1"),
        (("refresh.spread=0",), r"value out of range \(refresh\.spread\): got 0, expected more than 0"),
        (("refresh.look_every=-1",), r"value out of range \(refresh\.look_every\): got -1, expected 0 or more"),
    ],
)
def test_what_cannot_be_is_said(
    overrides: tuple[str, ...], said: str, small_system: SmallSystem, tmp_path: Path
) -> None:
    with pytest.raises(OpenBookError, match=said):
        check(small_system.config(tmp_path / "run", *overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ("refresh.mode=amortized", "refresh.every=5", "refresh.spread=5"),
        ("refresh.mode=amortized", "refresh.every=0", "refresh.spread=10"),  # never refreshed
        ("refresh.mode=blocking", "refresh.every=5", "refresh.spread=10"),
        ("refresh.mode=rolling", "refresh.every=0-10:5,10-:0", "refresh.share=0"),
        ("refresh.mode=amortized", "refresh.every=staleness", "refresh.look_every=2", "refresh.floor=10"),
    ],
)
def test_what_can_be_is_not_refused(overrides: tuple[str, ...], small_system: SmallSystem, tmp_path: Path) -> None:
    assert problems_of(small_system.config(tmp_path / "run", *overrides)) == []


@pytest.mark.parametrize("mode", ["rolling", "hot"])
@pytest.mark.parametrize("factory", ["IVF2,Flat", "SQ8", "HNSW8"])
def test_families_that_cannot_be_replaced_in_place(
    factory: str, mode: str, small_system: SmallSystem, tmp_path: Path
) -> None:
    """Said before a model is loaded; with a passage encoder that is frozen nothing is replaced."""
    overrides = (f"refresh.mode={mode}", f"index.factory={factory}", "trainer.max_steps=1", *QUICK[:2])
    with pytest.raises(OpenBookError, match=rf"cannot be replaced in place \(index\.factory\): got '{factory}'"):
        train(small_system.config(tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()


def test_an_amortized_refresh_says_what_it_took(small_system: SmallSystem, tmp_path: Path) -> None:
    """Copied at 3 and swapped at 5, copied at 6 and swapped at 8; its speed counts what was encoded."""
    words = ["refresh.mode=amortized", "refresh.every=3", "refresh.spread=2", "trainer.max_steps=8"]
    run = train(small_system.config(tmp_path / "run", *words))
    assert column(run, "refresh/steps_since_last") == {5: 3.0, 8: 3.0}
    seconds, speed = column(run, "refresh/seconds"), column(run, "refresh/passages_per_second")
    assert sorted(seconds) == [5, 8] == sorted(speed)
    for step in (5, 8):
        assert seconds[step] * speed[step] == pytest.approx(37)


def test_questions_that_only_fill_a_batch_are_not_counted(small_system: SmallSystem, tmp_path: Path) -> None:
    """23 training questions in batches of 4: the sixth holds three."""
    run = train(small_system.config(tmp_path / "run", "trainer.max_steps=6", "data.validation=", "data.test="))
    per_step = {
        step: column(run, "throughput/questions_per_second")[step] * seconds
        for step, seconds in column(run, "throughput/step_seconds").items()
    }
    n_train = len((small_system.data / "train.jsonl").read_text(encoding="utf-8").splitlines())
    assert n_train == 23
    assert [round(per_step[step]) for step in range(1, 7)] == [4, 4, 4, 4, 4, 3]
