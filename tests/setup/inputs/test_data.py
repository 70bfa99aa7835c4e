"""From keys to files."""

from __future__ import annotations

from pathlib import Path

import pytest

from openbook.setup.inputs import data
from tests.small_system import SmallSystem


def test_sums_are_forgotten_once_and_only_where_that_is_asked_for(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(data, "forget", forgotten.append)
    cache = f"data.cache={tmp_path / 'cache'}"
    data.files(small_system.config(tmp_path / "run", cache))
    assert forgotten == []
    for _ in range(2):
        data.files(small_system.config(tmp_path / "run", cache, "data.verify=true"))
    assert forgotten == [str(tmp_path / "cache")]
