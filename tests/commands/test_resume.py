"""What a resumed run keeps, takes over and refuses; and that a killed run ends as one that was not."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from openbook.commands.evaluate import evaluate
from openbook.commands.train import resume, train
from openbook.errors import OpenBookError
from openbook.tracking.checkpoint import read_checkpoint
from openbook.utils.signals import Stopped
from tests.small_system import SmallSystem, column, train_until, whole_and_resumed

pytestmark = pytest.mark.filterwarnings("ignore")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv without the columns that measure time or memory."""
    with open(run / "metrics.csv", encoding="utf-8", newline="") as file:
        return [
            {name: value for name, value in row.items() if "second" not in name and not name.startswith("index/")}
            for row in csv.DictReader(file)
        ]


@pytest.fixture
def stopped(small_system: SmallSystem, tmp_path: Path) -> Path:
    """A run of six steps that died after its third, with a checkpoint of its second."""
    train_until(small_system.config(tmp_path / "run", "evaluate.before_training=false"), 3)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("generator.model={encoder}", "generator.model"),
        ("retriever.train_passage_encoder=false", "retriever.train_passage_encoder"),
        ("retriever.temperature=2", "retriever.temperature"),
        ("retriever.n_docs=2", "retriever.n_docs"),
        ("data.corpus={other}", "data.corpus"),
        ("data.train={other_questions}", "data.train"),
        ("data.test={other_questions}", "data.test"),
        ("data.max_context_tokens=70", "data.max_context_tokens"),
        ("objective=rag_sequence", "objective"),
        ("seed=3", "seed"),
        ("trainer.batch_size=2", "trainer.batch_size"),
        ("trainer.accumulate=2", "trainer.accumulate"),
        ("optim.lr=inf", "optim.lr"),
    ],
)
def test_a_refused_resume_names_the_key_and_changes_no_byte(
    small_system: SmallSystem, stopped: Path, tmp_path: Path, override: str, key: str
) -> None:
    passages = (small_system.data / "passages.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join(passages[:-1]), encoding="utf-8")
    questions = (small_system.data / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "fewer.jsonl").write_text("".join(questions[:5]), encoding="utf-8")
    named = {
        "encoder": small_system.encoder,
        "other": tmp_path / "other.jsonl",
        "other_questions": tmp_path / "fewer.jsonl",
    }
    before = contents(stopped)
    with pytest.raises(OpenBookError, match=key):
        resume(stopped, [override.format(**named)])
    assert contents(stopped) == before
    assert json.loads((resume(stopped) / "summary.json").read_text())["steps"] == 6


def test_a_file_that_has_changed_under_the_same_name_is_refused(small_system: SmallSystem, tmp_path: Path) -> None:
    lines = (small_system.data / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    train_until(small_system.config(tmp_path / "run", f"data.train={tmp_path / 'train.jsonl'}"), 3)
    (tmp_path / "train.jsonl").write_text("".join(lines[:-3]), encoding="utf-8")
    with pytest.raises(OpenBookError, match=r"data\.train"):
        resume(tmp_path / "run")
    (tmp_path / "moved.jsonl").write_text("".join(lines), encoding="utf-8")  # the same content elsewhere is the same
    assert resume(tmp_path / "run", [f"data.train={tmp_path / 'moved.jsonl'}"]) == tmp_path / "run"


def test_settings_of_the_optimizer_take_effect(small_system: SmallSystem, stopped: Path) -> None:
    overrides = ["optim.lr_generator=0.02", "optim.weight_decay=0.3", "optim.final_lr=0.5", "optim.clip=0.001"]
    run = resume(stopped, overrides)
    assert [override in (run / "config.yaml").read_text().replace(": ", "=") for override in ["weight_decay=0.3"]]
    rates = column(run, "lr-AdamW/generator")
    for step in (3, 4, 5, 6):  # the peak times the share left: linear from 1 at step 0 to 0.5 at step 6
        assert rates[step] == pytest.approx(0.02 * (0.5 + 0.5 * (6 - (step - 1)) / 6)), step
    assert rates[2] == pytest.approx(0.01 * (0.1 + 0.9 * 5 / 6))
    groups = read_checkpoint(run / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}


def test_unchanged_settings_restore_the_saved_rates_exactly(small_system: SmallSystem, stopped: Path) -> None:
    saved = read_checkpoint(stopped / "checkpoints" / "last.ckpt")
    from openbook.setup.prepare import prepare
    from openbook.tracking.run_folder import RunFolder

    module = prepare(RunFolder(stopped).load_config([])).module()
    loaded = read_checkpoint(stopped / "checkpoints" / "last.ckpt")
    module.on_load_checkpoint(loaded)
    assert loaded["lr_schedulers"] == saved["lr_schedulers"]
    for old, new in zip(
        saved["optimizer_states"][0]["param_groups"], loaded["optimizer_states"][0]["param_groups"], strict=True
    ):
        assert old == new


def test_a_finished_run_is_left_as_it_is(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small_system.config(tmp_path / "run", "trainer.max_steps=2"))
    before = contents(run)
    assert resume(run) == run
    assert resume(run, ["optim.lr=0.5"]) == run
    assert "is finished after 2 steps" in capsys.readouterr().out
    assert contents(run) == before
    assert json.loads((resume(run, ["trainer.max_steps=4"]) / "summary.json").read_text())["steps"] == 4


@pytest.mark.parametrize(("every", "kill_at"), [(2, 3), (3, 3), (3, 4), (3, 5), (4, 5)])
def test_a_killed_and_resumed_run_has_the_curves_and_weights_of_a_straight_one(
    small_system: SmallSystem, tmp_path: Path, every: int, kill_at: int
) -> None:
    """Killed without warning, checkpoint and validation (every 3) at the same step or not, curves not yet written."""
    words = [f"trainer.checkpoint_every={every}", "refresh.every=2", "evaluate.before_training=false"]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    straight = train(small_system.config(tmp_path / "a" / "run", *words))
    words = small_system.words(tmp_path / "b" / "run", *words)
    process = small_system.start_python(
        "import os, signal\n"
        "from openbook.callbacks import Throughput\n"
        "from openbook.tracking.metrics_csv import MetricsCsv\n"
        "from openbook.commands.train import train\n"
        "from openbook.config.load import load_experiment\n"
        "MetricsCsv.save = lambda self: None\n"
        "def kill(self, trainer, module, batch, batch_idx):\n"
        f"    if trainer.global_step == {kill_at}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Throughput.on_train_batch_start = kill\n"
        f"train(load_experiment({words[0]!r}, {words[1:]!r}))\n"
    )
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    resumed = resume(tmp_path / "b" / "run")
    assert rows(resumed) == rows(straight)
    assert (resumed / "provenance.jsonl").read_bytes() == (straight / "provenance.jsonl").read_bytes()
    first, second = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (straight, resumed))
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    for old, new in zip(*(one["optimizer_states"][0]["state"].values() for one in (first, second)), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("n_lines", [1, 2, 30, -2])
def test_a_configuration_that_was_cut_at_a_line_is_refused(stopped: Path, n_lines: int) -> None:
    """Its missing keys would have their defaults: another experiment."""
    config = stopped / "config.yaml"
    config.write_text("".join(config.read_text().splitlines(keepends=True)[:n_lines]))
    with pytest.raises(OpenBookError, match=r"config\.yaml"):
        resume(stopped)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["trainer.checkpoint_every=2", "refresh.every=2", "evaluate.before_training=false"]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    straight = train(small_system.config(tmp_path / "a" / "run", *words))
    run = tmp_path / "b" / "run"
    train_until(small_system.config(run, *words), 5)
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    weight = next(iter(read_checkpoint(last)["state_dict"].values()))
    content[content.find(weight.numpy().tobytes()) + 3] ^= 64
    last.write_bytes(content)
    capsys.readouterr()
    resume(run)
    said = capsys.readouterr().out
    assert f"{last} is damaged" in said and "from last-1.ckpt, step 2" in said
    assert last.with_name("last.ckpt.damaged").read_bytes() == content
    assert rows(run) == rows(straight)
    first, second = (read_checkpoint(one / "checkpoints" / "last.ckpt")["state_dict"] for one in (straight, run))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    kept = sorted(path.name for path in last.parent.iterdir())
    assert kept == ["best.ckpt", "last-1.ckpt", "last.ckpt", "last.ckpt.damaged"]


def test_a_finished_run_whose_longer_training_was_stopped_before_it_began_can_be_trained_on(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(small_system.config(tmp_path / "run", "trainer.max_steps=2"))
    before = contents(run)

    def stop(*_: object) -> None:
        raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("openbook.commands.train.make_trainer", stop)
        with pytest.raises(Stopped):
            resume(run, ["trainer.max_steps=4"])
    assert contents(run).keys() == before.keys()
    assert (run / "config.yaml").read_bytes() == before["config.yaml"]
    assert json.loads((resume(run, ["trainer.max_steps=4"]) / "summary.json").read_text())["steps"] == 4


def test_a_damaged_best_checkpoint_is_named_and_keeps_no_run_from_its_end(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small_system.config(tmp_path / "run", "trainer.max_steps=3", "evaluate.checkpoint=best"))
    best = run / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:-2000])
    with pytest.raises(OpenBookError, match=r"evaluate\.checkpoint=last"):
        evaluate(run, [])
    resume(run, ["trainer.max_steps=4"])
    assert "the last weights are tested" in capsys.readouterr().out
    assert json.loads((run / "summary.json").read_text())["tested_step"] == 4


def test_a_validation_that_a_signal_left_no_time_for_is_made_good(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openbook.callbacks import Checkpointing

    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    straight = train(small_system.config(tmp_path / "a" / "run", "evaluate.before_training=false"))

    def killed(self: Checkpointing, trainer, module) -> None:  # type: ignore[no-untyped-def]
        if trainer.global_step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointing, "on_validation_start", killed)
        patch.setattr(Checkpointing, "on_train_batch_start", lambda self, trainer, *_: _signalled(self, trainer), False)
        with pytest.raises(SystemExit):  # as Lightning answers a KeyboardInterrupt
            train(small_system.config(tmp_path / "b" / "run", "evaluate.before_training=false"))
    assert read_checkpoint(tmp_path / "b" / "run" / "checkpoints" / "last.ckpt")["global_step"] == 3
    resumed = resume(tmp_path / "b" / "run")
    assert column(resumed, "validation/exact_match") == column(straight, "validation/exact_match")
    assert rows(resumed) == rows(straight)


def _signalled(checkpointing, trainer) -> None:  # type: ignore[no-untyped-def]
    if trainer.global_step == 2:
        checkpointing.received = int(signal.SIGTERM)


def test_the_best_validation_is_kept_and_can_be_tested(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from openbook.training.base_module import QuestionModule

    values = iter([0.0, 0.25, 0.75, 0.5, 0.5])

    def measured(self: QuestionModule, resamples: int) -> None:
        summarize(self, resamples)
        if self.trainer.state.fn == "fit":
            self.summary["exact_match"] = next(values)

    summarize = QuestionModule._summarize
    monkeypatch.setattr(QuestionModule, "_summarize", measured)
    words = ["trainer.max_steps=40", "trainer.validate_every=2", "trainer.patience=2", "evaluate.checkpoint=best"]
    words.append("trainer.monitor=exact_match")
    run = train(small_system.config(tmp_path / "run", *words))
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["tested_step"]) == (8, 4)
    assert summary["best"] == {"metric": "exact_match", "value": 0.75, "step": 4}
    assert read_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"] == 4
    assert "stopped early" in capsys.readouterr().out
    best = json.loads(evaluate(run).read_text())["test"]
    assert best == summary["test"]
    last = json.loads(evaluate(run, ["evaluate.checkpoint=last"]).read_text())["test"]
    assert "weights of step 8, last.ckpt" in capsys.readouterr().out
    assert last["utility"] != best["utility"]
    before = contents(run)
    assert resume(run) == run
    assert contents(run) == before


def test_a_test_by_other_settings_is_no_comparison(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small_system.config(tmp_path / "run", "trainer.max_steps=2"))
    assert json.loads((run / "summary.json").read_text())["improved"]
    resume(run, ["trainer.max_steps=3", "evaluate.n_docs=2", "decode.min_tokens=3"])
    summary, said = json.loads((run / "summary.json").read_text()), " ".join(capsys.readouterr().out.split())
    assert "before training was by decode.min_tokens=0, now 3, evaluate.n_docs=0, now 2: it is not compared" in said
    assert summary["improved"] == {} == summary["before_training"] and summary["test"]["n_questions"]


def test_the_last_step_is_validated_whatever_the_interval(small_system: SmallSystem, tmp_path: Path) -> None:
    """What the last steps train would be lost where the best validation is tested; a run that goes on from there has
    the curves of one that was never killed."""
    words = [
        "trainer.max_steps=5",
        "trainer.validate_every=3",
        "evaluate.checkpoint=best",
        "trainer.checkpoint_every=2",
    ]
    run = train(small_system.config(tmp_path / "run", *words, "evaluate.before_training=false"))
    assert list(column(run, "validation/mrr")) == [0, 3, 5]
    assert list(column(run, "train/nll")) == [1, 2, 3, 4, 5]
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 5
    far = train(small_system.config(tmp_path / "far", *words, "trainer.validate_every=100", "data.test="))
    assert list(column(far, "validation/mrr")) == [0, 5]
    resume(run, ["trainer.max_steps=8"])
    assert list(column(run, "train/nll")) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert list(column(run, "validation/mrr")) == [0, 3, 5, 6, 8]
    whole, broken = whole_and_resumed(small_system, tmp_path, [*words, "evaluate.before_training=false"], 4)
    assert rows(whole) == rows(broken)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["trainer.monitor=rouge_l"], "trainer.monitor"),
        (["trainer.monitor=loss"], "trainer.monitor"),
        (["data.validation=", "trainer.patience=2"], "trainer.patience"),
        (["data.validation=", "evaluate.checkpoint=best"], "evaluate.checkpoint"),
        (["trainer.monitor=", "evaluate.checkpoint=best"], "evaluate.checkpoint"),
        (["evaluate.checkpoint=best", "refresh.fresh_test=false"], "refresh.fresh_test"),
    ],
)
def test_a_best_checkpoint_that_nothing_can_choose_is_refused(
    small_system: SmallSystem, tmp_path: Path, words: list[str], key: str
) -> None:
    with pytest.raises(OpenBookError, match=key):
        small_system.config(tmp_path / "run", *words)


