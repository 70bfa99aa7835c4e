"""One argparse parser per command, all with the same conventions. Imports nothing heavy, so help is printed at once."""

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

from openbook.errors import OpenBookError


class Command(NamedTuple):
    """usage: what follows the command's name. subject: what it needs first, "" where it needs nothing."""

    usage: str
    subject: str
    help: str


COMMANDS = {
    "train": Command("EXPERIMENT [key=value ...]", "an experiment", "train and evaluate; writes runs/EXPERIMENT/NAME/"),
    "resume": Command("RUN [key=value ...]", "a run folder", "continue an interrupted run from its last checkpoint"),
    "evaluate": Command(
        "RUN|EXPERIMENT [key=value ...]",
        "a run folder, or an experiment",
        "answer the test questions with a trained model, or measure retrieval untrained",
    ),
    "hot-swap": Command(
        "RUN [key=value ...]", "a run folder", "answer from two conflicting corpora without retraining"
    ),
    "compare": Command(
        "EXPERIMENT ... [key=value ...]",
        "an experiment",
        "tabulate experiments over seeds; trains missing runs",
    ),
    "sweep": Command(
        "EXPERIMENT SWEEP [key=value ...]",
        "an experiment",
        "train an experiment with many settings (experiments/sweeps/)",
    ),
    "doctor": Command("EXPERIMENT [key=value ...]", "an experiment", "say whether an experiment can run here"),
    "plan": Command("EXPERIMENT [key=value ...]", "an experiment", "estimate the memory, disk and time an index needs"),
    "index": Command(
        "add RUN FILE [key=value ...]", "add", "add passages to the corpus that a run answers from, without training"
    ),
    "answers": Command("RUN [TEXT]", "a run folder", "print answers and the passages they are based on"),
    "ask": Command(
        "RUN [QUESTION] [key=value ...]",
        "a run folder",
        "answer a question; without one, open a page on 127.0.0.1",
    ),
    "serve": Command("RUN [key=value ...]", "a run folder", "answer other programs over HTTP: passages and answers"),
    "report": Command("RUN", "a run folder", "regenerate report.html and report.png of a run"),
    "watch": Command("RUN", "a run folder", "serve the report on 127.0.0.1, renewed while the run goes on"),
    "export": Command(
        "RUN FOLDER", "a run folder", "write the models, the index and a model card for other programs to load"
    ),
    "import": Command(
        "FOLDER RUN [key=value ...]",
        "a model folder",
        "make a run folder of transformers' RAG, or safetensors of a folder with pickled weights",
    ),
    "list": Command("", "", "list the experiments with a one-line description each"),
    "keys": Command("[TEXT]", "", "list the configuration keys that contain TEXT, with defaults and units"),
    "show": Command("EXPERIMENT [key=value ...]", "an experiment", "print the complete configuration of an experiment"),
    "convert": Command(
        "IN OUT [key=value ...]",
        "a file, a folder or hf:NAME",
        "write data in another format as questions.jsonl and passages.jsonl into the folder OUT",
    ),
    "data": Command(
        "[EXPERIMENT] [key=value ...]", "", "build and validate the data only; counts duplicates and leaks"
    ),
}

# What add_argument gets: command -> flag -> settings.
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "convert": {"--only": {"default": "", "help": "questions or passages, where a file may be read as either"}},
    "export": {
        "--adapters": {"action": "store_true", "help": "of a generator with LoRA the adapters alone, for peft"},
        "--push": {
            "default": "",
            "metavar": "OWNER/NAME",
            "help": "also push the folder to this repository of the hub",
        },
        "--public": {"action": "store_true", "help": "with --push: a new repository is public (default: private)"},
    },
    "import": {
        "--passage-encoder": {
            "default": "",
            "metavar": "FOLDER",
            "help": "the passage encoder, which a RAG has not: DPR's (default: the one in an export's folder)",
        }
    },
    "evaluate": {
        "--untrained": {"action": "store_true", "help": "measure the encoders as they come, also where there are runs"}
    },
    "keys": {
        "--json-schema": {
            "action": "store_true",
            "help": "print a JSON schema of an experiment's file, by which editors complete and check it",
        }
    },
    "watch": {"--port": {"default": "8765", "help": "port to serve on; 0: any that is free (default: 8765)"}},
    "answers": {"--n": {"default": "10", "help": "number of answers to print (default: 10)"}},
    "ask": {
        "--corpus": {
            "action": "append",
            "default": [],
            "help": "a further corpus that the page can ask, as data.corpus takes it; may be repeated",
        }
    },
    "compare": {
        "--seeds": {"default": "0", "help": 'the seeds, for example "0 1 2" (default: 0)'},
        "--test-n-docs": {"default": "", "help": 'numbers of passages to also test with: "1 2 4 8"'},
        "--runs": {"default": "runs", "help": "folder of the runs, EXPERIMENT/NAME/ (default: runs)"},
        "--name": {"default": "", "help": "name of the result folder under compare/ in the runs folder"},
        "--dry-run": {"action": "store_true", "help": "list missing runs and their expected time"},
    },
}
OPTIONS["sweep"] = {
    "--count": {"default": "0", "help": "most trials (default: all of a grid, run_cap of a random sweep)"},
    "--seed": {"default": "0", "help": "of a random sweep's draws (default: 0)"},
    "--backend": {
        "default": "local",
        "help": "local: train here; wandb: a sweep on its server, with an agent here",
    },
    "--sweep-id": {"default": "", "metavar": "ID", "help": "with --backend wandb: one more agent of this sweep"},
    "--runs": OPTIONS["compare"]["--runs"],
    "--dry-run": {"action": "store_true", "help": "list the trials and their expected time"},
}
OPTIONS["doctor"] = {"--json": {"action": "store_true", "help": "the findings as JSON on the standard output"}}
# Of every command.
COMMON: dict[str, dict[str, Any]] = {
    "--quiet": {"action": "store_true", "help": "print only warnings, errors and the result"},
    "--debug": {"action": "store_true", "help": "show the traceback of an error"},
}

