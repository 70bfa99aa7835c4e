"""`answers`: prints answers of a run with the passages they are based on."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from openbook.errors import OpenBookError
from openbook.metrics.matching import has_answer
from openbook.metrics.prediction import Prediction, ReadPassage, TokenProvenance
from openbook.reporting.page.examples import chosen_examples
from openbook.tracking.added_passages import newest, newest_evaluation
from openbook.tracking.run_contents import read_run
from openbook.tracking.run_folder import RunFolder
from openbook.utils.console import say

N_ANSWERS = 10
WIDTH = 100  # Maximum width in columns.

TITLE, BAR, TOKEN = 22, 6, 16


def show_answers(run: str, text: str = "", n: str = str(N_ANSWERS), console: Console | None = None) -> None:
    """Print n answers of a run, right and wrong ones chosen as for the report.

    run: a run folder, one of its evaluations, or an experiment for its most recent run. text: only questions that
    contain it, ignoring case.
    """
    if not n.isascii() or not n.isdigit() or int(n) < 1:
        raise OpenBookError("not a number of answers", where="N", got=n, expected="a whole number from 1")
    predictions, regex = _read(run)
    matching = [one for one in predictions if text.casefold() in one.question.casefold()]
    if not matching:
        raise OpenBookError(
            "no question contains this",
            where=run,
            got=repr(text),
            expected=f"a part of one of {len(predictions):,} questions",
        )
    out = console or console_of()
    chosen = chosen_examples(matching, int(n))
    out.print(
        f"{len(chosen):,} of {len(matching):,} {'matching ' if text else ''}questions; passages: prior → posterior, "
        "✓ relevant, · contains a gold answer"
    )
    for one in chosen:
        out.print()
        show_answer(one, regex, out)


def _read(run: str) -> tuple[list[Prediction], bool]:
    """The predictions, and whether the answers are regular expressions."""
    folder = Path(run)
    if not (folder / "predictions.jsonl").is_file() or (folder / "config.yaml").is_file():
        folder = _of_added(RunFolder.existing(run).path)
    of_run = folder.parent.parent if folder.parent.name == "evaluations" else folder
    files = read_run(folder)
    if not (folder / "predictions.jsonl").is_file():
        raise OpenBookError(
            "the run has no answers yet",
            where=folder,
            got="no predictions.jsonl in it",
            expected="a run that has been tested",
            action=f"`make evaluate RUN={folder}`, once it has a checkpoint.",
        )
    if files.predictions and (found := files.problems.get("predictions.jsonl")):
        say(f"warning: {folder}: {found}")
    if not files.predictions:
        raise OpenBookError(
            "no answer can be read",
            where=folder / "predictions.jsonl",
            got=files.problems.get("predictions.jsonl", "an empty file").rstrip("."),
        )
    config = of_run / "config.yaml"
    return files.predictions, config.is_file() and b"regex_answers: true" in config.read_bytes()


def _of_added(run: Path) -> Path:
    """The newest evaluation over the corpus that the run answers from, where passages were added to its own."""
    grown = newest(run)
    if grown is None:
        return run
    found = newest_evaluation(run)
    if found is None:
        say(f"these answers are older than {grown.folder}: `openbook evaluate {run}` answers from its passages")
    return found or run


def console_of() -> Console:
    """At most WIDTH columns on a terminal; exactly WIDTH and no colours where the output is not a terminal."""
    console = Console(highlight=False)
    return Console(highlight=False, width=min(WIDTH, console.width) if console.is_terminal else WIDTH)


def show_answer(one: Prediction, regex: bool, out: Console, asked: bool = False) -> None:
    """Print one question with its answer, passages and heat-map of tokens. asked: no gold answer is known."""
    groups = " · ".join(name for name in (one.relation, one.phrasing) if name)
    out.print(Text(_wrapped(f"{one.question}  ({groups})" if groups else one.question, "", out.width), "bold"))
    if not asked:
        out.print(Text(_wrapped(" | ".join(one.answers) + _likelihoods(one), "gold    ", out.width)))
    logprob = "" if one.logprob is None else f"  log p {one.logprob:.2f}"
    if asked:
        out.print(Text(_wrapped(f"{one.prediction or '(empty)'}{logprob}", "answer  ", out.width), "bold green"))
    elif one.exact_match is None:
        right = bool(one.hits and one.hits[0])
        out.print(Text(f"first passage {'' if right else 'not '}relevant", "green" if right else "red"))
    else:
        verdict = "right" if one.exact_match else f"wrong{'' if one.f1 is None else f', F1 {one.f1:.2f}'}"
        answer = f"{one.prediction or '(empty)'}{logprob}  ({verdict})"
        out.print(Text(_wrapped(answer, "answer  ", out.width), "green" if one.exact_match else "red"))
    if len(one.candidates) > 1:
        others = (f"{text or '(empty)'} {logprob:.2f}" for text, logprob in one.candidates)
        out.print(Text(_wrapped(" | ".join(others), "best    ", out.width)))
    if one.passages:
        out.print(_passages(one, regex, out))
    else:
        out.print("no passages were used", style="dim")
    if one.tokens:
        out.print(_grid(one.tokens, one.passages, out.width))


def _likelihoods(one: Prediction) -> str:
    """Of the gold answer."""
    parts = [] if one.gold_logprob is None else [f"log p {one.gold_logprob:.2f}"]
    parts += [] if one.closed_book_logprob is None else [f"without passages {one.closed_book_logprob:.2f}"]
    return f"  ({', '.join(parts)})" if parts else ""


def _wrapped(text: str, label: str, width: int) -> str:
    """Wrapped with a hanging indent below the label; control characters become spaces."""
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    lines = textwrap.wrap(text, width, initial_indent=label, subsequent_indent=" " * len(label))
    return "\n".join(lines) or label.rstrip()


def _passages(one: Prediction, regex: bool, out: Console) -> Table:
    """One row per passage, best prior first, with an excerpt around the answer."""
    table = Table(
        Column(no_wrap=True, justify="right"),
        Column(no_wrap=True, width=2),
        Column(no_wrap=True, overflow="ellipsis", ratio=1),
        Column(no_wrap=True),
        box=None,
        show_header=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        expand=True,
    )
    room = out.width - 2 * (5 + BAR) - TITLE - 14
    for number, passage in enumerate(one.passages, 1):
        mark = ("✓" if passage.relevant else " ") + ("·" if has_answer(passage.text, one.answers, regex) else " ")
        title = _wrapped(passage.title or passage.id, "", 1 << 20)
        title = title if len(title) <= TITLE else f"{title[: TITLE - 1]}…"
        line = Text(f"{title}: ", "bold") + _excerpt(passage, one, regex, room, plain=not out.is_terminal)
        table.add_row(str(number), Text(mark, "green"), line, f"{_bar(passage.prior)} → {_bar(passage.posterior)}")
    return table


def _bar(probability: float) -> str:
    full = round(BAR * min(max(probability, 0.0), 1.0))
    return f"{probability:.2f} {('█' * full or '▏'):<{BAR}}"


def _excerpt(passage: ReadPassage, one: Prediction, regex: bool, room: int, plain: bool) -> Text:
    """The text around a gold answer (else around the predicted one), which is highlighted, in «» without colours; the
    beginning of the passage where neither occurs."""
    text = _wrapped(passage.text.replace("\n", " "), "", 1 << 20)
    literals = [*(() if regex else one.answers), one.prediction]
    patterns = [*(one.answers if regex else ()), *(rf"(?<!\w){re.escape(word)}(?!\w)" for word in literals if word)]
    matches = (re.search(pattern, text, re.IGNORECASE) for pattern in patterns)
    found = next((match for match in matches if match and match[0]), None)
    if found is None:
        return Text(text[:WIDTH])
    start = 0 if found.end() <= room - 2 else max(0, found.start() - room // 3)
    return Text.assemble(
        ("…" if start else "") + text[start : found.start()],
        (f"«{found[0]}»" if plain else found[0], "reverse"),
        text[found.end() : found.end() + room],
    )


def _grid(tokens: Sequence[TokenProvenance], passages: Sequence[ReadPassage], width: int) -> Table:
    """One row per token of the answer, one column per passage: the passage's share of the token's probability. Passages
    that do not fit are summed in the last column."""
    n_columns = min(len(passages), max(1, (width - TOKEN - 12) // 5))
    last = [f"{n_columns + 1} to {len(passages)}"] if len(passages) > n_columns else []
    columns = [Column(text, justify="right", no_wrap=True) for text in [*map(str, range(1, n_columns + 1)), *last]]
    token_column = Column("token", style="dim", no_wrap=True)
    table = Table(token_column, *columns, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for token in tokens:
        cells = [
            Text(f"{weight:.2f}", _heat(weight, weight == max(token.weights))) for weight in token.weights[:n_columns]
        ]
        rest = [Text(f"{sum(token.weights[n_columns:]):.2f}")] if last else []
        table.add_row(Text(_wrapped(token.text, "", WIDTH)[:TOKEN] or "(none)"), *cells, *rest)
    return table


def _heat(weight: float, most: bool) -> str:
    """The style of a share of a token's probability: the more, the bluer the ground."""
    red, green, blue = (round(dark + weight * (full - dark)) for dark, full in ((24, 20), (28, 96), (36, 200)))
    shade = "dim" if weight < 0.01 else f"rgb(235,240,245) on rgb({red},{green},{blue})"
    return f"bold {shade}" if most else shade
