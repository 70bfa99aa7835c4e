"""Every family of encoders in the main job: it learns, its index is refreshed, and a run that died is resumed."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest
import torch

from openbook.commands.evaluate import evaluate
from openbook.commands.train import resume, train
from openbook.config.load import load_resolved
from openbook.errors import OpenBookError
from openbook.models.encoders import load_encoder
from openbook.tracking.checkpoint import read_checkpoint
from tests.encoder_families import FAMILIES, Family, texts_of
from tests.small_system import SmallSystem, column, on_two_ranks, train_until

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 20


def pairs() -> list[tuple[str, list[Family], list[str]]]:
    """(id, question and passage family, more keys): each family on both sides, and two that differ."""
    by_name = {family.name: family for family in FAMILIES}
    same = [(name, [family, family], []) for name, family in by_name.items()]
    mixed = [by_name["BERT, cls"], by_name["Qwen3"]]
    projected = [by_name["XLM-R"], by_name["T5, Dense"]]
    return [*same, ("BERT and Qwen3", mixed, []), ("XLM-R and T5", projected, ["retriever.projection=12"])]


@pytest.mark.parametrize(("families", "more"), [one[1:] for one in pairs()], ids=[one[0] for one in pairs()])
def test_a_run_of_twenty_steps(
    families: list[Family], more: list[str], small_system: SmallSystem, small_data: Path, tmp_path: Path
) -> None:
    texts = texts_of(small_data)
    folders = [family.made(tmp_path / f"e{side}", texts, seed=side) for side, family in enumerate(families)]
    sides = ("question", "passage")
    words = [f"retriever.{side}_encoder={folder}" for side, folder in zip(sides, folders, strict=True)]
    words += [f"retriever.{key}={value}" for key, value in families[0].yaml.items() if key != "passage_encoder"]
    limits = [f"trainer.max_steps={STEPS}", "trainer.checkpoint_every=5", "refresh.every=5", "trainer.log_every=1"]
    rates = ["optim.lr_question_encoder=3e-3", "optim.lr_passage_encoder=3e-3", "evaluate.before_training=false"]
    run = tmp_path / "run"
    train_until(small_system.config(run, *words, *more, *limits, *rates, "trainer.validate_every=10"), 12)
    assert resume(run) == run
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", STEPS)
    assert summary["index"]["generation"] >= 4 and summary["test"]["n_questions"] == 7
    losses = list(column(run, "train/nll").values())
    assert len(losses) == STEPS and mean(losses[-5:]) < mean(losses[:5]) - 0.1
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    for side, folder in zip(sides, folders, strict=True):
        prefix = f"retriever.{side}_encoder."
        settings = load_resolved(run / "config.yaml").retriever
        begun = load_encoder(str(folder), None, None, 0.0, projection=settings.projection, seed=0).state_dict()
        ended = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        assert begun.keys() == ended.keys()
        moved = {
            name for name, value in begun.items() if value.is_floating_point() and not torch.equal(value, ended[name])
        }
        assert {name for name in begun if name.startswith("head.") and name.endswith("weight")} <= moved
        assert len(moved) > len(begun) / 2
    before = summary["test"]
    evaluate(run, [])
    assert json.loads((run / "summary.json").read_text())["test"]["recall_at_5"] == before["recall_at_5"]


def test_what_a_resumed_run_may_not_change(small_system: SmallSystem, small_data: Path, tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.name == "Qwen3")
    folder = family.made(tmp_path / "encoder", texts_of(small_data))
    words = [f"retriever.{side}_encoder={folder}" for side in ("question", "passage")]
    train_until(small_system.config(tmp_path / "run", *words, "evaluate.before_training=false"), 3)
    kept = load_resolved(tmp_path / "run" / "config.yaml").retriever
    assert (kept.pooling, kept.normalize, kept.passage_layout) == ("last", "true", "joined")
    for key, value in (
        ("pooling", "mean"),
        ("normalize", "false"),
        ("question_prefix", "query: "),
        ("passage_prefix", "passage: "),
        ("passage_layout", "separated"),
        ("dim", "8"),
        ("projection", "8"),
    ):
        with pytest.raises(OpenBookError, match=rf"goes on with what it was started with \(retriever.{key}\)"):
            resume(tmp_path / "run", [f"retriever.{key}={value}"])


@pytest.mark.slow
def test_two_ranks_train_as_one(small_system: SmallSystem, small_data: Path, tmp_path: Path) -> None:
    """A decoder padded on the left and a T5 with Dense, each with a new projection: every weight gets its gradient."""
    by_name = {family.name: family for family in FAMILIES}
    texts = texts_of(small_data)
    sides = (("question", "Qwen3"), ("passage", "T5, Dense"))
    words = [f"retriever.{side}_encoder={by_name[name].made(tmp_path / side, texts)}" for side, name in sides]
    words += ["retriever.projection=12", "evaluate.before_training=false", "trainer.max_steps=3", "refresh.every=2"]
    alone = train(small_system.config(tmp_path / "one", *words, "trainer.batch_size=4"))
    halves = [*words, "trainer.batch_size=2", "trainer.devices=2"]
    on_two_ranks([["train", *small_system.words(tmp_path / "two", *halves)]])
    one, two = (column(run, "train/nll") for run in (alone, tmp_path / "two"))
    assert one.keys() == two.keys() and len(one) == 3
    assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-4)
