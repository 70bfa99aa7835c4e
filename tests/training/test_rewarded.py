"""Training on passages that somebody chose, by reward: against loops, on one rank and two, and what is left out."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.commands.train import train
from openbook.errors import OpenBookError
from openbook.setup.prepare import prepare
from tests.small_system import SmallSystem, column

pytestmark = pytest.mark.filterwarnings("ignore")

ORDERED = ("objective=dpr", "dpr.loss=ordered", "dpr.bm25_negatives=0", "retriever.temperature=0.2")


def logged(small_system: SmallSystem, folder: Path, *changes: dict[str, Any]) -> str:
    """`data.train=` with two chosen passages and a reward for each question, and changes to the first of them."""
    rows = [json.loads(line) for line in (small_system.data / "train.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["positive_ids"] = [f"p{number}", f"p{(number + 5) % 37}"]
        row["reward"] = 1.0 - (number % 3)  # 1, 0, -1
        row |= changes[number] if number < len(changes) else {}
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"data.train={path}"


def test_the_loss_is_that_of_the_equation(small_system: SmallSystem, tmp_path: Path) -> None:
    log = logged(small_system, tmp_path, {"reward": 2.5}, {"positive_ids": ["p1"]}, {"positive_ids": ["p1", "nowhere"]})
    config = small_system.config(
        tmp_path / "run", *ORDERED, log, "dpr.reward_baseline=0.5", "dpr.mask_false_negatives=false"
    )
    prepared = prepare(config)
    module: Any = prepared.module()
    module.eval()
    examples = [prepared.questions.questions["train"][number] for number in range(4)]
    batch = prepared.questions.batch_of(examples)
    nll, _, weight = module.likelihood(batch)
    assert weight.tolist() == [1, 1, 0, 1]  # the third chose a passage that is not there
    question_emb = module.retriever.represent(batch).double()
    rows = sorted({row for one in examples for row in module.passages.chosen(one)})
    passages = module.retriever.passages.encode(torch.tensor(rows)).double()
    scores = (question_emb @ passages.T / 0.2).tolist()
    for number in (0, 1, 3):
        left, total = set(rows), 0.0
        for row in module.passages.chosen(examples[number]):
            total += scores[number][rows.index(row)]
            total -= math.log(sum(math.exp(scores[number][rows.index(one)]) for one in left))
            left.remove(row)
        assert float(nll[number]) == pytest.approx(-total, rel=1e-4, abs=1e-5)
    loss = module.training_step(batch, 0)["loss"]
    each = [(reward - 0.5) * float(nll[number]) for number, reward in ((0, 2.5), (1, 0.0), (3, 1.0))]
    assert float(loss) == pytest.approx(sum(each) / 3, rel=1e-4)


def test_every_choice_competes_whatever_its_place(small_system: SmallSystem, tmp_path: Path) -> None:
    """A shorter choice is filled up beside a longer one, and its last passage is the first row of the batch; as its
    own gold passage it is masked for its question."""
    longest = {"positive_ids": ["p12", "p7", "p9", "p10"]}
    log = logged(small_system, tmp_path, longest, {"positive_ids": ["p8", "p5"]}, {"positive_ids": ["p5"]})
    prepared = prepare(small_system.config(tmp_path / "run", *ORDERED, log))
    module: Any = prepared.module()
    module.eval()
    batch = prepared.questions.batch_of([prepared.questions.questions["train"][number] for number in range(3)])
    assert module.likelihood(batch)[0].isfinite().all()


def test_what_was_worth_more_becomes_likelier(small_system: SmallSystem, tmp_path: Path) -> None:
    """Two logs of the same choices, rewarded in one and punished in the other."""
    found = {}
    for reward in (1.0, -1.0):
        (tmp_path / f"{reward}").mkdir()
        log = logged(small_system, tmp_path / f"{reward}", *[{"reward": reward} for _ in range(23)])
        more = ("trainer.max_steps=24", "trainer.validate_every=24", "refresh.every=0")
        more += ("optim.lr_question_encoder=0.001", "optim.lr_passage_encoder=0.001", "evaluate.before_training=false")
        run = train(small_system.config(tmp_path / f"{reward}" / "run", *ORDERED, log, *more))
        found[reward] = list(column(run, "train/nll").values())
    assert found[1.0][0] == pytest.approx(found[-1.0][0], rel=1e-5)
    first, rewarded, punished = (sum(some) for some in (found[1.0][:5], found[1.0][-5:], found[-1.0][-5:]))
    assert rewarded < 0.95 * first and punished > 1.5 * first, found


def test_two_ranks_are_one(small_system: SmallSystem, tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        log = logged(small_system, tmp_path, {"positive_ids": ["p3"]}, {"positive_ids": []})
        run = tmp_path / str(ranks) / "run"
        size = (f"trainer.devices={ranks}", f"trainer.batch_size={6 // ranks}", "evaluate.batch_size=3")
        done = small_system.command("train", *small_system.words(run, *ORDERED, log, *size))
        assert done.returncode == 0, done.stdout[-4000:]
        found.append([column(run, name) for name in ("train/nll", "train/grad_norm", "train/in_batch_accuracy")])
    for one, two in zip(*found, strict=True):
        assert one and two == pytest.approx(one, rel=2e-4, abs=1e-5)


def test_what_is_left_out_and_what_is_not_read_is_said(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logged(
        small_system, tmp_path, {"positive_ids": ["p1", "p1"]}, {"positive_ids": ["gone", "p2"]}, {"reward": None}
    )
    with pytest.warns(UserWarning, match="2 of 23 training questions choose no passage, one of them twice, or one"):
        prepare(small_system.config(tmp_path / "run", *ORDERED, log)).module()
    assert "1 of 23 questions have no `reward`: theirs is 1" in " ".join(capsys.readouterr().out.split())
    prepare(small_system.config(tmp_path / "run", "objective=dpr", "dpr.bm25_negatives=0", log))
    said = " ".join(capsys.readouterr().out.split())
    assert "22 of 23 questions have a `reward`, which only dpr.loss=ordered reads" in said
    with pytest.raises(OpenBookError, match=r"a reward is no number \(.*log\.jsonl:1\): got 'high', expected a finite"):
        prepare(small_system.config(tmp_path / "run", *ORDERED, logged(small_system, tmp_path, {"reward": "high"})))
    nothing = logged(small_system, tmp_path, *[{"positive_ids": []} for _ in range(23)])
    with pytest.raises(OpenBookError, match="no training question has chosen passages"):
        prepare(small_system.config(tmp_path / "run", *ORDERED, nothing)).module()
    assert not os.path.exists(tmp_path / "run")
