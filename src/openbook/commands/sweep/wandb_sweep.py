"""A sweep by wandb: the file its agents read, the sweep on the server, an agent here, and what earlier agents left."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from openbook.commands.child_process import run_command, run_program
from openbook.commands.sweep.request import SweepFile
from openbook.commands.sweep.trial import folder_of
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.tracking import run_lock
from openbook.tracking.loggers.identity import SIGNALLED, Identity
from openbook.tracking.run_folder import read_json
from openbook.utils.atomic import write_text
from openbook.utils.console import say, say_result
from openbook.utils.outside import check_wandb

KILL_DELAY = "600"  # seconds that a stopped trial has for its checkpoint; wandb would kill it after 30


def wandb_sweep(
    experiment: str, file: SweepFile, args: Sequence[str], runs: Path, *, sweep: str, count: int, dry_run: bool
) -> None:
    """Create the sweep (or join `sweep`, by its id) and work on it here until it has no trial left, or for `count`
    trials. Trials of this sweep that were interrupted on this machine are resumed first.

    Raises OpenBookError before anything is sent where the file, the configurations or wandb's login are not right.
    """
    config = file.configs(experiment, args, file.corners())[0]
    check_wandb("online")
    target = runs / config.experiment / "sweeps" / f"{file.name}.yaml"
    content = content_of(experiment, file, args, runs / config.experiment)
    if dry_run:
        say_result(f"{yaml.safe_dump(content, sort_keys=False)}nothing is sent: dry run")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, yaml.safe_dump(content, sort_keys=False))
    path = _path(sweep, config, content) if sweep else _create(content, config)
    name = path.rpartition("/")[2]
    again = f"the same command with SWEEP_ID={name} (--sweep-id {name})"
    say_result(f"sweep {path}; another agent, here or elsewhere: {again}")
    _resume(runs / config.experiment, name)
    _work(path, count, target.with_suffix(""))


def content_of(experiment: str, file: SweepFile, args: Sequence[str], folder: Path) -> dict[str, Any]:
    """The file with the command that agents run for each trial, by this Python. folder: of the trials' run folders."""
    content: dict[str, Any] = yaml.safe_load(file.path.read_text(encoding="utf-8"))
    command = ["${env}", sys.executable, "-m", "openbook.commands.sweep.trial", str(folder.resolve()), experiment]
    return content | {
        "name": file.name,
        "program": "openbook",
        "command": [*command, *args, "wandb.mode=online", "${args_no_hyphens}"],
    }


def _create(content: Mapping[str, Any], config: Config) -> str:
    """ENTITY/PROJECT/ID of a new sweep."""
    import wandb

    project = content.get("project") or config.wandb.project
    try:
        name = wandb.sweep(dict(content), project=project, entity=content.get("entity"))
    except Exception as error:  # of whatever kind: of a server that is not reached, or refuses
        raise OpenBookError(
            "wandb has not taken the sweep",
            where="--backend",
            got=str(error).strip().split("\n", 1)[0],
            action="--backend local trains the same trials without a server.",
        ) from error
    return _path(name, config, content)


def _path(name: str, config: Config, content: Mapping[str, Any]) -> str:
    if "/" in name:
        return name
    parts = [content.get("entity"), content.get("project") or config.wandb.project, name]
    return "/".join(str(part) for part in parts if part)


def _resume(folder: Path, sweep: str) -> None:
    """Trials of the sweep that a crash or a signal has ended, one after another, each in its own folder."""
    left = [trial for trial in sorted(folder.glob(folder_of(sweep, "*"))) if _is_left(trial)]
    if left:
        say(f"{len(left)} interrupted trials of this sweep are resumed first")
    for trial in left:
        if code := run_command(["resume", str(trial)]):
            say(f"warning: {trial} ended with code {code}; it is tried again by the next agent that starts here")


def _is_left(trial: Path) -> bool:
    identity, status = Identity.read(trial), read_json(trial / "summary.json").get("status")
    stopped = identity is not None and identity.stopped
    known = (trial / "config.yaml").is_file()
    return known and not stopped and status not in ("finished", "failed") and not run_lock.holder(trial)


def _work(path: str, count: int, folder: Path) -> None:
    """wandb's agent, whose files lie in the folder. A signal that reaches this process goes to the trial by way of the
    agent, and a file says so first."""
    folder.mkdir(parents=True, exist_ok=True)
    signalled = folder / f"signalled-{os.getpid()}"
    words = ["agent", "--forward-signals", *(["--count", str(count)] if count else []), path]
    more = {
        "WANDB_DIR": str(folder.resolve()),
        SIGNALLED: str(signalled.resolve()),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_AGENT_KILL_DELAY": KILL_DELAY,
    }
    try:
        code = run_program([sys.executable, "-m", "wandb", *words], more, before_signal=signalled.touch)
    finally:
        signalled.unlink(missing_ok=True)
    if code:
        raise OpenBookError(f"`wandb {' '.join(words)}` ended with code {code}")
