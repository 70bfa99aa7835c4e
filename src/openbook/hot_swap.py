"""`hot-swap`: a trained run answers from two corpora that disagree, without training (Lewis et al. 2020, section 4.5).

Two indexes times two sets of facts. Where the answers come from the index, the matching cells are high and the others
low; a generator that answered by heart would answer the same from both.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from openbook import build, paper
from openbook.batch import Example
from openbook.config import BUILT_IN, Config
from openbook.docs_page import publish
from openbook.errors import OpenBookError, raise_all
from openbook.evaluate import answer_test
from openbook.intervals import bootstrap, mean_of
from openbook.metrics import HELD_OUT, Prediction, exact_match, normalize_answer
from openbook.preflight import check_swap
from openbook.prepare import prepare
from openbook.progress import console, say
from openbook.run_search import Runs, changes_nothing, read_json
from openbook.runs import RunFolder, write_json
from openbook.stream import QuestionFile

INDEXES, FACTS = ("original_index", "changed_index"), ("original_facts", "changed_facts")
SIDES = {
    "matched": tuple(zip(INDEXES, FACTS, strict=True)),
    "mismatched": tuple(zip(INDEXES, reversed(FACTS), strict=True)),
}
"""The two (index, facts) that belong together, and the two that do not."""

Grid = Mapping[str, Mapping[str, float]]


def hot_swap(folder: str, overrides: list[str]) -> Path:
    """Answer the changed questions from both corpora and score them by both sets of facts; returns summary.json.

    It is written to `hot_swap/` in the run folder, beside predictions_original_index.jsonl and
    predictions_changed_index.jsonl, each scored by the facts of its own corpus. The run's own files are left as they
    are. Exact match, 0 to 1; questions in held-out phrasings are reported apart, as everywhere.
    """
    run = RunFolder.existing(folder)
    config = run.load_config(overrides, training=False)
    _check(config)
    sides = _sides(config)
    facts = dict(zip(FACTS, (_facts(config, config.hot_swap.facts), _facts(config, config.hot_swap.changed_facts)),
                     strict=True))  # fmt: skip
    _check_facts(config, *facts.values())
    for side in sides.values():  # what is wrong with the second corpus is not found after answering from the first
        prepare(side, "test")
    answered: dict[str, list[Prediction]] = {}
    for number, (index, side) in enumerate(sides.items(), 1):
        say(f"answering from the {index.replace('_', ' ')}, {number} of 2: {side.data.corpus}")
        module, trainer, _ = answer_test(run, side)
        answered[index] = module.predictions
    summary = {"experiment": config.experiment, "seed": config.seed, "overrides": overrides}
    summary |= summarize(answered, {name: {id_: one.answers for id_, one in of.items()} for name, of in facts.items()},
                         config.evaluate.regex_answers, config.evaluate.bootstrap, config.seed)  # fmt: skip
    target = run.path / "hot_swap"
    if trainer.is_global_zero:
        _write(target, summary, answered)
        console.print(table(summary))
        say(f"results in {target}")
    return target / "summary.json"


def summarize(
    answered: Mapping[str, Sequence[Prediction]], facts: Mapping[str, Mapping[str, Sequence[str]]],
    regex: bool = False, resamples: int = 1000, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The 2 x 2 table and what it comes to, in all and per relation; held-out phrasings apart.

    answered: {index: its predictions}. facts: {facts: {question id: answers}}. `matched` is the mean of the two cells
    whose index and facts belong together, `mismatched` of the others; `intervals` are 95 %, by drawing the questions
    anew, each with its answers from both indexes; none with 0 resamples. regex: the answers are regular expressions.
    """
    first = [one for one in answered[INDEXES[0]] if one.phrasing != HELD_OUT] or answered[INDEXES[0]]
    counted = {one.id for one in first}
    held_out = {one.id for one in answered[INDEXES[0]]} - counted
    relations = sorted({one.relation for one in first} - {""})
    right = {(index, name): {one.id: exact_match(one.prediction, answers[one.id], regex) for one in predictions}
             for index, predictions in answered.items() for name, answers in facts.items()}  # fmt: skip
    result = _cells(right, counted)
    drawn = {name: mean_of([(right[one][id_] + right[other][id_]) / 2 for id_ in sorted(counted)])
             for name, (one, other) in SIDES.items()}  # fmt: skip
    found = bootstrap(drawn, resamples, seed) if resamples else {}
    result["intervals"] = {name: list(interval) for name, interval in found.items()}
    result["by_relation"] = {}
    for relation in relations:
        cells = _cells(right, {one.id for one in first if one.relation == relation})
        result["by_relation"][relation] = {key: cells[key] for key in ("matched", "mismatched", "n_questions")}
    result["held_out"] = _cells(right, held_out) if held_out else {}
    return result


