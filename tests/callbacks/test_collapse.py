"""The collapse watch: quiet on varied retrieval, one warning or a stop when every question gets the same passages."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openbook.callbacks import CollapseWatch
from openbook.commands.train import train
from openbook.errors import OpenBookError
from tests.small_system import SmallSystem, column

N_PASSAGES, BATCH, N_DOCS, WINDOW = 997, 7, 5, 11


def step(watch: CollapseWatch, rows: torch.Tensor, number: int = 0) -> dict[str, float]:
    """One training step's end with these passages; gives what was logged."""
    logged: dict[str, float] = {}
    module: Any = SimpleNamespace(log=lambda name, value, **_: logged.__setitem__(name, value))
    trainer: Any = SimpleNamespace(global_step=number, is_global_zero=True)
    target_mask = torch.ones(BATCH, 2, dtype=torch.bool)
    batch = SimpleNamespace(weight=torch.ones(BATCH), target_mask=target_mask)
    token_logprobs = torch.full((BATCH, N_DOCS, 2), math.log(0.5))
    token_logprobs[:, -1] = math.log(0.1)
    outputs = {
        "rows": rows,
        "token_logprobs": token_logprobs,
        "doc_scores": torch.zeros(BATCH, N_DOCS),
        "nll": torch.full((BATCH,), -math.log(0.2)),
    }
    watch.on_train_batch_end(trainer, module, outputs, batch, number)
    return logged


def test_varied_retrieval_is_no_collapse() -> None:
    watch = CollapseWatch(N_PASSAGES, WINDOW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(2 * WINDOW):
            logged = step(watch, torch.randint(N_PASSAGES, (BATCH, N_DOCS)), number)
    assert logged["collapse/distinct_share"] > 0.6


def test_what_is_logged_by_hand() -> None:
    """35 hits on 5 passages, 7 each: exp(entropy) = 5, 5 of 35 possible. Marginal 0.2 against 0.1 * 0.1 alone."""
    logged = step(CollapseWatch(N_PASSAGES, WINDOW), torch.arange(N_DOCS).expand(BATCH, N_DOCS))
    assert logged["collapse/effective_passages"] == pytest.approx(5)
    assert logged["collapse/distinct_share"] == pytest.approx(5 / 35)
    assert logged["collapse/marginal_gain"] == pytest.approx(math.log(0.2) - math.log(0.01), rel=1e-5)


def test_the_same_passages_for_all_are_said_once() -> None:
    watch = CollapseWatch(N_PASSAGES, WINDOW)
    said = r"retrieval has collapsed \(step 10\): got as good as 5\.0 passages.*refresh\.every"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for number in range(3 * WINDOW):
            step(watch, torch.arange(N_DOCS).expand(BATCH, N_DOCS), number)
    assert re.search(said, str(seen[0].message))
    assert len(seen) == 1


def test_missing_hits_are_not_passages() -> None:
    rows = torch.arange(N_DOCS).expand(BATCH, N_DOCS).clone()
    rows[:, 3:] = -1
    assert step(CollapseWatch(N_PASSAGES, WINDOW), rows)["collapse/effective_passages"] == pytest.approx(3)


def test_it_can_stop_the_run() -> None:
    watch = CollapseWatch(N_PASSAGES, WINDOW, action="stop")
    rows = torch.zeros(BATCH, N_DOCS, dtype=torch.long)
    for number in range(WINDOW - 1):
        step(watch, rows, number)
    with pytest.raises(OpenBookError, match="retrieval has collapsed"):
        step(watch, rows, WINDOW - 1)


def test_it_watches_a_real_run(small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBOOK_RUN_DIR", "")
    run = train(small_system.config(tmp_path / "run", "evaluate.before_training=false"))
    assert len(column(run, "collapse/effective_passages")) == 6
    assert all(0 < share <= 1 for share in column(run, "collapse/distinct_share").values())
