"""`ask`: one question to a trained run, on the terminal; without a question, a page to ask from."""

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from openbook.commands.evaluate import load_served
from openbook.commands.trained.answers import console_of, show_answer
from openbook.commands.trained.serve import load, settings_of
from openbook.config.data import CHANGED, EMBEDDED, QUESTIONS
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.objectives.by_name import likelihood_of
from openbook.serving.batcher import Batcher
from openbook.serving.current import Current, described
from openbook.serving.server import bound_socket, is_loopback, run_server, url_of
from openbook.setup.preflight import check
from openbook.tracking.added_passages import answering_overrides
from openbook.tracking.run_folder import RunFolder
from openbook.utils.console import say

OVERRIDE = re.compile(r"[a-z_0-9.]+=.*", re.DOTALL)


def ask(run: str, words: Sequence[str], corpora: Sequence[str] = (), console: Console | None = None) -> None:
    """Print the answer to the question that the words make, with its passages; key=value words override the run's
    configuration (objective=, evaluate.n_docs=, decode.beams=, data.corpus=). No question: `show_page`."""
    overrides = [word for word in words if OVERRIDE.fullmatch(word)]
    question = " ".join(word for word in words if not OVERRIDE.fullmatch(word)).strip()
    if not question:
        show_page(run, overrides, corpora)
        return
    if corpora:
        raise OpenBookError(
            "corpora to choose from are for the page", where="--corpus", action="Set data.corpus=FILE for a question."
        )
    folder = RunFolder.existing(run)
    config = folder.load_config(answering_overrides(folder.path, overrides), training=False)
    _check_answers(config)
    served, _ = load_served(folder, config)
    answer = served.answer([question])[0]
    out = console or console_of()
    out.print(described(served), style="dim", markup=False, soft_wrap=True)
    out.print("passages: prior → posterior", style="dim")
    show_answer(answer, False, out, asked=True)


def show_page(run: str, overrides: Sequence[str], corpora: Sequence[str]) -> None:
    """A page on this machine that asks the run, over its own corpus, the one of its hot-swap and `corpora`."""
    source, config, token = settings_of(run, overrides)
    _check_answers(config)
    if not is_loopback(config.serve.host):
        raise OpenBookError(
            "the page is for this machine only",
            where="serve.host",
            got=config.serve.host,
            expected="127.0.0.1",
            action="From elsewhere: ssh -L 8000:127.0.0.1:8000 MACHINE; `openbook serve` answers programs.",
        )
    if token:
        say("the page asks for no token: any user of this machine can open it")
    names = list(dict.fromkeys([config.data.corpus, *_other_corpus(config), *corpora]))
    for name in names[1:]:  # finds what is wrong with them before anything is loaded
        check(RunFolder(Path(source.run)).load_config([*overrides, f"data.corpus={name}"], training=False))
    bound = bound_socket(config.serve.host, config.serve.port)
    from openbook.serving.page import create_page

    by_name = {name: Current(load, source.with_corpus(name)) for name in names}
    say(described(by_name[config.data.corpus].served()))
    tested = {"run": source.run, **_tested(config)}
    with closing(Batcher(config.serve.batch_size, config.serve.max_waiting)) as batcher:
        app = create_page(by_name, tested, batcher, config.serve)
        run_server(app, bound, config.serve, "", told=f"ask at {url_of(bound)}; Ctrl-C ends it")


def _tested(config: Config) -> dict[str, Any]:
    """By what the run was tested."""
    return {
        "objective": likelihood_of(config.objective, config.generator.reads),
        "n_docs": config.evaluate.n_docs or config.retriever.n_docs,
        "beams": config.decode.beams,
        "decoding": config.decode.rag_sequence,
    }


def _check_answers(config: Config) -> None:
    if config.objective == "dpr":
        raise OpenBookError(
            "this run has no generator to answer with",
            where="objective",
            got="dpr",
            expected="a run that answers",
            action="`openbook serve` answers with its passages.",
        )


def _other_corpus(config: Config) -> list[str]:
    """The corpus of the run's hot-swap, where it goes with the run's own."""
    own, other = config.data.corpus, config.hot_swap.corpus
    embedded = (EMBEDDED, CHANGED)
    goes_with = own != QUESTIONS and (own in embedded) == (other in embedded)
    return [other] if other and goes_with and config.objective != "closed_book" else []
