"""What a wandb server holds of a run, against a server on the loopback: sent while it trains, or by `wandb sync`."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import wandb

from openbook.commands.train import resume, train
from openbook.errors import OpenBookError
from openbook.setup.prepare import OwnParts
from openbook.tracking.loggers.identity import SIGNALLED, SWEEP_ID, Identity
from openbook.tracking.loggers.wandb_run import WandbRun
from openbook.utils.signals import Stopped
from tests.fake_wandb.kept import KeptRun
from tests.fake_wandb.server import WandbServer
from tests.small_system import SmallSystem, train_until

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    wandb.teardown()  # its service, as an earlier test may have left it, has the address of an earlier server
    with WandbServer().running(monkeypatch) as running:
        yield running
        wandb.teardown()


def sync(run: Path) -> None:
    """As on a machine that has the run folder alone."""
    words = [sys.executable, "-m", "wandb", "sync", "--include-online", str(run / "wandb")]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"WANDB_DIR": str(run), "HOME": str(run.parent)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def table_of(run: Path) -> list[dict[str, Any]]:
    """metrics.csv as rows of a history."""
    with open(run / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        {name: float(cell) for name, cell in row.items() if cell and name != "step"} | {"step": int(row["step"])}
        for row in rows
    ]


def check_complete(server: WandbServer, run: Path) -> KeptRun:
    """One run, whole, with nothing that the server did not understand."""
    (kept,) = server.runs.values()
    assert server.refused == []
    assert kept.name == Identity.read(run).id  # type: ignore[union-attr]
    rows = [{name: value for name, value in row.items() if name != "predictions"} for row in kept.rows]
    assert rows == [pytest.approx(row, rel=1e-12) for row in table_of(run)]
    assert (kept.group, kept.project, kept.exit_code) == ("small", "openbook", 0)
    assert set(kept.tags) == {"rag_token", "refresh:blocking", "n_docs:3", "seed:0"}
    summary = json.loads((run / "summary.json").read_text())
    for prefix, found in (("test", summary["test"]), ("baseline", summary["before_training"])):
        for name in ("exact_match", "f1", "recall_at_1", "recall_at_5", "recall_at_20", "mrr", "n_questions"):
            assert kept.summary[f"{prefix}/{name}"] == pytest.approx(found[name]), (prefix, name)
    assert kept.config["optim.lr_generator"]["value"] == 0.01
    refreshes = [row for row in kept.rows if "refresh/generation" in row]
    assert [(row["step"], row["refresh/generation"]) for row in refreshes] == [(2, 1), (4, 2), (6, 3)]
    assert all({"refresh/seconds", "refresh/overlap_at_k"} <= row.keys() for row in refreshes)
    artifacts = {one["type"]: one for one in server.artifacts.values() if one["committed"]}
    assert artifacts["report"]["files"] == {"report.html": (run / "report.html").read_bytes()}
    (table,) = (json.loads(content) for name, content in kept.files.items() if name.endswith(".table.json"))
    assert kept.summary["predictions"]["nrows"] == len(table["data"])
    check_table(table, run)
    return kept


def check_table(table: dict[str, Any], run: Path) -> None:
    predictions = {one["id"]: one for one in map(json.loads, (run / "predictions.jsonl").read_text().splitlines())}
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["exact_match"] for row in rows] == sorted(row["exact_match"] for row in rows)
    for row in rows:
        one = predictions[row["id"]]
        assert (row["question"], row["answers"], row["prediction"]) == (
            one["question"],
            " | ".join(one["answers"]),
            one["prediction"],
        )
        best = max(one["passages"], key=lambda passage: passage["posterior"])
        assert [row[f"passage_1_{name}"] for name in ("title", "text")] == [best["title"], best["text"]]
        assert row["passage_1_prior"] == pytest.approx(best["prior"])
        assert row["passage_1_posterior"] >= row["passage_2_posterior"] >= row["passage_3_posterior"]


def test_an_offline_run_that_was_moved_and_resumed_is_whole_after_sync(
    small_system: SmallSystem, tmp_path: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first" / "run"
    first.parent.mkdir()
    train_until(small_system.config(first, "wandb.mode=auto", "wandb.predictions=5"), 4)
    known = Identity.read(first)
    run = tmp_path / "moved"
    first.rename(run)
    resume(run)
    assert server.told == [] and Identity.read(run) == known and known is not None
    said = capfd.readouterr().out
    assert "wandb: a table of 5 of 7 test questions, wrong ones first" in said and "wandb sync" in said
    sync(run)
    kept = check_complete(server, run)
    assert kept.summary["predictions_shown"] == "5 of 7 test questions, wrong ones first"
    assert len(list(run.glob("wandb/offline-run-*"))) == 2
    # What wandb would gather of its own accord.
    assert {one.get("host", "-") for one in server.told} == {"-"}
    assert not {"repo", "commit"} & {name for one in server.told for name in one}
    assert socket.gethostname() not in json.dumps(server.told)
    assert not {name for name in kept.files if name.startswith(("wandb-metadata", "code"))}


def test_an_online_run_is_continued_row_by_row(small_system: SmallSystem, tmp_path: Path, server: WandbServer) -> None:
    run = tmp_path / "run"
    train_until(small_system.config(run, "wandb.mode=online"), 5)  # one step behind its checkpoint
    (kept,) = server.runs.values()
    assert [row["step"] for row in kept.rows] == [0, 1, 2, 3, 4, 5] and kept.exit_code == 1
    assert kept.summary["baseline/n_questions"] == 7 and "test/f1" not in kept.summary
    resume(run)
    (kept,) = server.runs.values()
    assert [row["step"] for row in kept.rows] == [0, 1, 2, 3, 4, 5, 6] and kept.exit_code == 0
    assert kept.summary["test/n_questions"] == 7 and server.refused == []


def test_a_server_that_fails_ends_no_run(
    small_system: SmallSystem, tmp_path: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.broken = True
    run = train(small_system.config(tmp_path / "run", "wandb.mode=online", "wandb.timeout=3", "trainer.max_steps=2"))
    said = capfd.readouterr().out
    assert "wandb: start:" in said and "kept in its folder until `wandb sync`" in said
    assert "1 of wandb's calls failed" in said
    assert json.loads((run / "summary.json").read_text())["status"] == "finished" and not server.runs
    server.broken = False
    sync(run)
    assert next(iter(server.runs.values())).summary["test/n_questions"] == 7


class Breaks(L.Callback):
    """The server's end, when training starts."""

    def __init__(self, server: WandbServer):
        self.server = server

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.server.broken = True


