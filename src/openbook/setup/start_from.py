"""Encoders of another run to start with: retriever.start_from."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from openbook.config.load import known_experiments
from openbook.config.schema import Config
from openbook.data.corpus_build import tokens_fingerprint
from openbook.data.encoder_inputs import encoder_format
from openbook.errors import OpenBookError
from openbook.models.encoders import load_tokenizer
from openbook.retrieval.dense import DenseRetriever
from openbook.setup.encoders import follow_folders, sides
from openbook.tracking import run_folder as runs
from openbook.tracking.checkpoint import read_checkpoint
from openbook.tracking.run_folder import RunFolder
from openbook.utils.console import say

KEY = "retriever.start_from"
SIDES = ("question_encoder", "passage_encoder")


def resolve_start(config: Config) -> Config:
    """The configuration with the path of the run that `retriever.start_from` stands for, checked as far as no weights
    are needed: the same when read again, whatever is trained meanwhile.

    A name with a config.yaml is that run. Otherwise it is an experiment: its newest finished run of this seed, else
    its newest finished run. A closed book starts with no encoders and is left as it is.
    """
    name = config.retriever.start_from
    if not name or config.objective == "closed_book":
        return config
    source = RunFolder(Path(name))
    if not source.config.is_file():
        source = newest_finished(name, config.seed)
    theirs = source.load_config([], training=False)
    if theirs.objective == "closed_book" or theirs.retriever.kind != "dense":
        kind = "a closed book" if theirs.objective == "closed_book" else "BM25"
        raise OpenBookError(
            "there are no encoders to start from",
            where=KEY,
            got=f"{source.path}, {kind}",
            expected="a run that has trained encoders",
        )
    if not source.weights(theirs).is_file():
        raise OpenBookError(
            "the run to start from has no checkpoint",
            where=KEY,
            got=source.path,
            expected=source.weights(theirs),
            action=f"`make resume RUN={source.path}` trains it.",
        )
    mine = config.retriever
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


def newest_finished(experiment: str, seed: int) -> RunFolder:
    """The newest finished run of this experiment with this seed; without one, the newest with any, which is said."""
    finished: list[tuple[bool, float, Path]] = []
    for file in (runs.RUNS / experiment).glob("*/config.yaml") if is_name(experiment) else ():
        summary = RunFolder(file.parent).read_summary()
        if summary.get("status") == "finished":
            finished.append((summary.get("seed") == seed, file.stat().st_mtime, file.parent))
    if not finished:
        raise OpenBookError(
            "there is no run to start from",
            where=KEY,
            got=repr(experiment),
            expected="a run folder, or an experiment with a finished run",
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
    """Both encoders with the weights of the run that `resolve_start` named; nothing else of it is taken."""
    source = RunFolder(Path(config.retriever.start_from))
    content = read_checkpoint(source.weights(source.load_config([], training=False)))
    for side in SIDES:
        prefix = f"retriever.{side}."
        weights = {
            name.removeprefix(prefix): value for name, value in content["state_dict"].items() if name.startswith(prefix)
        }
        encoder = getattr(retriever, side)
        _check_shapes(encoder.state_dict(), weights, side, source)
        encoder.load_state_dict(weights)
    say(f"encoders start from {source.path}, step {content['global_step']}")


def _check_shapes(mine: dict[str, Tensor], theirs: dict[str, Tensor], side: str, source: RunFolder) -> None:
    differing = [
        f"{name} {_shape(theirs.get(name))} instead of {_shape(mine.get(name))}"
        for name in sorted({*mine, *theirs})
        if _shape(mine.get(name)) != _shape(theirs.get(name))
    ]
    if differing:
        raise OpenBookError(
            "the encoder to start from has another shape",
            where=f"{KEY}: {source.path}",
            got=f"{len(differing)} weights that differ, first {side}.{differing[0]}",
            expected="a run of the same architecture",
            action=f"Set retriever.{side} to the model folder that run was trained from.",
        )


def _shape(weight: Tensor | None) -> str:
    return "nothing" if weight is None else str(list(weight.shape))
