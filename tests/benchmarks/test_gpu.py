"""`make bench-gpu` runs whole on a CPU in its quick form; without a GPU nothing else is measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import common, encode, loss, page, search, step


def test_search() -> None:
    found = search.figures(quick=True)
    for name in ("flat", "sqfp16"):
        assert found[f"gpu.search.{name}.wrong_rows"] == 0
        assert found[f"gpu.search.{name}.over_floor_64"] > 0  # type: ignore[operator]


def test_loss() -> None:
    found = loss.figures(quick=True)
    assert found["gpu.loss.fraction_of_peak"] == found["gpu.loss.2x3x5.fraction_of_peak"] > 0  # type: ignore[operator]


def test_loss_refuses_to_compare_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loss.Inputs.plain
    monkeypatch.setattr(loss.Inputs, "plain", lambda self: 1.1 * plain(self))
    with pytest.raises(SystemExit, match="plain says"):
        loss.figures(quick=True)


def test_step() -> None:
    found = step.figures(quick=True)
    keys = ("base.speedup_own_length", "base.fraction_of_peak", "joint.fraction_of_peak")
    assert all(found[f"gpu.step.{key}"] > 0 for key in keys)  # type: ignore[operator]


def test_encoding() -> None:
    assert encode.encoding(quick=True)["gpu.encode.fraction_of_peak"] > 0  # type: ignore[operator]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_the_quick_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["search"])
    with pytest.raises(SystemExit, match=r"no GPU: .*--quick"):
        common.main("", search.figures)


def test_the_page_names_the_card_and_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    common_out, written = tmp_path / "gpu.json", tmp_path / "gpu.md"
    common_out.write_text('{"gpu.card": "A card", "gpu.loss.fraction_of_peak": 0.2, "machine.cpu": "x"}')
    written.write_text("# On a GPU\n<!-- gpu: begin -->\nold\n<!-- gpu: end -->\n")
    monkeypatch.setattr(page, "OUT", common_out)
    monkeypatch.setattr(page, "PAGE", written)
    page.main()
    said = written.read_text()
    assert "A card; torch" in said and "wanted >= 0.4: NO" in said and "old" not in said
    assert "Not measured: " in said and "gpu.search.flat.over_floor_64" in said.split("Not measured: ")[1]
