"""Training that diverges names the batch that did it and keeps a sound checkpoint; a folder's NaN is the folder's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from openbook.__main__ import main
from openbook.batch import Batch, Example
from openbook.tracking.checkpoint import read_checkpoint
from openbook.training.divergence import Trail, is_finite
from openbook.training.rag_module import RagModule
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")
AT = 3


def spoiled(monkeypatch: pytest.MonkeyPatch, what: str) -> list[list[str]]:
    """The third step gives a gradient, a likelihood or weights that are no numbers; what each step has read."""
    step, read, seen = RagModule.training_step, RagModule.read, list[list[str]]()

    def steps(self: RagModule, batch: Batch, number: int) -> dict[str, torch.Tensor]:
        seen.append([example.id for example in batch.examples])
        given = step(self, batch, number)
        if len(seen) == AT and what == "gradient":
            given["loss"] = given["loss"] * torch.inf
        if len(seen) == AT and what == "weights":  # after the step, as an update that overflows
            with torch.no_grad():
                next(self.retriever.parameters()).fill_(torch.nan)
        return given

    def reads(self: RagModule, *arguments: Any) -> Any:
        found = read(self, *arguments)
        if len(seen) == AT and what == "likelihood":
            found.nll[1] = torch.nan
        return found

    monkeypatch.setattr(RagModule, "training_step", steps)
    monkeypatch.setattr(RagModule, "read", reads)
    return seen


@pytest.mark.parametrize(
    ("what", "why"),
    [("gradient", "its gradient"), ("likelihood", "its forward pass"), ("weights", "its update of the weights")],
)
def test_the_batch_that_did_it_is_written_down(
    small_system: SmallSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    what: str,
    why: str,
) -> None:
    monkeypatch.setenv("OPENBOOK_RUN_DIR", "")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        seen = spoiled(patch, what)
        more = ["optim.clip=0"] if what == "weights" else []
        assert main(["train", *small_system.words(run, "evaluate.before_training=false", *more)]) == 2
    said = capfd.readouterr()
    assert said.err.count("error: ") == 1 and "Training has diverged: lower optim.lr_*" in said.err
    assert f"{run / 'diverged.json'} has the last batches" in said.out

    found = json.loads((run / "diverged.json").read_text(encoding="utf-8"))
    assert (found["caused_by_step"], found["caused_by"]) == (AT, why)
    step = next(one for one in found["steps"] if one["step"] == AT)
    assert [one["id"] for one in step["questions"]] == seen[AT - 1]
    assert all(len(one["passages"]) == len(one["doc_scores"]) == 3 for one in step["questions"])
    assert all(one["passages"][0].startswith("p") for one in step["questions"])
    if what == "gradient":
        assert step["gradient_norm"] in ("nan", "inf")
    if what == "likelihood":
        assert [one["nll"] == "nan" for one in step["questions"]] == [number == 1 for number in range(4)]
        assert not any(part["not_finite"] for part in found["weights"].values())
    else:
        assert any(part["not_finite"] and part["first_not_finite"] for part in found["weights"].values())

    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "failed" and "diverged" in summary["error"]
    kept = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert kept["global_step"] == 2
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    assert main(["resume", str(run)]) == 0  # the planted fault is gone
    assert json.loads((run / "summary.json").read_text(encoding="utf-8")).get("status") == "finished"


@pytest.mark.parametrize(("model", "value"), [("generator", torch.nan), ("encoder", torch.inf)])
def test_a_folder_of_nan_is_blamed_itself(
    small_system: SmallSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    model: str,
    value: float,
) -> None:
    monkeypatch.setenv("OPENBOOK_RUN_DIR", "")
    folder = tmp_path / model
    shutil.copytree(getattr(small_system, model), folder)
    weights = load_file(folder / "model.safetensors")
    name = max(name for name in weights if name.endswith(("attention.output.dense.weight", "fc1.weight")))
    weights[name][0, 0] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    key = "generator.model" if model == "generator" else "retriever.passage_encoder"
    assert main(["train", *small_system.words(tmp_path / "run", f"{key}={folder}")]) == 2
    said = capfd.readouterr().err
    assert f"the model's folder holds weights that are not numbers ({key})" in said and name in said
    assert "diverged.json" not in said and not (tmp_path / "run" / "diverged.json").exists()


def test_the_trail_keeps_two_steps_with_all_their_passes() -> None:
    trail = Trail()
    for step in (1, 1, 2, 2, 3, 3):
        examples = [Example(f"{step}", "?", ())]
        trail.read(step, type("B", (), {"examples": examples})(), nll=torch.tensor([float(step)]))
        trail.clipped(step, torch.tensor(float(step)))
    report = trail.report([("generator", nn.Linear(2, 1), 0.5)], lambda rows: list(map(str, rows)))
    assert [(one["step"], one["gradient_norm"], len(one["questions"])) for one in report["steps"]] == [
        (2, 2.0, 2),
        (3, 3.0, 2),
    ]
    assert report["weights"]["generator"]["peak_learning_rate"] == 0.5
    assert not trail.is_hit()


def test_only_what_trains_must_be_a_number() -> None:
    layer = nn.Linear(3, 2)
    assert is_finite(layer)
    layer.weight.data[1, 1] = -torch.inf
    assert not is_finite(layer)
    layer.weight.requires_grad_(False)
    assert is_finite(layer)
