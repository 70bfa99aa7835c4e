from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread

from openbook.errors import OpenBookError
from openbook.metrics.prediction import Prediction, ReadPassage
from openbook.metrics.summary import summarize
from openbook.reporting.panels import AGREEMENT, DRIFT, LOSS, PANELS, VALIDATION, Line
from openbook.reporting.report import write_report
from openbook.reporting.run_plots import BASELINE, Curve, curve_of, plot_run
from openbook.tracking.curves import read_metrics

AT_REFRESHES = ("refresh/overlap_at_k", "refresh/rank_correlation", "refresh/cosine_drift", "index/recall_of_family")
HOSTILE = '<script>alert("$x^{$")</script>'


def prediction(number: int, right: bool, relation: str) -> Prediction:
    passages = (ReadPassage("p1", f"Title {HOSTILE}", 0.25, 0.75, True), ReadPassage("p2", "Mali", 0.75, 0.25, False))
    return Prediction(
        id=f"q{number}",
        question=f"Question {number}?",
        answers=("Lomé",),
        prediction="Lomé" if right else HOSTILE,
        relation=relation,
        phrasing="reworded",
        passages=passages,
        exact_match=float(right),
        f1=float(right),
        hits=(right, True),
    )


def predictions(n_right: int, n_wrong: int) -> list[Prediction]:
    right = [prediction(number, True, ("capital", HOSTILE)[number % 2]) for number in range(n_right)]
    return right + [prediction(100 + number, False, "capital") for number in range(n_wrong)]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run-7"
    folder.mkdir()
    after = predictions(11, 3)
    summary = {
        "experiment": "rag_token",
        "status": "finished",
        "steps": 60,
        "seconds": {"total": 601.0, "train": 42.0},
        "before_training": summarize(predictions(2, 5)),
        "test": summarize(after),
        "index": {"generation": 3, "n_passages": 12345, "factory": "Flat"},
        "disclosures": ["The reader was warmed up on gold passages & more."],
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "environment.json").write_text(json.dumps({"packages": {"torch": "2.13.0"}, "gpus": ["none", "at all"]}))
    (folder / "config.yaml").write_text("experiment: tiny\nretriever:\n  n_docs: 5  # <five>\n")
    (folder / "predictions.jsonl").write_text("".join(json.dumps(one.to_json()) + "\n" for one in after))
    lines = [column for panel in PANELS for column in panel.columns]
    columns = ["step", "epoch", *lines, "refresh/generation", "refresh/seconds"]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for step in range(0, 61, 10):
            values = {column: 0.5 for column in lines if column not in AT_REFRESHES}
            writer.writerow({"step": step, "epoch": 0, **values})
        for generation, step in ((1, 20), (2, 40)):
            row = {"refresh/generation": generation, "refresh/seconds": 7.5}
            row |= dict.fromkeys(AT_REFRESHES, 0.625)
            writer.writerow({"step": step, **row})
    return folder


