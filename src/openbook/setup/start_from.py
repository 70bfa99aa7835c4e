"""What the encoders start from: retriever.start_from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from openbook.config.load import known_experiments
from openbook.config.models import MINILM, LoraConfig
from openbook.config.schema import Config
from openbook.data.corpus_build import tokens_fingerprint
from openbook.data.encoder_inputs import encoder_format
from openbook.errors import OpenBookError
from openbook.exchange.adapters import base_of, is_adapter_folder, load_adapters
from openbook.models.encoders import load_encoder, load_tokenizer
from openbook.models.lora import add_adapters, merged
from openbook.models.pretrained import model_folder
from openbook.retrieval.dense import DenseRetriever
from openbook.setup.encoders import follow_folders, sides
from openbook.tracking import run_folder as runs
from openbook.tracking.checkpoint import read_checkpoint
from openbook.tracking.run_folder import RunFolder
from openbook.utils.console import say
from openbook.utils.outside import is_hub_name

KEY = "retriever.start_from"
SIDES = ("question_encoder", "passage_encoder")


def resolve_start(config: Config) -> Config:
    """The configuration with the path of the run that `retriever.start_from` stands for, checked as far as no weights
    are needed: the same when read again, whatever is trained meanwhile.

    A name with a config.yaml is that run. A model folder, a hub name or an export is the encoders themselves; adapters
    name the encoder under them. Otherwise it is an experiment: its newest finished run of this seed, else its newest
    finished run. A closed book starts with no encoders and is left as it is.
    """
    name = config.retriever.start_from
    if not name or config.objective == "closed_book":
        return config
    if is_adapter_folder(name):
        base = base_of(name, KEY, config.retriever.question_encoder) or config.retriever.question_encoder
        return _with_encoders(config, (base, base), name)
    if all((Path(name) / side / "config.json").is_file() for side in SIDES):  # an export, whatever else is in it
        return _with_encoders(config, (str(Path(name) / SIDES[0]), str(Path(name) / SIDES[1])), "")
    if is_model(name):
        return _with_encoders(config, (name, name), "")
    source, theirs = run_to_start_from(name, config.seed, KEY)
    if theirs.objective == "closed_book" or theirs.retriever.kind != "dense":
        kind = "a closed book" if theirs.objective == "closed_book" else "BM25"
        raise OpenBookError(
            "there are no encoders to start from",
            where=KEY,
            got=f"{source.path}, {kind}",
            expected="a run that has trained encoders",
        )
    config = _with_theirs(config, theirs, source)
    mine = config.retriever
    refuse_new_adapters(mine.lora, theirs.retriever.lora, "retriever", source, "retriever.start_from=OUT")
    for my_side, their_side in zip(sides(config), sides(theirs), strict=True):
        for key in ("pooling", "normalize", "dim", "prefix"):
            here, there = getattr(my_side, key), getattr(their_side, key)
            if here != there:
                setting = my_side.key.replace("encoder", "prefix") if key == "prefix" else f"retriever.{key}"
                raise OpenBookError(
                    "the encoders to start from were trained to be read differently",
                    where=setting,
                    got=repr(here),
                    expected=f"{there!r}, as in {source.path}",
                )
    _check_layout(config, theirs, source)
    if mine.tied and not theirs.retriever.tied:
        raise OpenBookError(
            "tied encoders cannot start from two",
            where="retriever.tied",
            got="true",
            expected=f"false, as in {source.path}",
        )
    return replace(config, retriever=replace(mine, start_from=str(source.path)))


def is_model(name: str) -> bool:
    """Whether a name is a model's folder or hub name, and no run or experiment."""
    path = Path(name)
    if (path / "config.yaml").is_file():
        return False
    on_hub = is_hub_name(name) and not path.exists() and name not in known_experiments()
    return on_hub or Path(model_folder(name), "config.json").is_file()


def run_to_start_from(name: str, seed: int, key: str) -> tuple[RunFolder, Config]:
    """A run, or an experiment's newest finished one, and its configuration; it has a checkpoint. key: that names it."""
    source = RunFolder(Path(name))
    if not source.config.is_file():
        source = newest_finished(name, seed, key)
    theirs = source.load_config([], training=False)
    if not source.weights(theirs).is_file():
        raise OpenBookError(
            "the run to start from has no checkpoint",
            where=key,
            got=source.path,
            expected=source.weights(theirs),
            action=f"`make resume RUN={source.path}` trains it.",
        )
    return source, theirs


def refuse_new_adapters(mine: LoraConfig, theirs: LoraConfig, part: str, source: RunFolder, action: str) -> None:
    """OpenBookError for adapters over what a run without any has trained. action: the settings that have them over its
    export."""
    if mine.rank and not theirs.rank:
        raise OpenBookError(
            "new adapters cannot lie on weights that only a checkpoint holds",
            where=f"{part}.lora.rank",
            got=mine.rank,
            expected="0",
            action=f"`openbook export {source.path} OUT`, and {action}.",
        )


def _with_theirs(config: Config, theirs: Config, source: RunFolder) -> Config:
    """The configuration with the encoders of the run where it names none."""
    mine: dict[str, Any] = {side: getattr(config.retriever, side) for side in SIDES}
    there = {side: getattr(theirs.retriever, side) for side in SIDES}
    taken = {side: name for side, name in there.items() if mine[side] == MINILM != name}
    if taken:
        told = (f"retriever.{side} = {name}" for side, name in taken.items())
        say("\n  ".join([f"as in {source.path}, from which the encoders start:", *told]))
    return replace(config, retriever=replace(config.retriever, **taken))