def test_eight_runs_at_once_get_eight_folders(small_system: SmallSystem, tmp_path: Path) -> None:
    words = [word for word in small_system.words(tmp_path / "run") if not word.startswith("run.dir")]
    script = (
        "import time\n"
        "from openbook.config.load import load_experiment\n"
        "from openbook.tracking import run_folder\n"
        f"config = load_experiment({words[0]!r}, {words[1:]!r})\n"
        "time.strftime = lambda form: '20260101-000000'\n"
        "run = run_folder.RunFolder.choose(config).claim()\n"
        "run.create(config)\n"
        "print(run.path)\n"
        "input()\n"
    )
    processes = [small_system.start_python(script, cwd=tmp_path) for _ in range(8)]
    assert all(process.stdout for process in processes)
    paths = {process.stdout.readline().strip() for process in processes if process.stdout}
    for process in processes:
        process.communicate("\n", timeout=60)
    assert len(paths) == 8, paths
    assert all((tmp_path / path / "config.yaml").is_file() for path in paths)


def test_the_second_run_of_a_name_is_refused_and_a_failed_one_leaves_nothing(
    small_system: SmallSystem, tmp_path: Path
) -> None:
    from openbook.tracking.run_folder import RunFolder

    config = small_system.config(tmp_path / "deep" / "run") if (tmp_path / "deep").mkdir() is None else None
    assert config is not None
    first = RunFolder.choose(config).claim()
    with pytest.raises(OpenBookError, match=r"a run is at work in this folder .*process \d+ on"):
        train(config)
    first.release()
    assert not (tmp_path / "deep" / "run").exists()
    first.path.mkdir()
    (first.path / ".lock").write_text(f"process {2**22 + 1} on {os.uname().nodename}")  # killed
    assert train(small_system.config(first.path, "trainer.max_steps=1")) == first.path
    assert not (first.path / ".lock").exists()


def test_a_run_that_is_refused_before_it_starts_leaves_no_folder(small_system: SmallSystem, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    config = small_system.config(tmp_path / "a" / "run", "index.factory=Nonsense")
    with pytest.raises(OpenBookError):
        train(config)
    assert not (tmp_path / "a" / "run").exists()
    assert time.time() > 0