def results(folders: Sequence[Path]) -> dict[str, Any]:
    """{table: the 2 x 2 means; matched, mismatched: means; matched_range, mismatched_range: [least, most]; n} over run
    folders whose hot-swap was made."""
    summaries = []
    for folder in folders:
        path = Path(folder) / "hot_swap" / "summary.json"
        if not path.is_file():
            raise OpenBookError("no hot-swap in this run folder", where=folder, expected="hot_swap/summary.json",
                                action=f"make hot-swap RUN={folder}")  # fmt: skip
        summaries.append(json.loads(path.read_text(encoding="utf-8")))
    if not summaries:
        raise OpenBookError("no hot-swap to report on", got="0 run folders", action="make hot-swap RUN=...")
    grid = {index: {facts: fmean(one["table"][index][facts] for one in summaries) for facts in FACTS}
            for index in INDEXES}  # fmt: skip
    spread: dict[str, Any] = {"n": len(summaries), "table": grid}
    for name in ("matched", "mismatched"):
        values = [summary[name] for summary in summaries]
        spread |= {name: fmean(values), f"{name}_range": [min(values), max(values)]}
    return spread


def write_docs(folder: Path, docs: Path = Path("docs")) -> None:
    """Put the hot-swaps of this run and of those that differ from it in the seed alone, made with the same overrides,
    into results.json (key hot_swap) and between their markers in results.md; what else is there stays. Of several runs
    of a seed the one swapped last counts."""
    same = _alike(folder)
    spread = results(same)
    wanted = read_json(folder / "hot_swap" / "summary.json")
    page, figures = publish(docs, "hot-swap", _page(wanted, spread), {"hot_swap": spread})
    say(f"{figures} and {page} say the hot-swap of {len(same)} run(s) of {wanted['experiment']}")


def _alike(folder: Path) -> list[Path]:
    """The run folder and its like, one per seed, by seed."""
    folder = folder.resolve()
    runs = [(run, run.path / "hot_swap" / "summary.json") for run in Runs(folder.parent.parent).of(folder.parent.name)]
    mine = next((run for run, _ in runs if run.path == folder), None)
    if mine is None:
        raise OpenBookError("not a run folder", where=folder, got="no readable config.yaml in it")

    def told(summary: Mapping[str, Any]) -> tuple[object, ...]:
        changes = [one for one in summary["overrides"] if not changes_nothing(one, mine.values)]
        return summary["experiment"], dict(one.split("=", 1) for one in changes), summary["n_questions"]

    wanted = told(read_json(folder / "hot_swap" / "summary.json"))
    newest: dict[int, tuple[float, Path]] = {}
    for run, path in runs:
        seed = run.config.seed
        if path.is_file() and run.values == {**mine.values, "seed": seed} and told(read_json(path)) == wanted:
            newest[seed] = max(newest.get(seed, (0.0, path)), (path.stat().st_mtime, run.path))
    return [newest[seed][1] for seed in sorted(newest)]


def table(summary: Mapping[str, Any]) -> Table:
    """For the terminal: both indexes times both sets of facts, the paper's figures beside them."""
    shown = Table(title=f"hot-swap: {summary['experiment']}, {summary['n_questions']} questions")
    shown.add_column("exact match", no_wrap=True)
    for name in ("original facts", "changed facts", "paper: original", "paper: changed"):
        shown.add_column(name, justify="right", no_wrap=True)
    for index in INDEXES:
        cells = [grid[index][facts] for grid in (summary["table"], paper.HOT_SWAP) for facts in FACTS]
        shown.add_row(index.replace("_", " "), *(f"{100 * cell:.1f} %" for cell in cells))
    shown.add_section()
    ends = {name: [f"{100 * end:.1f}" for end in interval] for name, interval in summary["intervals"].items()}
    for name, theirs in _means(paper.HOT_SWAP).items():
        spread = f"95 %: {' - '.join(ends[name])}" if name in ends else ""
        shown.add_row(name, f"{100 * summary[name]:.1f} %", spread, f"{100 * theirs:.1f} %", "")
    return shown


def _check(config: Config) -> None:
    if config.objective in ("closed_book", "dpr"):
        lacks = "index to swap" if config.objective == "closed_book" else "generator to answer with"
        raise OpenBookError(f"this run has no {lacks}", where="objective", got=config.objective,
                            expected="a run that answers from passages")  # fmt: skip
    check_swap(config)
    embedded = config.data.corpus in BUILT_IN["corpus"]
    problems = []
    for key, kind in (("corpus", "corpus"), ("facts", "test"), ("changed_facts", "test")):
        name = getattr(config.hot_swap, key)
        if (name in BUILT_IN[kind]) != embedded:
            whose = "the embedded corpus" if embedded else "a corpus of your own"
            expected = f"one of {', '.join(BUILT_IN[kind])}" if embedded else "a file"
            problems.append(OpenBookError(f"it does not go with {whose}", where=f"hot_swap.{key}", got=repr(name),
                                          expected=expected))  # fmt: skip
    corpus = config.hot_swap.corpus
    if corpus == config.data.corpus:
        problems.append(OpenBookError("both indexes would be of the same corpus", where="hot_swap.corpus",
                                      got=repr(corpus), expected="another one than data.corpus"))  # fmt: skip
    raise_all(problems)


