"""Every setting of an experiment, its unit under it. Values come from experiments/*.yaml (see config/load.py)."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_type_hints

from openbook.config.data import DataConfig
from openbook.config.evaluation import DecodeConfig, EvaluateConfig, ServeConfig
from openbook.config.models import GeneratorConfig
from openbook.config.retrieval import HotSwapConfig, IndexConfig, RefreshConfig, RetrieverConfig
from openbook.config.training import DprConfig, OptimConfig, TrainerConfig, WarmupConfig
from openbook.config.unit import unit


@dataclass(frozen=True)
class WandbConfig:
    mode: Literal["auto", "offline", "online", "disabled"] = unit(
        "auto",
        "offline needs no account, `wandb sync` sends the run later; online needs `wandb login`; auto: offline where "
        "wandb is installed",
    )
    project: str = unit("openbook", "project name")
    predictions: int = unit(200, "test questions in the table of predictions, wrong ones first; 0: no table")
    report: bool = unit(True, "report.html as an artifact")
    timeout: float = unit(
        120.0, "seconds that the start and the end of a run wait for the server; the rest stays for `wandb sync`"
    )


@dataclass(frozen=True)
class RunConfig:
    dir: str = unit("", "exact run folder; empty: runs/<experiment>/<name>")
    name: str = unit("", "run name; empty: date and time")


@dataclass(frozen=True)
class Config:
    """One experiment, whole."""

    experiment: str = unit("unnamed", "name of the experiment: that of its YAML file")
    shows: str = unit("", "one sentence: what the experiment shows")
    seed: int = unit(0, "seed of the order of examples, sampled answers, dropout and initialisation")
    objective: Literal[
        "rag_token",
        "rag_sequence",
        "closed_book",
        "emdr2",
        "perplexity_distillation",
        "leave_one_out",
        "attention_distillation",
        "generator_only",
        "dpr",
    ] = unit(
        "rag_token",
        "what is minimised (openbook.objectives); dpr trains only the encoders, on gold passages; with "
        "generator.reads=all the generator learns from its likelihood, and the objective says what teaches the "
        "retriever, generator_only: nothing",
    )
    distill_temperature: float = unit(
        1.0,
        "divides the generator's opinion before it becomes the retriever's target "
        "(perplexity_distillation, leave_one_out, attention_distillation)",
    )
    data: DataConfig = field(default_factory=DataConfig)
    retriever: RetrieverConfig = field(default_factory=RetrieverConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    dpr: DprConfig = field(default_factory=DprConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    hot_swap: HotSwapConfig = field(default_factory=HotSwapConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    run: RunConfig = field(default_factory=RunConfig)


def described_keys(schema: type = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted key, default, unit) of every setting."""
    hints = get_type_hints(schema)
    for one in fields(schema):
        if is_dataclass(hints[one.name]):
            yield from described_keys(hints[one.name], f"{prefix}{one.name}.")
        else:
            yield prefix + one.name, one.default, one.metadata["unit"]


def override_text(value: object) -> str:
    """A value as key=value has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def keys_of() -> Iterator[str]:
    """Every dotted key the schema knows."""
    return (key for key, *_ in described_keys())
