"""From experiments/NAME.yaml and key=value overrides to one checked Config. The only module that knows OmegaConf."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from openbook.config.checks import expected_at, problems_of
from openbook.config.data import BUILT_IN, EMBEDDED, QUESTIONS, DataConfig
from openbook.config.near_keys import unknown_key
from openbook.config.schema import Config, keys_of
from openbook.errors import OpenBookError, raise_all

EXPERIMENTS = Path("experiments")
# What a run did that was started before there were these keys; its config.yaml does not have them.
BEFORE = {
    **{"retriever.teacher": "generator", "evaluate.checkpoint": "last", "warmup.spans": "0", "warmup.window": "0"},
    **{"retriever.question_prefix": "", "retriever.passage_prefix": "", "retriever.passage_layout": "separated"},
    **{"generator.source_language": "as_is", "generator.target_language": "as_is", "retriever.override_folder": "true"},
    "retriever.paraphrases": "0",
}

# The section of an experiment's file that counts for the embedded data alone.
FOR_EMBEDDED = "embedded"


def load_experiment(
    experiment: str, overrides: Sequence[str] = (), folder: Path = EXPERIMENTS, training: bool = True
) -> Config:
    """The configuration of an experiment: schema defaults <- what it extends <- its own file <- overrides.

    experiment is a name in `folder`, one that comes with the package, or the path of a YAML file. Overrides read
    `key.sub=value`; the schema's type decides how the text is read (`run.name=0123` stays text). What a file lists
    under `embedded` counts for the embedded corpus alone. Raises one OpenBookError that lists every problem.
    """
    path = _path_of(experiment, folder)
    chain = list(_chain(path, folder))
    leaves = [("experiment", _name_of(path, folder, _packaged()), path.name)]
    corpus, train = (_last(chain, overrides, f"data.{key}", getattr(DataConfig, key)) for key in ("corpus", "train"))
    own_train = corpus == EMBEDDED and train not in (*BUILT_IN["train"], "")
    own_train &= not any(override.startswith("data.corpus=") for override in overrides)
    if own_train and training and _last(chain, overrides, "objective", "") != "closed_book":
        overrides = [*overrides, f"data.corpus={QUESTIONS}"]  # no corpus is named: the questions may carry one
    elif corpus in BUILT_IN["corpus"] and corpus != QUESTIONS:
        chain = [part for origin, file in chain for part in ((origin, file), (origin, file.get(FOR_EMBEDDED, {})))]
    for origin, file in chain:
        plain = {key: value for key, value in file.items() if key != FOR_EMBEDDED}
        leaves += [(key, value, f"{origin}: {key}") for key, value in _leaves(plain)]
    problems = [_elsewhere(where, value) for key, value, where in leaves if key == "run.dir" and _is_elsewhere(value)]
    if any(override.startswith("run.dir=") for override in overrides):
        problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            problems.append(OpenBookError("not an override", got=repr(override), expected="key=value"))
        else:
            leaves.append((key, text, key))
    return _checked(leaves, problems, training)


def load_resolved(path: Path, overrides: Sequence[str] = (), training: bool = True) -> Config:
    """The configuration that a run folder kept, with overrides on top; not for training: what only training needs is
    not asked for."""
    kept = dict(_leaves(_mapping(path)))
    older = [f"{key}={value}" for key, value in BEFORE.items() if key not in kept]
    older.append(f"run.dir={kept.get('run.dir', '')}")  # that of the command line which the run was started with
    if "evaluate.checkpoint" not in kept and kept.get("trainer.monitor", "auto") == "auto":
        older.append(f"trainer.monitor={'recall_at_1' if kept.get('objective') == 'dpr' else 'exact_match'}")
    name = str(kept.get("experiment", path.stem))
    return load_experiment(str(path), [f"experiment={name}", *older, *overrides], training=training)


def to_yaml(config: Config) -> str:
    """Every value as YAML, defaults included: what a run folder keeps to explain itself."""
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def flat(config: Config) -> dict[str, Any]:
    """{dotted key: plain value} of a whole configuration."""
    return dict(_leaves(asdict(config)))


def list_experiments(folder: Path = EXPERIMENTS) -> dict[str, str]:
    """{name: what it is meant to show} of every YAML in the folder, and of those that come with the package."""
    return {name: str(_mapping(path).get("shows", "")) for name, path in sorted(known_experiments(folder).items())}


def _last(chain: Sequence[tuple[str, dict[str, Any]]], overrides: Sequence[str], key: str, default: str) -> str:
    """The value of a key, as far as files and overrides name one."""
    value = default
    for origin, file in chain:
        if not isinstance(file.get(FOR_EMBEDDED, {}), Mapping):
            raise OpenBookError("not a mapping of keys to values", where=f"{origin}: {FOR_EMBEDDED}")
        value = str(dict(_leaves({name: part for name, part in file.items() if name != FOR_EMBEDDED})).get(key, value))
    given = [text for name, _, text in (override.partition("=") for override in overrides) if name == key]
    return (given or [value])[-1]


def known_experiments(folder: Path = EXPERIMENTS) -> dict[str, Path]:
    """Experiments by name: those of the folder, then the package's own that are not among them. In a folder inside it
    the name has that folder's before it (`paper/nq/rag_token`); what begins with _ is only there to be extended, and
    what is in sweeps/ is no experiment."""
    found: dict[str, Path] = {}
    for root in (folder, _packaged()):
        for path in (*sorted(root.glob("*.yaml")), *sorted(root.glob("*/**/*.yaml"))):
            if not path.name.startswith("_") and path.parent.name != "sweeps":
                found.setdefault(_name_of(path, root), path)
    return found


def _packaged() -> Path:
    return Path(str(import_module("openbook.experiments").__file__)).parent


def _name_of(path: Path, *roots: Path) -> str:
    """An experiment's name: its place in the first of the folders that it is in, elsewhere the name of its file."""
    whole = path.resolve()
    root = next((root for one in roots if whole.is_relative_to(root := one.resolve())), whole.parent)
    return whole.relative_to(root).with_suffix("").as_posix()


