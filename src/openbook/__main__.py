"""The command line: python -m openbook COMMAND EXPERIMENT [key=value ...]"""

from __future__ import annotations

import argparse
import sys

from openbook.errors import OpenBookError

HELP = """\
Train retrieval-augmented generation end to end: retriever, index and generator under one likelihood.

commands:
  train EXPERIMENT [key=value ...]     train, evaluate, write runs/EXPERIMENT/NAME/
  resume RUN [key=value ...]           continue an interrupted run from its last checkpoint
  evaluate RUN [key=value ...]         answer the test questions with a trained run
  hot-swap RUN [key=value ...]         answer from two corpora that disagree, without training
  compare EXPERIMENT ... --seeds "0 1 2"   train what is missing; one table with ranges, the paper's figures beside
  plan EXPERIMENT [key=value ...]      what the index of a run would take, measured; refuses what cannot fit
  answers RUN [TEXT] [--n 10]          print answers with their passages (questions holding TEXT)
  report RUN                           write report.html and report.png anew
  list                                 the experiments and what each one shows
  keys [TEXT]                          every key with its unit and default (holding TEXT)
  show EXPERIMENT [key=value ...]      the whole configuration an experiment comes to
  data [EXPERIMENT] [key=value ...]    build and check the data only

EXPERIMENT is a file of experiments/ without .yaml; RUN a run folder, or an experiment for its newest run.

examples:
  python -m openbook train rag_token trainer.max_steps=50 seed=1
  python -m openbook train rag_token data.corpus=passages.jsonl data.train=train.jsonl \\
      data.validation=validation.jsonl data.test=test.jsonl
  python -m openbook evaluate runs/rag_token/20261123-101500 evaluate.n_docs=8
"""

COMMANDS = (
    "train",
    "resume",
    "evaluate",
    "hot-swap",
    "compare",
    "plan",
    "answers",
    "report",
    "list",
    "keys",
    "show",
    "data",
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when it went well, 2 on bad input (one line says what to do)."""
    usage = "python -m openbook COMMAND [EXPERIMENT or RUN] [key=value ...] [--debug]"
    parser = argparse.ArgumentParser(
        "openbook", usage=usage, description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--docs", action="store_true", help="also write the results into docs/")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] in (["compare"], ["answers"]):  # which have options of their own
        rest = [word for word in given[1:] if word != "--debug"]
        chosen = argparse.Namespace(command=given[0], words=rest, docs=False, debug="--debug" in given)
    else:
        chosen = parser.parse_args(given)
    try:
        if chosen.docs and chosen.command != "hot-swap":
            raise OpenBookError(
                "it writes nothing into docs/", where="--docs", got=chosen.command, expected="hot-swap or compare"
            )
        _run(chosen.command, chosen.words, chosen.docs)
    except OpenBookError as error:
        if chosen.debug:
            raise
        from openbook.utils.hardware import rank_from_environment

        if rank_from_environment() == 0:
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(command: str, words: list[str], docs: bool) -> None:
    """Heavy imports wait until a command needs them: bad input is answered at once."""
    from openbook.config.load import described_keys, list_experiments, load_experiment, to_yaml

    needs_subject = command not in ("list", "keys", "data")
    subject = words[0] if words and (needs_subject or "=" not in words[0]) else ""
    overrides = words[1:] if subject else words
    if needs_subject and not subject:
        wanted = "an experiment" if command in ("train", "plan", "show", "compare") else "a run folder"
        raise OpenBookError(f"`{command}` needs {wanted}", action=f"python -m openbook {command} NAME")
    match command:
        case "list":
            for name, shows in list_experiments().items():
                print(f"{name:<20} {shows}")
        case "keys":
            for key, default, unit in described_keys():
                if subject in key:
                    print(f"{key:<34} {default!s:<12} {unit}")
        case "show":
            print(to_yaml(load_experiment(subject, overrides)), end="")
        case "train":
            config = load_experiment(subject, overrides)
            from openbook.commands.train import train
            from openbook.setup.trainer import quiet

            quiet()
            train(config)
        case "plan":
            config = load_experiment(subject, overrides)
            from openbook.config.checks import has_index, value_of
            from openbook.setup.prepare import prepare
            from openbook.setup.trainer import quiet

            quiet()
            prepared = prepare(config)
            if not has_index(config):
                key = "objective" if config.objective == "closed_book" else "retriever.kind"
                raise OpenBookError("there is no index to plan", where=key, got=value_of(config, key))
            prepared.plan(prepared.module(), prepared.refresh())
        case "resume":
            from openbook.commands.train import resume
            from openbook.setup.trainer import quiet

            quiet()
            resume(subject, overrides)
        case "evaluate":
            from openbook.commands.evaluate import evaluate
            from openbook.setup.trainer import quiet

            quiet()
            evaluate(subject, overrides)
        case "hot-swap":
            from openbook.commands.hot_swap import hot_swap, write_docs
            from openbook.setup.trainer import quiet
            from openbook.utils.hardware import rank_from_environment

            quiet()
            written = hot_swap(subject, overrides)
            if docs and rank_from_environment() == 0:
                write_docs(written.parent.parent)
        case "compare":
            from openbook.commands.compare import compare

            compare(words)
        case "answers":
            from openbook.commands.answers import show_answers

            show_answers(words)
        case "report":
            from openbook.reporting.report import write_report
            from openbook.reporting.run_plots import plot_run
            from openbook.tracking.run_folder import RunFolder

            folder = RunFolder.existing(subject).path
            plot_run(folder, folder / "report.png")
            print(f"{write_report(folder)}\n{folder / 'report.png'}")
        case "data":
            config = load_experiment(subject or "rag_token", overrides)
            from openbook.setup import data as setup_data

            setup_data.data(config, setup_data.parts(config)).setup()


if __name__ == "__main__":
    sys.exit(main())
