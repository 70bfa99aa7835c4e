"""`serve`: a run's retriever, and its answers, over HTTP for other programs (serving/app.py)."""

from collections.abc import Sequence
from contextlib import closing

from openbook.commands.evaluate import load_served
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.serving.batcher import Batcher
from openbook.serving.current import Current, Source, described
from openbook.serving.served import Served
from openbook.serving.server import bound_socket, check_installed, run_server, token_of, url_of
from openbook.tracking.added_passages import answering_overrides
from openbook.tracking.run_folder import RunFolder
from openbook.utils.console import say


def load(source: Source) -> Served:
    """A run as its folder is now: its newest checkpoint, or the best (evaluate.checkpoint), over its corpus."""
    run = RunFolder.existing(source.run)
    return load_served(run, run.load_config(answering_overrides(run.path, source.overrides), training=False))[0]


def settings_of(run: str, overrides: Sequence[str]) -> tuple[Source, Config, str]:
    """What is to be served, its configuration and the token; everything that is wrong is found before a model loads."""
    check_installed()
    folder = RunFolder.existing(run)
    config = folder.load_config(answering_overrides(folder.path, overrides), training=False)
    return Source(str(folder.path), tuple(overrides)), config, token_of(config.serve)


def serve(run: str, overrides: Sequence[str] = ()) -> None:
    """Answer requests until a signal ends it; SIGHUP and POST /swap serve what the run has become by now.

    With objective=dpr passages alone, and no generator is loaded.
    """
    source, config, token = settings_of(run, overrides)
    if config.objective == "closed_book":
        raise OpenBookError(
            "this run retrieves nothing",
            where="objective",
            got="closed_book",
            expected="a run with passages",
            action=f"`openbook ask {run}` asks it.",
        )
    bound = bound_socket(config.serve.host, config.serve.port)
    from openbook.serving.app import create_app

    current = Current(load, source)
    say(f"generation 0: {described(current.served())}")
    told = f"POST {url_of(bound)}/retrieve, POST /answer, GET /health; Ctrl-C ends it, SIGHUP reads the run again"
    with closing(Batcher(config.serve.batch_size, config.serve.max_waiting)) as batcher:
        app = create_app(current, batcher, config.serve)
        run_server(app, bound, config.serve, token, told=told, on_hangup=current.swap)