def _path_of(experiment: str, folder: Path, by: Path | None = None) -> Path:
    """The file of an experiment. by: a file that extends it, beside which it is looked for first; never that file."""
    places = [*([by.parent] if by else []), folder, _packaged()]
    named = experiment.endswith((".yaml", ".yml"))
    files = [Path(experiment)] if named else [place / f"{experiment}.yaml" for place in places]
    none = files[-1] if named else folder / f"{experiment}.yaml"
    path = next((file for file in files if file.is_file() and file != by), none)
    if not path.is_file():
        known = list(known_experiments(folder))
        near = difflib.get_close_matches(experiment, known, 1)
        hint = f"Did you mean {near[0]}?" if near else "`make list` shows what each one is for."
        raise OpenBookError(
            "no such experiment",
            where=path,
            got=repr(experiment),
            expected="one of " + ", ".join(known),
            action=hint,
        )
    return path


def _chain(path: Path, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file name, its content) from the oldest ancestor to the experiment itself."""
    chain: list[tuple[str, dict[str, Any]]] = []
    seen: list[Path] = []
    following: Path | None = path
    while following is not None:
        if following in seen:
            circle = " -> ".join(other.name for other in [*seen, following])
            raise OpenBookError("experiments extend each other in a circle", where="extends", got=circle)
        seen.append(following)
        content = _mapping(following)
        parent = content.pop("extends", None)
        chain.append((following.name, content))
        following = _path_of(str(parent), folder, following) if parent else None
    return reversed(chain)


def _mapping(path: Path) -> dict[str, Any]:
    """The content of a YAML file, every value as the text that stands there: the schema's types read it, so that
    `name: 0123` is no octal number, and neither ${...} nor ??? mean anything."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Texts)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OpenBookError("not readable as YAML", where=path, got=" ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise OpenBookError("not a mapping of keys to values", where=path, got=type(content).__name__)
    return {str(key): value for key, value in content.items()}


class _Texts(yaml.BaseLoader):
    """YAML without types, that refuses a key written twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.YAMLError(f"found duplicate key {', '.join(map(str, twice))}{node.start_mark}")
        return super().construct_mapping(node, deep)


def _leaves(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_elsewhere(folder: Any) -> bool:
    """Whether a run folder that a file names lies outside of runs/."""
    parts = Path(str(folder)).parts
    return bool(parts) and (parts[0] != "runs" or ".." in parts)


def _elsewhere(where: str, folder: Any) -> OpenBookError:
    """A file that comes from someone else must not choose which folder of this machine is written to."""
    return OpenBookError(
        "an experiment's file names a run folder outside of runs/",
        where=where,
        got=repr(folder),
        expected="run.dir on the command line, or a folder in runs/",
        action="Say run.dir=FOLDER yourself where you mean it; run.dir= goes without.",
    )


def _checked(leaves: list[tuple[str, Any, str]], problems: list[OpenBookError], training: bool) -> Config:
    known = list(keys_of())
    merged = OmegaConf.structured(Config)
    sections = [merged, *(merged[key] for key in merged if OmegaConf.is_config(merged[key]))]
    inner = [section[key] for section in sections[1:] for key in section if OmegaConf.is_config(section[key])]
    for section in [*sections, *inner]:
        OmegaConf.set_readonly(section, False)  # frozen is for the result, not while it is put together
    texts: dict[str, str] = {}
    for key, value, where in leaves:
        if key not in known:
            problems.append(unknown_key(key, where, known))
            continue
        held = f"text {len(texts)} that OmegaConf would read as something else"
        if isinstance(value, str) and (value == "???" or "${" in value):
            texts[held] = value
        try:
            OmegaConf.update(merged, key, held if held in texts else value, merge=False)
        except OmegaConfBaseException as error:
            said = str(error).split("\n", 1)[0]
            problems.append(
                OpenBookError("wrong type of value", where=where, got=repr(value), expected=expected_at(key, said))
            )
    raise_all(problems)
    config: Config = _with_texts(OmegaConf.to_object(merged), texts)
    raise_all(problems_of(config, training))
    return config


def _with_texts(section: Any, texts: Mapping[str, str]) -> Any:
    """A section of the configuration with texts put back in the place of what stood for them."""
    values = {field.name: getattr(section, field.name) for field in fields(section)}
    return replace(
        section,
        **{
            name: _with_texts(value, texts) if is_dataclass(value) else texts.get(value, value)
            for name, value in values.items()
        },
    )
