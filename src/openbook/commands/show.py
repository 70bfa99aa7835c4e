"""The small commands: `list`, `keys`, `show`, `report`, `data`, `convert` and `plan`."""

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from openbook.commands.libraries import load_libraries
from openbook.config.load import FOR_EMBEDDED, list_experiments, load_experiment, to_yaml
from openbook.config.schema import Config, described_keys
from openbook.errors import OpenBookError

# YAML 1.1 reads 1e-4 as text and 0123 as a number; what counts is what the setting's own type makes of it.
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def show_experiments() -> None:
    """Print every experiment with what it shows."""
    for name, shows in list_experiments().items():
        print(f"{name:<24} {shows}")


def show_keys(text: str) -> None:
    """Print the keys that contain the text, with default and unit."""
    for key, default, unit in described_keys():
        if text in key:
            print(f"{key:<34} {default!s:<12} {unit}")


def show_json_schema() -> None:
    """Print the JSON schema of an experiment's file (draft 7, which yaml-language-server reads)."""
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def show_config(experiment: str, overrides: Sequence[str]) -> None:
    """Print the complete configuration as YAML."""
    print(to_yaml(load_experiment(experiment, overrides)), end="")


def build_data(experiment: str, overrides: Sequence[str]) -> None:
    """Build and validate the data of an experiment: what does not fit, stands twice or leaks, as a table and as
    data.json in run.dir, or else in runs/EXPERIMENT/. No model is loaded."""
    config = load_experiment(experiment, overrides)
    load_libraries()
    from rich.table import Table

    from openbook.data.readers.duplicates import find_duplicates
    from openbook.setup.inputs.joins import Count, answers_nowhere
    from openbook.setup.prepare import prepare
    from openbook.tracking.run_folder import RUNS
    from openbook.utils.atomic import write_json
    from openbook.utils.console import console, progress, say_result

    prepared = prepare(config)
    corpus, files = prepared.parts.corpus, prepared.parts.files
    with progress("looking for duplicates", "passages") as done:
        found = find_duplicates(files.corpus, near=True, progress=done)
    counts = [
        Count("data.corpus", "passages have title and text of an earlier one", found.exact, found.n_passages),
        Count(
            "data.corpus", "passages have them but for case and spaces (those among them)", found.same, found.n_passages
        ),
        Count("data.corpus", "passages are near-duplicates of an earlier one", found.near or 0, found.n_passages),
        *prepared.counts,
    ]
    if not config.evaluate.regex_answers:
        questions = prepared.questions.questions.items()
        counts += [answers_nowhere(corpus, f"data.{split}", file) for split, file in questions]
    table = Table("", "", "", "of")
    for one in sorted(counts, key=lambda one: one.where):
        table.add_row(one.where, one.what, f"{one.n:,}", f"{one.of:,}")
    console.print(table)
    target = (Path(config.run.dir) if config.run.dir else RUNS / config.experiment) / "data.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    sizes = {split: len(file) for split, file in prepared.questions.questions.items()}
    content = {"experiment": config.experiment, "passages": len(corpus), "questions": sizes}
    write_json(target, content | {"data": prepared.fingerprints, "counts": [one._asdict() for one in counts]})
    say_result(f"counts in {target}")


def convert(source: str, words: Sequence[str], only: str) -> None:
    """Write data in another format as this project's files into the folder that the first word names; the others are
    key=value, of which data.* and retriever.passage_encoder (whose tokens may be counted) matter."""
    if not words or "=" in words[0]:
        raise OpenBookError("`convert` needs a folder to write to", action="openbook convert IN OUT [key=value ...]")
    config = load_experiment("rag_token", words[1:], training=False)
    from openbook.setup.inputs.own_files import write_converted

    write_converted(source, Path(words[0]), config, only)


def plan(experiment: str, overrides: Sequence[str]) -> None:
    """Print what the index needs; OpenBookError where it cannot fit or where there is no index."""
    config = load_experiment(experiment, overrides)
    load_libraries()
    from openbook.config.checks import has_index, value_of
    from openbook.setup.prepare import prepare

    prepared = prepare(config)
    if not has_index(config):
        key = "objective" if config.objective == "closed_book" else "retriever.kind"
        raise OpenBookError("there is no index to plan", where=key, got=value_of(config, key))
    prepared.plan(prepared.module(planning=True), prepared.refresh())


def report(run: str) -> None:
    """Write report.html and report.png into the run folder."""
    from openbook.reporting.report import write_report
    from openbook.reporting.run_plots import plot_run
    from openbook.tracking.run_folder import RunFolder

    folder = RunFolder.existing(run).path
    plot_run(folder, folder / "report.png")
    print(f"{write_report(folder)}\n{folder / 'report.png'}")


def json_schema() -> dict[str, Any]:
    """Of a file in experiments/: every setting with its unit as the description, its default and its choices; `extends`
    and `embedded` beside them. An unknown key is an error, as it is when the file is loaded."""
    settings = _section(Config)
    embedded = {
        "description": "settings that count for the embedded corpus alone",
        "anyOf": [{"type": "null"}, settings],
    }
    extends = {"type": "string", "description": "the experiment whose settings these are changes of"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "openbook experiment",
        **settings,
        "properties": {"extends": extends, **settings["properties"], FOR_EMBEDDED: embedded},
    }


def _section(schema: type) -> dict[str, Any]:
    hints = get_type_hints(schema)
    properties: dict[str, Any] = {}
    for field in fields(schema):
        hint = hints[field.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            properties[field.name] = _section(hint)
        else:
            described = {"description": field.metadata["unit"], "default": field.default}
            properties[field.name] = {**_value(hint), **described}
    doc = " ".join((schema.__doc__ or "").split())
    described = {} if doc.startswith(f"{schema.__name__}(") else {"description": doc}
    return {"type": "object", **described, "properties": properties, "additionalProperties": False}


def _value(hint: Any) -> dict[str, Any]:
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    kinds: dict[Any, dict[str, Any]] = {
        bool: {"type": "boolean"},
        int: {"type": "integer"},
        float: {"anyOf": [{"type": "number"}, {"type": "string", "pattern": NUMBER}]},
        str: {"type": ["string", "number", "boolean"]},  # a name of digits is a name
    }
    return kinds[hint]
