"""What the generator's weights start from: generator.start_from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from openbook.config.models import MINILM, GeneratorConfig
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.exchange.adapters import base_of, is_adapter_folder, load_adapters
from openbook.models.lora import merged
from openbook.models.seq2seq import load_generator
from openbook.setup.start_from import check_shapes, is_model, refuse_new_adapters, run_to_start_from
from openbook.tracking.checkpoint import read_checkpoint
from openbook.tracking.run_folder import RunFolder
from openbook.utils.console import say

KEY = "generator.start_from"

# How a generator reads and writes; what is left open here is taken from the run that is started from.
READS = {"prompt": "auto", "question": "auto", "system": "", "source_language": "", "target_language": ""}


def resolve_generator(config: Config) -> Config:
    """The configuration with what `generator.start_from` stands for, checked as far as no weights are needed.

    A folder or hub name of a model is generator.model itself; adapters name the model under them; of a run (or an
    experiment's newest) the model and how it reads are taken where they are left open. There is no warm-up.
    """
    name, mine = config.generator.start_from, config.generator
    if not name or config.objective == "dpr":
        return config
    config = replace(config, warmup=replace(config.warmup, steps=0))
    if is_adapter_folder(name):
        return _with(config, model=_one_model(mine.model, base_of(name, KEY, mine.model), name))
    if is_model(name):
        return _with(config, model=_one_model(mine.model, name, name), start_from="")
    source, theirs = run_to_start_from(name, config.seed, KEY)
    if theirs.objective == "dpr":
        raise OpenBookError("there is no generator to start from", where=KEY, got=f"{source.path}, objective dpr")
    other = theirs.generator
    refuse_new_adapters(mine.lora, other.lora, "generator", source, "generator.model=OUT/generator")
    taken = {key: getattr(other, key) for key, opened in READS.items() if getattr(mine, key) == opened}
    if mine.model == MINILM != other.model:
        taken["model"] = other.model
    changed = {key: value for key, value in taken.items() if value != getattr(mine, key)}
    if changed:
        told = (f"generator.{key} = {value!r}" for key, value in changed.items())
        say("\n  ".join([f"as in {source.path}, from which the generator starts:", *told]))
    for key in READS:
        if getattr(mine, key) not in (READS[key], getattr(other, key)):
            say(f"warning: generator.{key} is {getattr(mine, key)!r}, and was {getattr(other, key)!r} in {source.path}")
    return _with(config, **changed, start_from=str(source.path))


def start_generator(config: Config, generator: Any) -> None:
    """The generator with the weights of what `resolve_generator` named. OpenBookError where they do not fit."""
    name, mine = config.generator.start_from, config.generator
    if is_adapter_folder(name):
        load_adapters(generator.model, mine.lora, name, KEY)
        say(f"the generator starts from the adapters of {name}")
        return
    source = RunFolder(Path(name))
    theirs = source.load_config([], training=False)
    content = read_checkpoint(source.weights(theirs))
    prefix, state = "generator.", content["state_dict"]
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if theirs.generator.lora.rank and not mine.lora.rank:
        weights = _without_adapters(theirs.generator, theirs.seed, weights)
    check_shapes(generator.state_dict(), weights, "generator", f"{KEY}: {source.path}", "generator.model")
    generator.load_state_dict(weights)
    say(f"the generator starts from {source.path}, step {content['global_step']}")


def _without_adapters(settings: GeneratorConfig, seed: int, adapters: dict[str, Any]) -> dict[str, Any]:
    """The weights of a run with adapters, these added."""
    trained: Any = load_generator(settings.model, 0.0, seed, settings)
    trained.load_state_dict(adapters)
    return {f"model.{key}": value for key, value in merged(trained.model).state_dict().items()}


def _one_model(mine: str, theirs: str, name: str) -> str:
    if mine not in (MINILM, theirs) and theirs:
        raise OpenBookError(
            "two models to start from",
            where="generator.model",
            got=mine,
            expected=f"{theirs}, as {KEY}={name} has it, or nothing",
        )
    return theirs or mine


def _with(config: Config, **values: Any) -> Config:
    return replace(config, generator=replace(config.generator, **values))
