"""What builds that were killed have left in a cache folder, removed."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from openbook.utils.console import say

_OLD = 7 * 24 * 3600  # seconds: by then nobody is at it, and nobody takes it up again
# Names of utils/atomic.py, and of what a build keeps until it is taken up again (tokens.py).
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8}(\.before)?(\.\w+)?|building)")


def sweep(cache: Path, corpus: Path, locked: bool) -> None:
    """Remove what is old, and what lies in the folder of the one corpus that is being built, where this process alone
    builds it; there only pieces of tokens are kept, which the build takes up, until their arrays stand."""
    now, freed = time.time(), 0
    for path in [*cache.glob(".*"), *cache.glob("corpus-*/.*")]:
        if not _TEMPORARY.fullmatch(path.name):
            continue
        try:
            old = now - path.stat().st_mtime > _OLD
        except OSError:  # its owner was first
            continue
        stands = path.with_name(_target(path.name)).exists()
        taken_up = path.name.endswith(".building") and not stands
        own = locked and path.parent == corpus and not taken_up and not path.name.endswith(".before")
        if path.name.endswith(".before") and not stands:
            continue  # all that there is of what was being replaced
        if old or own:
            freed += sum(one.stat().st_size for one in [path, *path.rglob("*")] if one.is_file())
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if freed:
        say(f"{freed / 1e6:,.0f} MB of interrupted builds were removed from {cache}")


def _target(name: str) -> str:
    return name[1:].rsplit(".", 2)[0]
