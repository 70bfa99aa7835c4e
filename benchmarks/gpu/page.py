"""Put the figures of benchmarks/gpu.json into docs/gpu.md: `python -m benchmarks.gpu.page`.

The page's words are written by hand; what stands between its marks comes from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.common.docs_page import between_marks
from benchmarks.common.figures import WANTED, Value, table
from benchmarks.gpu.common import OUT
from openbook.utils.atomic import write_text

PAGE = Path("docs/gpu.md")


def text(found: Mapping[str, Value]) -> str:
    """The card, the figures with what is wanted of each, and what has not been measured."""
    measured = {key: value for key, value in found.items() if key.startswith("gpu.") and key != "gpu.card"}
    missing = sorted(key for key in WANTED if key.startswith("gpu.") and key not in measured)
    versions = f"torch {found.get('machine.versions.torch', '?')}, commit {found.get('machine.commit', '?')}"
    lines = [f"{found['gpu.card']}; {versions}.", "", "```", *table(measured), "```"]
    return "\n".join(lines + (["", f"Not measured: {', '.join(missing)}."] if missing else []))


def main() -> None:
    found = json.loads(OUT.read_text(encoding="utf-8"))
    write_text(PAGE, between_marks(PAGE, text(found), "gpu"))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
