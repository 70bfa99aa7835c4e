"""By what a run is known to wandb: kept in its folder, so that a resumed run is the same run wherever it lies."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from openbook.tracking.run_folder import read_json
from openbook.utils.atomic import write_json

NAME = "wandb.json"
# What wandb's agent sets for a trial of a sweep.
RUN_ID, SWEEP_ID = "WANDB_RUN_ID", "WANDB_SWEEP_ID"
# By which `openbook sweep` names the file that it writes before it passes a signal on to its agent: a trial that is
# stopped while there is none was stopped by its sweep.
SIGNALLED = "OPENBOOK_SWEEP_SIGNALLED"


@dataclass(frozen=True)
class Identity:
    """id: of the run. sweep: whose trial it is. stopped: the sweep ended the trial early; it is not to be resumed."""

    id: str
    sweep: str = ""
    stopped: bool = False

    @classmethod
    def read(cls, folder: Path) -> Identity | None:
        """As it is kept in a run folder; None where nothing is, or nothing that can be read."""
        found = read_json(folder / NAME)
        name = found.get("id")
        if not isinstance(name, str) or not name:
            return None
        return cls(name, str(found.get("sweep") or ""), found.get("stopped") is True)

    @classmethod
    def of(cls, folder: Path, resumed: bool) -> Identity:
        """What is kept; else what an agent asks for; else a new one. A resumed run that has none is of a version which
        knew it by the hash of its folder's path."""
        if kept := cls.read(folder):
            return kept
        if resumed:
            return cls(hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12])
        sweep = os.environ.get(SWEEP_ID, "")
        return cls((os.environ.get(RUN_ID, "") if sweep else "") or secrets.token_hex(6), sweep)

    def keep(self, folder: Path) -> None:
        write_json(folder / NAME, asdict(self))
