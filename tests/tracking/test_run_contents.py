"""Lines are read by the rule they are written by."""

import json
from pathlib import Path

from openbook.metrics.prediction import Prediction
from openbook.tracking.run_contents import read_run
from openbook.tracking.run_folder import RunFolder


def test_separators_inside_a_text_end_no_line(tmp_path: Path) -> None:
    texts = ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb\x0cc\x1cd", "a\rb\nc"]
    fields = Prediction("1", "q", ("x",), "y", "", "", (), 0.0, 0.0, ()).to_json()
    RunFolder.write_predictions(tmp_path, [{**fields, "id": str(n), "question": text} for n, text in enumerate(texts)])
    files = read_run(tmp_path)
    assert [one.question for one in files.predictions] == texts
    assert "predictions.jsonl" not in files.problems
    assert (tmp_path / "predictions.jsonl").read_bytes().count(b"\n") == len(texts)
    assert json.loads((tmp_path / "predictions.jsonl").read_bytes().split(b"\n")[0])["question"] == texts[0]
