"""metrics.csv of a run that is resumed: what can be read of it stays, what cannot is counted and kept aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from openbook.tracking.curves import read_metrics, read_rows
from openbook.tracking.metrics_csv import MetricsCsv

WHOLE = b"step,a,b\n1,0.5,\n2,0.25,7.0\n3,0.125,\n"


def test_a_whole_one_goes_on_from_its_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.csv").write_bytes(WHOLE)
    curves = MetricsCsv(tmp_path / "metrics.csv", keep_until=2)
    assert curves.rows == {1: {"a": 0.5}, 2: {"a": 0.25, "b": 7.0}}
    curves.log_metrics({"a": 1.0}, step=2)
    curves.flush()
    assert (tmp_path / "metrics.csv").read_bytes().replace(b"\r", b"") == b"step,a,b\n1,0.5,\n2,0.25,7.0\n3,1.0,\n"
    assert capsys.readouterr().out == "" and [one.name for one in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    ("content", "rows", "said"),
    [
        (WHOLE[:-4], [1, 2], "1 of its lines, the first is line 4"),
        (WHOLE[:-1], [1, 2], "1 of its lines, the first is line 4"),  # 0.125 may have been 0.1257
        (WHOLE.replace(b"0.25", b"0\xff5"), [1, 3], "1 of its lines, the first is line 3"),
        (WHOLE.replace(b"\n2,", b"\nx,"), [1, 3], "1 of its lines, the first is line 3"),
        (WHOLE.replace(b"7.0", b"7.o"), [1, 2, 3], "and 1 cells of others"),
        (WHOLE[9:], [], "3 of its lines, the first is line 1"),
        (b"", [], "it has no rows: the curves begin after step 9"),
    ],
)
def test_damage_is_counted_and_kept_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, rows: list[int], said: str
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    curves = MetricsCsv(path, keep_until=9)
    assert list(curves.rows) == rows
    assert said in " ".join(capsys.readouterr().out.split())
    assert path.read_bytes() == content  # the run may still be refused
    curves.log_metrics({"a": 1.0}, step=9)
    curves.flush()
    assert path.with_name("metrics.csv.damaged").read_bytes() == content
    assert read_rows(path)[1] == [] and read_metrics(path)["a"][0][-1] == 10


def test_one_that_is_gone_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MetricsCsv(tmp_path / "metrics.csv", keep_until=4)
    assert "the curves begin after step 4" in " ".join(capsys.readouterr().out.split())
