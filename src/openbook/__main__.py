"""The command line: parses one command and calls it."""

import argparse
import io
import os
import sys
from typing import Any

from openbook.commands.parsers import parse, subject_of
from openbook.errors import OpenBookError
from openbook.utils.disk import writing
from openbook.utils.signals import Stopped, stopping


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 on success, 2 on bad input (the message says what to do), 128 + its number after a signal."""
    # Before torch is imported. Threads that wait without spinning cost little alone, and beside a busy process a third
    # of the time less (benchmarks/training/neighbour.py).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows ASCII only prints a ? for what it does not know
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    parsed = parse(sys.argv[1:] if arguments is None else arguments)
    from openbook.utils.console import hushed

    try:
        with hushed(parsed.quiet), stopping(), writing():
            if parsed.command == "doctor":
                from openbook.commands.doctor import doctor

                return doctor(*subject_of(parsed), parsed.json)
            _run(parsed)
    except OpenBookError as error:
        if parsed.debug:
            raise
        _tell(f"error: {error}", on_each_rank=True)
        return 2
    except BrokenPipeError:  # who reads the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Stopped as stopped:
        _tell(f"stopped by {stopped}")
        return stopped.code
    return 0


def _tell(text: str, on_each_rank: bool = False) -> None:
    """Before the ranks are connected all find the same wrong, and one says it."""
    from openbook.utils.distributed import world_size
    from openbook.utils.hardware import rank_from_environment

    number = rank_from_environment()
    if number == 0 or (on_each_rank and world_size() > 1):
        print(f"rank {number}: {text}" if number else text, file=sys.stderr)


def _run(parsed: argparse.Namespace) -> None:
    """Imports wait until a command needs them, so that bad input is reported at once."""
    subject, rest = subject_of(parsed)
    match parsed.command:
        case "list" | "keys" | "show" | "data" | "convert" | "plan" | "report":
            from openbook.commands import show

            match parsed.command:
                case "list":
                    show.show_experiments()
                case "keys":
                    if parsed.json_schema:
                        show.show_json_schema()
                    else:
                        show.show_keys(subject)
                case "show":
                    show.show_config(subject, rest)
                case "data":
                    show.build_data(subject or "rag_token", rest)
                case "convert":
                    show.convert(subject, rest, parsed.only)
                case "plan":
                    show.plan(subject, rest)
                case "report":
                    show.report(subject)
        case "compare":
            from openbook.commands.comparison.compare import compare
            from openbook.commands.comparison.request import Request

            compare(Request.of(parsed))
        case "sweep":
            from openbook.commands.sweep.sweep import sweep

            sweep(parsed)
        case "watch":
            from openbook.commands.trained.watch import watch

            watch(subject, parsed.port)
        case "answers":
            from openbook.commands.trained.answers import show_answers

            show_answers(subject, " ".join(rest), parsed.n)
        case _:
            _run_model(parsed, subject, rest)


def _run_model(parsed: argparse.Namespace, subject: str, overrides: list[str]) -> None:
    command = parsed.command
    if command == "train":
        from openbook.config.load import load_experiment

        config = load_experiment(subject, overrides)
        _check_outside(config)
    from openbook.commands.libraries import load_libraries

    load_libraries()
    match command:
        case "train":
            from openbook.commands.train import train

            train(config)
        case "resume":
            from openbook.commands.train import resume

            resume(subject, overrides)
        case "evaluate":
            from openbook.commands.evaluate import evaluate

            evaluate(subject, overrides, untrained=parsed.untrained)
        case "ask":
            from openbook.commands.trained.ask import ask

            ask(subject, overrides, parsed.corpus)
        case "serve":
            from openbook.commands.trained.serve import serve

            serve(subject, overrides)
        case "export":
            from openbook.commands.exchange.export import export

            if len(overrides) != 1:
                raise OpenBookError("`export` needs a run and a folder", action="openbook export RUN FOLDER")
            export(subject, overrides[0], adapters=parsed.adapters, name=parsed.push, public=parsed.public)
        case "import":
            from openbook.commands.exchange.imports import import_folder

            if not overrides or "=" in overrides[0]:
                raise OpenBookError("`import` needs a folder and a run", action="openbook import FOLDER RUN")
            import_folder(subject, overrides[0], overrides[1:], passage_encoder=parsed.passage_encoder)
        case "index":
            from openbook.commands.index_add import index_add

            if subject != "add" or not overrides:
                raise OpenBookError(
                    "not a command about an index", got=" ".join(parsed.words), expected="openbook index add RUN FILE"
                )
            index_add(overrides[0], overrides[1:])
        case "hot-swap":
            from openbook.commands.hot_swap import hot_swap

            hot_swap(subject, overrides)


def _check_outside(config: Any) -> None:
    """What is missing outside this machine is said before torch has been imported."""
    from openbook.config.checks import encoder_keys, generator_keys, value_of
    from openbook.utils.outside import check_hub, check_wandb, is_hub_name

    check_wandb(config.wandb.mode)
    for key in [*encoder_keys(config), *generator_keys(config)]:
        if is_hub_name(name := str(value_of(config, key))):
            check_hub(name, key)


if __name__ == "__main__":
    sys.exit(main())