class Page(HTMLParser):
    """Collects what a browser would load, run or trip over."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if (tag, name, value) == ("link", "href", "data:,"):  # no icon: a browser would ask a server for one
                continue
            if name in ("href", "src", "xlink:href", "srcset", "action", "data"):
                self.references.append(value or "")
            assert not name.startswith("on"), "no event handlers"

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(folder: Path) -> tuple[str, Page]:
    written = write_report(folder)
    assert written == folder / "report.html"
    text = written.read_text(encoding="utf-8")
    return text, Page(text)


def test_report_holds_everything(run_folder: Path) -> None:
    text, page = page_of(run_folder)
    for said in (
        "rag_token / run-7",
        "28.6 %",  # exact match before: 2 of 7
        "78.6 %",  # after: 11 of 14
        "+50.0",
        "10 min",
        "12,345",
        "warmed up on gold passages & more.",
        "n_docs: 5  # <five>",
        "packages.torch",
        "none, at all",
        "overlap@k",
        "0.625",
        "rank correlation",
        "Recall of the index type: share of the exact search results",
        "12 of 14 test questions",
        "14 questions. Small: 95 % intervals",
        HOSTILE,
    ):
        assert said in page.text, said
    assert page.tags.count("svg") == len(PANELS)
    assert 'class="missing"' not in text
    assert not list(run_folder.glob("*.tmp"))


def test_report_is_self_contained_and_escaped(run_folder: Path) -> None:
    text, page = page_of(run_folder)
    assert not {"img", "iframe", "image", "object", "form"} & set(page.tags)
    assert page.tags.count("script") == 2, "the data of the search, and what searches"
    assert "src=" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert page.references, "the markers of the plots refer to themselves"
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in page.references)
    assert all(name in page.ids for name in re.findall(r"url\(#([^)]*)\)", text))
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))


def test_plots_follow_the_page_in_light_and_dark(run_folder: Path) -> None:
    text, _ = page_of(run_folder)
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--blue)" in drawn
    assert "currentColor" in drawn
    assert not re.search(r"(fill|stroke): #", drawn), "a fixed colour would not follow"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("summary.json", "summary.json is missing from the run folder."),
        ("metrics.csv", "metrics.csv is missing from the run folder."),
        ("predictions.jsonl", "predictions.jsonl is missing from the run folder."),
        ("config.yaml", "config.yaml is missing from the run folder."),
        ("environment.json", "environment.json is missing from the run folder."),
    ],
)
def test_a_missing_file_is_named(run_folder: Path, name: str, said: str) -> None:
    (run_folder / name).unlink()
    _, page = page_of(run_folder)
    assert page.text.count(said) == 1
    assert "Versions and hardware" in page.text


def test_an_empty_folder_gives_a_report(tmp_path: Path) -> None:
    _, page = page_of(tmp_path)
    assert page.text.count("is missing from the run folder.") == 5
    assert "svg" not in page.tags


def test_damaged_files_are_named(run_folder: Path) -> None:
    (run_folder / "summary.json").write_text("[1, 2]")
    (run_folder / "environment.json").write_text('{"a": ')
    with (run_folder / "predictions.jsonl").open("a") as file:
        file.write('{"id": "q"}\nnonsense\n')
    _, page = page_of(run_folder)
    assert "summary.json cannot be read: it holds a list, not an object." in page.text
    assert "environment.json cannot be read: it is cut." in page.text
    assert "predictions.jsonl: 2 lines cannot be read, the first is line 15." in page.text
    assert "12 of 14 test questions" in page.text


def test_groups_come_from_predictions_where_the_summary_has_none(run_folder: Path) -> None:
    summary = json.loads((run_folder / "summary.json").read_text())
    for key in ("test", "before_training"):
        summary[key] = {name: value for name, value in summary[key].items() if not name.startswith("by_")}
    (run_folder / "summary.json").write_text(json.dumps(summary))
    _, page = page_of(run_folder)
    assert "capital (9)" in page.text  # 6 right ones and 3 wrong ones


def test_missing_columns_are_named(run_folder: Path) -> None:
    (run_folder / "metrics.csv").write_text("epoch,step,train/nll\n0,1,2.5\n0,2,nan\n0,3,2.0\n")
    _, page = page_of(run_folder)
    assert "metrics.csv has no train/staleness." in page.text
    columns = ("recall_at_5", "recall_at_1", "exact_match", "f1")
    assert f"metrics.csv has no {' or '.join(f'validation/{name}' for name in columns)}." in page.text
    assert "metrics.csv has no refresh: the index was built once and never refreshed." in page.text
    assert "nats per question" in page.text, "the loss per question stands in for the loss per token"


def test_a_run_without_the_measures_of_the_index_is_no_worse_for_it(run_folder: Path) -> None:
    """metrics.csv as it was before they were logged: nothing is said to be missing, no column is all dashes."""
    (run_folder / "metrics.csv").write_text(
        "step,train/nll_per_token,train/staleness,validation/recall_at_1,refresh/generation,refresh/overlap_at_k\n"
        "1,2.5,.1,,,\n2,2.0,.2,.5,1,.75\n3,1.5,.1,,,\n"
    )
    _, page = page_of(run_folder)
    assert "Agreement of the index with the current encoders" in page.text
    assert "overlap@k at refreshes" in page.text
    assert "Overlap@k: share of the probe questions' previous top-k that the new index also finds." in page.text
    for absent in (
        "cosine drift",
        "Cosine drift",
        "Age of the index",
        "Passages encoded",
        "rank correlation:",
        "index type",
    ):
        assert absent not in page.text, absent


def test_an_index_renewed_in_slices_is_not_called_as_built(run_folder: Path) -> None:
    (run_folder / "metrics.csv").write_text(
        "step,train/nll_per_token,refresh/mean_age,refresh/encoded_passages,index/recall_of_family\n"
        "0,,,1000,.97\n1,2.5,1,1100,\n2,2.0,1.5,1200,\n"
    )
    _, page = page_of(run_folder)
    assert "refreshed slice by slice" in page.text
    assert "built once" not in page.text
    assert "generation" not in page.text.split("Refreshes of the index")[1].split("Per relation")[0]
    assert "Age of the index" in page.text and "Passages encoded for the index" in page.text


def test_one_curve_from_two_columns() -> None:
    line = Line(("at", "between"), "both", "#000000")
    curves = {"at": ([30.0, 60.0], [0.5, 0.6]), "between": ([10.0, 30.0, 40.0], [0.9, 0.4, 0.8])}
    assert line.points(curves) == ([10, 30, 40, 60], [0.9, 0.4, 0.8, 0.6])
    assert line.points({"at": curves["at"]}) == curves["at"]
    assert line.points({}) == ([], [])


def test_a_curve_that_a_refresh_mends_starts_anew_there() -> None:
    curves = {
        "staleness/cosine_drift": ([5.0, 9.0, 14.0, 19.0], [0.1, 0.2, 0.1, 0.2]),
        "refresh/cosine_drift": ([10.0], [0.25]),
        "refresh/generation": ([10.0], [1.0]),
    }

    def strokes(drawn: Curve | None) -> list[int]:
        """Points per unbroken piece of the orange curve."""
        assert drawn is not None
        path = re.search(
            r'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--orange\); stroke-width: 1.8', drawn.svg
        )
        assert path is not None
        return [len(piece.split("L")) for piece in path[1].split("M") if piece.strip()]

    assert strokes(curve_of(DRIFT, curves)) == [3, 2], "the value at the refresh was measured before it"
    del curves["refresh/generation"]
    assert strokes(curve_of(DRIFT, curves)) == [5]


def test_rank_correlation_below_zero_stays_in_the_picture() -> None:
    for lower, lowest in ((0.25, 0.0), (-0.5, -0.5)):
        curve = curve_of(AGREEMENT, {"staleness/rank_correlation": ([1.0, 2.0], [0.5, lower])})
        assert curve is not None
        drawn = curve.svg
        axis = drawn[drawn.index("matplotlib.axis_2") :].replace("\N{MINUS SIGN}", "-")
        assert min(float(tick) for tick in re.findall(r">(-?[\d.]+)</text>", axis)) == lowest


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OpenBookError, match=r"no run folder to report on \(.*gone\).*Give the run folder"):
        write_report(tmp_path / "gone")


def test_read_metrics_takes_gaps_and_the_last_of_a_repeated_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,a,b\n3,0,1.5,\n1,0,,7\n3,1,2.5,\n,0,9,9\n5,1,inf,nan\n")
    assert read_metrics(path) == {"epoch": ([1, 3, 5], [0, 1, 1]), "a": ([3], [2.5]), "b": ([1], [7])}


def test_curves_start_at_what_was_measured_before_the_first_update() -> None:
    """The first training step's loss is that of the untrained weights; a curve that begins later has no such value."""
    loss, validation = LOSS, VALIDATION
    for panel, curves, n_circles in (
        (loss, {"train/nll_per_token": ([1.0, 2.0], [3.0, 2.0])}, 1),
        (loss, {"train/nll_per_token": ([51.0, 52.0], [3.0, 2.0])}, 0),
        (validation, {"validation/f1": ([0.0, 5.0], [0.1, 0.2]), "validation/recall_at_1": ([0.0], [0.5])}, 2),
    ):
        drawn = curve_of(panel, curves)
        assert drawn is not None
        assert (BASELINE in [label for label, *_ in drawn.legend]) == bool(n_circles)
        assert drawn.svg.count("fill-opacity: 0") + drawn.svg.count("stroke-dasharray: 0.9") == 2 * n_circles


def test_plot_run_is_a_picture(run_folder: Path, tmp_path: Path) -> None:
    plot_run(run_folder, tmp_path / "full.png")
    full = imread(tmp_path / "full.png")
    assert full.shape[:2] == (800, 1200)
    assert full[..., :3].std() > 0.05
    (run_folder / "metrics.csv").unlink()
    plot_run(run_folder, tmp_path / "empty.png")
    assert imread(tmp_path / "empty.png").shape[:2] == (800, 1200)
