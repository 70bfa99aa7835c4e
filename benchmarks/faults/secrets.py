"""Secrets and paths: canaries in the environment and on the command line are in no file that a run writes, but where
the user has put them on purpose; no file of someone else's chooses where a run writes or what it reads from the
environment; planted links are not followed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from unittest import mock

from benchmarks.faults.small import small_system, spoken
from openbook.errors import OpenBookError
from openbook.utils import atomic
from openbook.utils.turns import in_turn

NAME = "secrets and paths"
QUICK, FULL = 9, 12
CANARY = "c4nary-7f3a9d51"


def tries(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    order: dict[str, Callable[[Path], None]] = {
        "a resolver in a file": partial(_refused_file, content="wandb: {project: '${oc.env:CANARY}'}\n"),
        "a resolver in what a file extends": partial(_refused_file, content="extends: base\n"),
        "a resolver on the command line": partial(_refused, word="wandb.project=${oc.env:CANARY}"),
        "a resolver with a default": partial(_refused, word="wandb.project=${oc.env:CANARY,none}"),
        "a file that chooses a run folder elsewhere": partial(_refused_file, content="run: {dir: /tmp/elsewhere}\n"),
        "an absolute run name": partial(_refused, word="run.name=/tmp/elsewhere"),
        "a run name that leads upwards": partial(_refused, word="run.name=../../elsewhere"),
        "a link at a temporary name": _temporary_link,
        "a link at a file's own name": _target_link,
        "a link at a lock's name": _lock_link,
        "canaries in a run's files": partial(_canaries, mode="disabled"),
        "canaries in a run's files, with wandb": partial(_canaries, mode="offline"),
    }
    for number, (what, attempt) in enumerate(islice(order.items(), count)):
        yield what, partial(attempt, folder / str(number))


def _refused(folder: Path, word: str) -> None:
    folder.mkdir(parents=True)
    words = small_system(folder.parent / "system").words(folder / "run")
    words = [*words, "run.dir=", word] if word.startswith("run.") else [*words, word]
    _must_refuse(["train", *words], folder)


def _refused_file(folder: Path, content: str) -> None:
    folder.mkdir(parents=True)
    (folder / "base.yaml").write_text("wandb: {project: '${oc.env:CANARY}'}\n")
    words = small_system(folder.parent / "system").words(folder / "run")
    Path(words[0]).write_text(content)
    _must_refuse(["train", *(word for word in words if not word.startswith("run.dir="))], folder)


def _must_refuse(words: list[str], folder: Path) -> None:
    with mock.patch.dict(os.environ, {"CANARY": CANARY}):
        code, said = spoken(words)
    assert code == 2 and said.count("error: ") == 1 and "Traceback" not in said, (code, said[-2000:])
    assert CANARY not in said and not holding(folder, CANARY), said
    assert not Path("/tmp/elsewhere").exists()


def _temporary_link(folder: Path) -> None:
    """Someone has guessed the random name."""
    folder.mkdir(parents=True)
    victim, target = folder / "victim", folder / "a.txt"
    victim.write_text("mine")
    with mock.patch("openbook.utils.atomic.uuid.uuid4", return_value=mock.Mock(hex="0" * 32)):
        (folder / ".a.00000000.txt").symlink_to(victim)
        try:
            atomic.write_text(target, "new")
        except OpenBookError:
            refused = True
        else:
            refused = False
    assert refused and victim.read_text() == "mine" and not target.exists()


def _target_link(folder: Path) -> None:
    folder.mkdir(parents=True)
    victim, target = folder / "victim", folder / "summary.json"
    victim.write_text("mine")
    target.symlink_to(victim)
    atomic.write_json(target, {})
    assert victim.read_text() == "mine" and not target.is_symlink()


def _lock_link(folder: Path) -> None:
    (folder / ".locks").mkdir(parents=True)
    (folder / ".locks" / "corpus").symlink_to(folder / "victim")
    with in_turn(folder, "corpus"):
        pass
    assert not (folder / "victim").exists()


def _canaries(folder: Path, mode: str) -> None:
    """In the environment under the names that keys have, and on the command line where a later word replaces it: found
    nowhere. In wandb.project, where the user has put it: in config.yaml, which shows that the search finds it."""
    for name in ("home", "tmp"):
        (folder / name).mkdir(parents=True)
    on_purpose = "c4nary-on-purpose"
    words = small_system(folder.parent / "system").words(
        folder / "run", "trainer.max_steps=2", f"wandb.mode={mode}", f"shows={CANARY}-argv", "shows=nothing"
    )
    keys = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENBOOK_SECRET")
    environment = {**os.environ, **dict.fromkeys(keys, f"{CANARY}{'0' * 25}"), "HF_HUB_OFFLINE": "1"}
    environment |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "OPENBOOK_RUN_DIR": ""}
    command = [sys.executable, "-m", "openbook", "train", *words, f"wandb.project={on_purpose}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert CANARY not in done.stdout + done.stderr
    assert not holding(folder, CANARY), holding(folder, CANARY)
    assert folder / "run" / "config.yaml" in holding(folder, on_purpose)


def holding(folder: Path, text: str) -> list[Path]:
    """The files below the folder that hold a text, and those whose names do."""
    found = []
    for path in folder.rglob("*"):
        if text in path.name or (path.is_file() and text.encode() in path.read_bytes()):
            found.append(path)
    return found