# What `openbook COMMAND --help` ends with.
EXAMPLE = {
    "train": "train rag_token trainer.max_steps=50 seed=1",
    "resume": "resume runs/rag_token/20261123-101500",
    "evaluate": "evaluate runs/rag_token/20261123-101500 evaluate.n_docs=8",
    "hot-swap": "hot-swap rag_token",
    "compare": 'compare rag_token rag_sequence --seeds "0 1 2"',
    "sweep": "sweep rag_token refresh --count 6",
    "doctor": "doctor rag_token",
    "plan": "plan rag_token index.factory=IVF256,SQfp16",
    "index": "index add rag_token passages.jsonl",
    "answers": "answers rag_token Iceland --n 3",
    "ask": 'ask rag_token "What is the capital of Iceland?"',
    "serve": "serve rag_token serve.port=8000",
    "report": "report rag_token",
    "watch": "watch rag_token --port 0",
    "export": "export rag_token exported/",
    "import": "import rag-token-nq/ runs/imported",
    "list": "list",
    "keys": "keys optim",
    "show": "show rag_token seed=1",
    "convert": "convert nq-open.train.jsonl converted/",
    "data": "data rag_token data.corpus=passages.jsonl data.train=train.jsonl",
}

DESCRIPTION = "Train retrieval-augmented generation end to end: retriever, index and generator with one likelihood."
SUBJECTS = """\
EXPERIMENT is the name of a file in experiments/ (without .yaml) or the path of a YAML file. RUN is a run folder, or
the name of an experiment for its most recent run. key=value overrides a configuration key."""
EXAMPLES = """\
examples:
  openbook train rag_token trainer.max_steps=50 seed=1
  openbook train rag_token data.corpus=passages.jsonl data.train=train.jsonl \\
      data.validation=validation.jsonl data.test=test.jsonl
  openbook evaluate runs/rag_token/20261123-101500 evaluate.n_docs=8

`openbook COMMAND -h` describes a command and its options."""


def version() -> str:
    """Of the package that is installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("openbook")
    except PackageNotFoundError:  # the source alone, by PYTHONPATH
        return "not installed"


def overview() -> argparse.ArgumentParser:
    """The parser of `openbook` without a command: prints the list of commands."""
    listed = [f"  {f'{name} {one.usage}':<42} {one.help}" for name, one in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        "openbook",
        usage="openbook COMMAND [EXPERIMENT or RUN] [key=value ...] [--quiet] [--debug]",
        description="\n".join([DESCRIPTION, "", "commands:", *listed, "", SUBJECTS]),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    for flag, settings in COMMON.items():
        parser.add_argument(flag, **settings)
    parser.add_argument("--version", action="version", version=f"openbook {version()}", help="print the version")
    return parser


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of one command. It gives `words`, everything that is not an option, and the options."""
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(
        f"openbook {name}",
        usage=f"openbook {name} {command.usage} [options]",
        description=f"{command.help[0].upper()}{command.help[1:]}.\n\n{SUBJECTS if command.usage else ''}",
        epilog=f"example:\n  openbook {EXAMPLE[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    for flag, settings in {**OPTIONS.get(name, {}), **COMMON}.items():
        parser.add_argument(flag, **settings)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The namespace of a command line, with the command's name as `command`; exits with 2 on an unknown option."""
    words = list(arguments)
    name = next((word for word in words if not word.startswith("-")), "")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        if near:
            overview().error(f"no such command: {name}. Did you mean {near[0]}?")
        overview().parse_args(words)
    words.remove(name)
    return parser_of(name).parse_intermixed_args(words, argparse.Namespace(command=name))


def subject_of(parsed: argparse.Namespace) -> tuple[str, list[str]]:
    """(experiment, run or text, the rest); OpenBookError where the command needs one and the words have none."""
    command, words = COMMANDS[parsed.command], parsed.words
    if command.subject and not words:
        raise OpenBookError(f"`{parsed.command}` needs {command.subject}", action=f"openbook {parsed.command} NAME")
    if words and (command.subject or "=" not in words[0]):
        return words[0], words[1:]
    return "", words