def _with_encoders(config: Config, folders: tuple[str, str], start_from: str) -> Config:
    """The configuration with these encoders. OpenBookError where it names others."""
    given = {side: getattr(config.retriever, side) for side in SIDES}
    for (side, mine), theirs in zip(given.items(), folders, strict=True):
        if mine not in (MINILM, theirs):
            raise OpenBookError(
                "two encoders to start from",
                where=f"retriever.{side}",
                got=mine,
                expected=f"{theirs}, as {KEY} has it, or nothing",
            )
    chosen: dict[str, Any] = dict(zip(SIDES, folders, strict=True))
    return replace(config, retriever=replace(config.retriever, **chosen, start_from=start_from))


def _check_layout(config: Config, theirs: Config, source: RunFolder) -> None:
    """Title and text as they were in the other run, or so that the tokenizer makes the same ids of them."""
    settings = [follow_folders(one).retriever for one in (config, theirs)]
    here, there = layouts = [one.passage_layout for one in settings]
    if here == there:
        return
    if set(layouts) == {"separated", "pair"}:
        tokenizer = load_tokenizer(settings[0].passage_encoder)
        styles = [encoder_format(tokenizer, layout) for layout in layouts]  # type: ignore[arg-type]
        around = [(style.before, style.between, style.after) for style in styles]
        ids = [tokens_fingerprint(tokenizer, style) for style in styles]
        if around[0] == around[1] and ids[0] == ids[1]:
            return
    raise OpenBookError(
        "the encoders to start from were trained to be read differently",
        where="retriever.passage_layout",
        got=repr(here),
        expected=f"{there!r}, as in {source.path}",
    )


def newest_finished(experiment: str, seed: int, key: str = KEY) -> RunFolder:
    """The newest finished run of this experiment with this seed; without one, the newest with any, which is said."""
    finished: list[tuple[bool, float, Path]] = []
    for file in (runs.RUNS / experiment).glob("*/config.yaml") if is_name(experiment) else ():
        summary = RunFolder(file.parent).read_summary()
        if summary.get("status") == "finished":
            finished.append((summary.get("seed") == seed, file.stat().st_mtime, file.parent))
    if not finished:
        raise OpenBookError(
            "there is no run to start from",
            where=key,
            got=repr(experiment),
            expected="a run folder, an experiment with a finished run, a model's folder or a hub name",
            action=f"`make train EXP={experiment if is_name(experiment) else Path(experiment).name}` makes one.",
        )
    same_seed, _, newest = max(finished)
    if not same_seed:
        say(f"warning: no finished run of {experiment} has seed {seed}: starting from {newest}, of another seed")
    return RunFolder(newest)


def is_name(experiment: str) -> bool:
    """Whether it can be the name of an experiment, perhaps of one in a folder, and no path."""
    return Path(experiment).name == experiment or experiment in known_experiments()


def start_encoders(config: Config, retriever: DenseRetriever) -> None:
    """Both encoders with the weights of the run, or the adapters, that `resolve_start` named; nothing else is taken."""
    name = config.retriever.start_from
    if is_adapter_folder(name):
        for encoder in {id(one): one for one in (retriever.question_encoder, retriever.passage_encoder)}.values():
            load_adapters(encoder.model, config.retriever.lora, name, KEY)
        say(f"encoders start from the adapters of {name}")
        return
    source = RunFolder(Path(config.retriever.start_from))
    theirs = source.load_config([], training=False)
    content = read_checkpoint(source.weights(theirs))
    for at, side in enumerate(SIDES):
        prefix = f"retriever.{side}."
        weights = {
            name.removeprefix(prefix): value for name, value in content["state_dict"].items() if name.startswith(prefix)
        }
        encoder = getattr(retriever, side)
        if not config.retriever.lora.rank and any(".lora_" in name for name in weights):
            weights = _without_adapters(theirs, at, weights)
        check_shapes(encoder.state_dict(), weights, side, f"{KEY}: {source.path}", f"retriever.{side}")
        encoder.load_state_dict(weights)
    say(f"encoders start from {source.path}, step {content['global_step']}")


def _without_adapters(theirs: Config, at: int, adapters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a run's encoder with adapters, these added. at: 0 for the question encoder, 1 for the other."""
    side, width = sides(theirs)[at], theirs.retriever.projection
    encoder = load_encoder(side.name, None, None, 0.0, dim=side.dim, projection=width, dense=not side.as_before)
    add_adapters(encoder.model, theirs.retriever.lora, "retriever.lora", theirs.seed)
    encoder.load_state_dict(adapters)
    encoder.model = merged(encoder.model)
    return encoder.state_dict()


def check_shapes(mine: dict[str, Tensor], theirs: dict[str, Tensor], part: str, where: str, key: str) -> None:
    """OpenBookError where the weights to start from are not those of this architecture. key: of the model's folder."""
    differing = [
        f"{name} {_shape(theirs.get(name))} instead of {_shape(mine.get(name))}"
        for name in sorted({*mine, *theirs})
        if _shape(mine.get(name)) != _shape(theirs.get(name))
    ]
    if differing:
        raise OpenBookError(
            f"the {part.rpartition('_')[2]} to start from has another shape",
            where=where,
            got=f"{len(differing)} weights that differ, first {part}.{differing[0]}",
            expected="a run of the same architecture",
            action=f"Set {key} to the model folder that run was trained from.",
        )


def _shape(weight: Tensor | None) -> str:
    return "nothing" if weight is None else str(list(weight.shape))