def _sides(config: Config) -> dict[str, Config]:
    """The configuration of each evaluation: its corpus, and the questions with the answers of that corpus."""
    swap, data = config.hot_swap, config.data
    pairs = zip(INDEXES, (data.corpus, swap.corpus), (swap.facts, swap.changed_facts), strict=True)
    return {index: replace(config, data=replace(data, corpus=corpus, test=test)) for index, corpus, test in pairs}


def _facts(config: Config, name: str) -> dict[str, Example]:
    path = build.named_file(config, "test", name)
    assert path is not None  # check_swap refuses an empty name
    questions = QuestionFile(path, config.data.cache)
    return {questions[place].id: questions[place] for place in range(len(questions))}


def _check_facts(config: Config, original: Mapping[str, Example], changed: Mapping[str, Example]) -> None:
    """The same questions in both, and no answer that is right by both, as far as answers can be compared: two regular
    expressions cannot."""
    where = "hot_swap.facts, hot_swap.changed_facts"
    asked, also = ({id_: one.question for id_, one in facts.items()} for facts in (original, changed))
    if asked != also:
        differ = sorted(set(asked.items()) ^ set(also.items()))
        raise OpenBookError("the two sets of facts ask different questions", where=where,
                            got=f"{len({id_ for id_, _ in differ})} ids that differ, the first is {differ[0][0]!r}",
                            expected="the same ids and questions, with other answers")  # fmt: skip
    if config.evaluate.regex_answers:
        return
    answers = [{id_: set(map(normalize_answer, one.answers)) for id_, one in facts.items()}
               for facts in (original, changed)]  # fmt: skip
    same = [id_ for id_ in asked if answers[0][id_] & answers[1][id_]]
    if same:
        raise OpenBookError("a question has an answer that is right by both sets of facts", where=where,
                            got=f"{len(same)} of {len(asked)}, the first is {same[0]!r}",
                            expected="questions about what differs", action="Leave those questions out.")  # fmt: skip


def _cells(right: Mapping[tuple[str, str], Mapping[str, float]], ids: set[str]) -> dict[str, Any]:
    """right: (index, facts) -> question id -> exact match."""
    grid = {index: {name: fmean(right[index, name][id_] for id_ in ids) for name in FACTS} for index in INDEXES}
    return {"table": grid, **_means(grid), "n_questions": len(ids)}


def _means(grid: Grid) -> dict[str, float]:
    return {name: fmean(grid[index][facts] for index, facts in cells) for name, cells in SIDES.items()}


def _write(target: Path, summary: Mapping[str, Any], answered: Mapping[str, Sequence[Prediction]]) -> None:
    """All of it under a temporary name, then in the place of an earlier one."""
    staged = Path(tempfile.mkdtemp(prefix=".hot_swap-", dir=target.parent))
    try:
        for index, predictions in answered.items():
            lines = "".join(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in predictions)
            (staged / f"predictions_{index}.jsonl").write_text(lines, encoding="utf-8")
        write_json(staged / "summary.json", summary)
        staged.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        os.replace(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _page(summary: Mapping[str, Any], spread: Mapping[str, Any]) -> str:
    rows = ["| index | facts of the original | facts of the changed corpus | the paper |", "|---|---|---|---|"]
    for index in INDEXES:
        ours, theirs = ([f"{100 * grid[index][facts]:.1f} %" for facts in FACTS] for grid in
                        (spread["table"], paper.HOT_SWAP))  # fmt: skip
        rows.append(f"| {index.replace('_index', '')} | {ours[0]} | {ours[1]} | {', '.join(theirs)} |")
    said = []
    for name in ("matched", "mismatched"):
        low, high = spread[f"{name}_range"]
        said.append(f"{name} {100 * spread[name]:.1f} % ({100 * low:.1f} to {100 * high:.1f})")
    return "\n".join([
        f"`make hot-swap RUN=... DOCS=1`: {summary['experiment']}, {summary['n_questions']} questions about facts that "
        f"the other corpus changes, exact match, mean over {spread['n']} run(s); the paper: Lewis et al. 2020, section "
        f"4.5, other questions. {'; '.join(said)}.",
        "", *rows,
    ])  # fmt: skip
