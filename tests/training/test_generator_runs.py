"""Every family of generators in the main job: it learns, a run that died is resumed, and it is evaluated again."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest

from openbook.commands.evaluate import evaluate
from openbook.commands.train import resume
from tests import decoder_only, seq2seq_families
from tests.encoder_families import texts_of
from tests.small_system import SmallSystem, column, train_until

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 20
SHORT = (
    f"trainer.max_steps={STEPS}",
    "trainer.checkpoint_every=6",
    "trainer.log_every=1",
    "refresh.every=10",
    "data.validation=",
    "data.max_passage_tokens=40",
    "evaluate.before_training=false",
    "evaluate.bootstrap=0",
)
ENCODER_DECODERS = {family.name: family for family in seq2seq_families.FAMILIES}


def generator_of(name: str, data: Path, folder: Path) -> Path:
    """A small one with random weights, whose tokenizer knows the words of the data."""
    if name not in ENCODER_DECODERS:
        return decoder_only.causal_folder(folder, data, name)
    known = sorted({word for text in texts_of(data) for word in text.split()})
    return ENCODER_DECODERS[name].made(folder, words=[*seq2seq_families.MARKS, *known])


@pytest.mark.parametrize("name", [*ENCODER_DECODERS, *decoder_only.FAMILIES])
def test_a_run_of_twenty_steps(name: str, small_system: SmallSystem, small_data: Path, tmp_path: Path) -> None:
    context = 60 if name in ENCODER_DECODERS else 120
    words = [
        *(*SHORT, f"generator.model={generator_of(name, small_data, tmp_path / 'generator')}"),
        *(
            f"data.max_context_tokens={context}",
            "data.max_question_tokens=24",
            "data.max_target_tokens=12",
            "optim.lr_question_encoder=1e-3",
            "optim.lr_passage_encoder=1e-3",
        ),
    ]
    run = tmp_path / "run"
    train_until(small_system.config(run, *words), 12)
    assert resume(run) == run
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["test"]["n_questions"]) == ("finished", STEPS, 7)
    losses = list(column(run, "train/nll").values())
    assert len(losses) == STEPS and mean(losses[-5:]) < 0.9 * mean(losses[:5])
    evaluate(run, [])
    assert json.loads((run / "summary.json").read_text())["test"] == summary["test"]


def test_no_family_is_left_out() -> None:
    """Of the kinds that docs/models.md lists as decoder-only."""
    docs = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    listed = docs.split("| decoder-only | a prompt | ")[1].split(" |")[0].split(", ")
    known = {name.replace("gpt_neox", "gptneox").removesuffix("_windowed") for name in decoder_only.FAMILIES}
    assert {name.lower().replace("-", "").replace(" ", "") for name in listed} == known
