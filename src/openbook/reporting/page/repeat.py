"""What of a run's configuration differs from its experiment, and the command that repeats the run."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from openbook.config.load import flat, load_experiment
from openbook.config.schema import Config, override_text
from openbook.errors import OpenBookError
from openbook.tracking.open_keys import OPEN

# The files of a run. What an experiment lists for the embedded data counts for no other.
_FILES = ("data.corpus", "data.train", "data.validation", "data.test")
# What a run is called, and where it is kept: another run has other ones.
_NAMES = ("experiment", "shows", "run.dir", "run.name", "data.cache")


@dataclass(frozen=True)
class Difference:
    """settled: the experiment leaves the value to the data."""

    key: str
    default: str
    value: str
    settled: bool


@dataclass(frozen=True)
class Repeat:
    """differences: from what the experiment says in this installation. command: "" where there is none. note: what
    the reader must know about either, "" for nothing."""

    differences: tuple[Difference, ...] = ()
    command: str = ""
    note: str = ""


def repeat(config_yaml: str, run_folder: str, own_parts: object = ()) -> Repeat:
    """From the text of a run's config.yaml; own_parts: what the caller of `openbook.train` brought."""
    kept = settings_of(config_yaml)
    if "experiment" not in kept:
        return Repeat(note="config.yaml cannot be read, or names no experiment: what differs is not known.")
    name, notes = str(kept["experiment"]), []
    own = [f"{key}={_text(kept[key])}" for key in _FILES if key in kept and kept[key] != flat(Config())[key]]
    try:
        as_listed, words = flat(load_experiment(name, training=False)), ["train", name]
        defaults = flat(load_experiment(name, own, training=False)) if own else as_listed
        defaults |= {key: as_listed[key] for key in _FILES}
    except OpenBookError:
        defaults, words = flat(Config()), ["train", f"{run_folder}/config.yaml", "run.dir=", "run.name="]
        notes.append(f"There is no experiment {name} here: the table compares with the defaults of every setting.")
    differing = {
        key: value for key, value in kept.items() if key not in _NAMES and key in defaults and value != defaults[key]
    }
    if words[1] == name:
        words += [f"{key}={_text(value)}" for key, value in differing.items()]
    if unknown := sorted(kept.keys() - defaults.keys()):
        notes.append(f"This version knows no {', '.join(unknown)}: the command leaves it out.")
    if isinstance(own_parts, list) and own_parts:
        notes.append(f"The run had {' and '.join(map(str, own_parts))} from Python, which the command does not have.")
    return Repeat(
        tuple(
            Difference(key, _shown(defaults[key]), _shown(value), key in OPEN and defaults[key] == OPEN[key])
            for key, value in differing.items()
        ),
        f"openbook {shlex.join(words)}",
        " ".join(notes),
    )


def settings_of(config_yaml: str) -> dict[str, Any]:
    """{dotted key: value} of the text of a config.yaml; {} where it cannot be read."""
    try:
        content = yaml.safe_load(config_yaml)
    except yaml.YAMLError:
        return {}
    return _flat(content) if isinstance(content, Mapping) else {}


def _flat(content: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": one for inner, one in _flat(value).items()}
        else:
            found[str(key)] = value
    return found


def _text(value: Any) -> str:
    """As an override reads it."""
    return "" if value is None else override_text(value)


def _shown(value: Any) -> str:
    return _text(value) or '""'