def test_the_end_does_not_wait_for_a_server_that_has_gone(
    small_system: SmallSystem, tmp_path: Path, server: WandbServer
) -> None:
    words = ["wandb.mode=online", "wandb.timeout=3", "trainer.max_steps=2", "wandb.predictions=0", "wandb.report=false"]
    started = time.monotonic()
    run = train(small_system.config(tmp_path / "run", *words), OwnParts(callbacks=(Breaks(server),)))
    assert time.monotonic() - started < 60  # wandb itself would try for hours
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    (kept,) = server.runs.values()
    assert "test/n_questions" not in kept.summary
    server.broken = False
    sync(run)
    assert kept.summary["test/n_questions"] == 7 and [row["step"] for row in kept.rows] == [0, 1, 2]


def test_a_logger_that_fails_ends_no_run(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb.Run, "log", full)
    run = train(small_system.config(tmp_path / "run", "wandb.mode=offline", "trainer.max_steps=2"))
    said = capfd.readouterr().out
    assert said.count("No space left on device") == 1 and json.loads((run / "summary.json").read_text())["test"]
    assert "of wandb's calls failed" in said


@pytest.mark.parametrize(
    ("agent", "signalled", "stopped"),
    [(True, False, True), (True, True, False), (False, False, False)],
    ids=["its sweep", "the machine", "a user who resumes it"],
)
def test_who_has_stopped_a_trial(
    small_system: SmallSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    agent: bool,
    signalled: bool,
    stopped: bool,
) -> None:
    """Only one that its sweep has stopped is over: it ends well, and no agent resumes it."""
    Identity("trial", "sweep").keep(tmp_path)
    monkeypatch.setenv(SIGNALLED, str(tmp_path / "signalled"))
    if agent:
        monkeypatch.setenv(SWEEP_ID, "sweep")
    else:
        monkeypatch.delenv(SWEEP_ID, raising=False)
    if signalled:
        (tmp_path / "signalled").touch()
    run = WandbRun(tmp_path, small_system.config(tmp_path / "run"), "offline", {}, resumed=True)
    assert run.close(Stopped(15)) is stopped and run.failed == 0
    assert Identity.read(tmp_path) == Identity("trial", "sweep", stopped=stopped)
    assert run.close(None) is False and run.experiment is None


def test_where_wandb_is_not_installed(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else real(name, *more))
    for mode in ("offline", "online"):
        with pytest.raises(
            OpenBookError, match=r"wandb is not installed \(wandb\.mode\).*pip install 'openbook\[wandb\]'"
        ):
            train(small_system.config(tmp_path / "run", f"wandb.mode={mode}"))
    assert not (tmp_path / "run").exists()
    run = train(small_system.config(tmp_path / "run", "wandb.mode=auto", "trainer.max_steps=1"))
    assert "wandb is not installed" in capfd.readouterr().out and not (run / "wandb").exists()
