"""A sweep file in wandb's format, read and checked completely before anything trains.

    name, description   of the sweep
    method              grid or random (bayes: wandb's own search)
    metric              {name: validation/recall_at_1, goal: maximize}
    parameters          {key: {value: X} | {values: [...]} | {min: A, max: B, distribution: uniform}}
    command, program, early_terminate, run_cap, project, entity, preemptible: wandb's, read by its agents

`wandb sweep FILE` reads the same file as it is. What is checked here, of the experiment that is swept: every key is a
setting and every value one that it takes, every trial is a configuration that can be trained, and the metric is one
that its runs measure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from openbook.config.checks import NAMES, is_name
from openbook.config.load import EXPERIMENTS, load_experiment
from openbook.config.rules.combinations import measured_in_validation
from openbook.config.schema import Config, keys_of, override_text
from openbook.errors import OpenBookError, raise_all

KNOWN = {
    *("name", "description", "method", "metric", "parameters"),
    *("command", "program", "early_terminate", "run_cap", "project", "entity", "preemptible"),
}
RESERVED = ("run.dir", "run.name", "wandb.mode", "experiment", "shows")
DISTRIBUTIONS = ("uniform", "int_uniform", "log_uniform_values")

Trial = tuple[str, ...]  # key=value of one run


@dataclass(frozen=True)
class SweepFile:
    """path: where it was read. metric: (name, whether more is better)."""

    path: Path
    name: str
    method: str
    metric: tuple[str, bool]
    parameters: Mapping[str, Mapping[str, Any]]
    run_cap: int = 0
    early_terminate: bool = False

    @classmethod
    def read(cls, name: str, folder: Path = EXPERIMENTS / "sweeps") -> SweepFile:
        """By name, experiments/sweeps/NAME.yaml, or by path; raises one OpenBookError that lists every problem."""
        path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
        if not path.is_file():
            there = ", ".join(sorted(one.stem for one in folder.glob("*.yaml")))
            raise OpenBookError("no such sweep", where=path, expected=f"a YAML file, or one of {there}")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise OpenBookError("the sweep cannot be read", where=path, got=str(error).splitlines()[0]) from error
        problems: list[OpenBookError] = []

        def check(fails: object, what: str, got: object, expected: object) -> None:
            if fails:
                problems.append(OpenBookError(what, where=path, got=got, expected=expected))

        if not isinstance(content, dict):
            raise OpenBookError("a sweep is a mapping", where=path, got=type(content).__name__)
        unknown = sorted(set(map(str, content)) - KNOWN)
        check(unknown, "wandb knows no such key", ", ".join(unknown), f"of {', '.join(sorted(KNOWN))}")
        metric, method = content.get("metric"), content.get("method")
        check(method not in ("grid", "random", "bayes"), "an unknown method", method, "grid, random or bayes")
        name = str(content.get("name") or path.stem)
        check(not is_name(name) or "/" in name, "the name of a sweep must not be a path", repr(name), NAMES)
        goal = metric.get("goal", "minimize") if isinstance(metric, dict) else None
        check(
            not (isinstance(metric, dict) and metric.get("name") and goal in ("maximize", "minimize")),
            "no metric to compare trials by",
            metric,
            "metric: {name: validation/recall_at_1, goal: maximize}",
        )
        parameters, cap = content.get("parameters"), content.get("run_cap", 0)
        check(not isinstance(parameters, dict) or not parameters, "no parameters", parameters, "key: {values: [...]}")
        check(not isinstance(cap, int) or cap < 0, "a number of runs", cap, "1 or more")
        check(
            not _ends_early(content.get("early_terminate")),
            "no rule by which wandb ends a trial early",
            content.get("early_terminate"),
            "early_terminate: {type: hyperband, min_iter: 2}, or max_iter and s; iterations are validations",
        )
        keys = set(keys_of())
        for key, one in parameters.items() if isinstance(parameters, dict) else ():
            check(
                key not in keys or key in RESERVED,
                f"{key} cannot be swept",
                key,
                "a setting of `openbook keys`" if key not in keys else f"none of {', '.join(RESERVED)}",
            )
            if said := _wrong(one, str(method)):
                problems.append(OpenBookError(f"parameter {key}", where=path, got=one, expected=said))
        raise_all(problems)
        assert isinstance(metric, dict) and isinstance(parameters, dict)
        named = (str(metric["name"]), goal == "maximize")
        early = content.get("early_terminate") is not None
        return cls(path, name, str(method), named, parameters, cap, early)

    def trials(self, count: int = 0, seed: int = 0) -> list[Trial]:
        """grid: every combination, the last parameter changing fastest; random: count draws, the same for the same
        seed. No more than count (0: all of a grid, run_cap of a random one) and no trial twice."""
        most = count or self.run_cap
        if self.method == "bayes":
            raise OpenBookError(
                "bayes is wandb's own search",
                where=self.path,
                got="method: bayes without wandb",
                expected="grid or random",
                action="Run `wandb sweep` and `wandb agent` with it.",
            )
        if self.method == "grid":
            choices = [
                [f"{key}={override_text(value)}" for value in _values(one)] for key, one in self.parameters.items()
            ]
            drawn = list(product(*choices))
        else:
            if not most:
                raise OpenBookError(
                    "a random sweep has no end of its own",
                    where=self.path,
                    got="neither run_cap nor a count",
                    expected="run_cap: 20 in the file, or --count 20",
                )
            random = np.random.default_rng(seed)
            drawn = [
                tuple(f"{key}={override_text(_draw(one, random))}" for key, one in self.parameters.items())
                for _ in range(most)
            ]
        distinct = list(dict.fromkeys(drawn))
        return distinct[:most] if most else distinct

    def first(self) -> Trial:
        """One trial, with every parameter at its first value or its least."""
        chosen = {key: one["min"] if "min" in one else _values(one)[0] for key, one in self.parameters.items()}
        return tuple(f"{key}={override_text(value)}" for key, value in chosen.items())

    def corners(self) -> list[Trial]:
        """Trials that have between them every value and every end of every parameter: all of a grid, else one
        parameter at a time beside the others' first."""
        if self.method == "grid":
            return self.trials()
        firsts = [word.partition("=") for word in self.first()]
        found = [self.first()]
        for number, (key, _, _) in enumerate(firsts):
            one = self.parameters[key]
            for value in [one["min"], one["max"]] if "min" in one else _values(one):
                words = ["".join(word) for word in firsts]
                words[number] = f"{key}={override_text(value)}"
                found.append(tuple(words))
        return list(dict.fromkeys(found))

    def configs(self, experiment: str, args: Sequence[str], trials: Sequence[Trial]) -> list[Config]:
        """The configuration of every trial; raises one OpenBookError with all that cannot be trained, or measured."""
        configs, problems, metric = [], dict[str, OpenBookError](), self.metric[0]
        for trial in trials:
            try:
                configs.append(load_experiment(experiment, [*args, *trial]))
            except OpenBookError as error:
                problems[str(error)] = OpenBookError(f"{' '.join(trial)}: {error}")
        raise_all(list(problems.values()))
        for config in configs[:1]:
            names = [f"validation/{name}" for name in measured_in_validation(config)] if config.data.validation else []
            if metric not in (*names, "train/nll"):
                raise OpenBookError(
                    f"runs of {experiment} do not measure the metric",
                    where=self.path,
                    got=metric,
                    expected=f"one of {', '.join((*names, 'train/nll'))}",
                )
        return configs


def _ends_early(rule: Any) -> bool:
    """Whether it is wandb's rule, or none: which trials go on is decided at min_iter, or first at max_iter / eta^s."""
    if rule is None:
        return True
    if not isinstance(rule, dict) or rule.get("type") != "hyperband":
        return False
    numbers = {key: value for key, value in rule.items() if key in ("min_iter", "max_iter", "s", "eta")}
    whole = all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in numbers.values())
    known = set(rule) <= {"type", "strict", *numbers}
    return whole and known and ("min_iter" in rule or {"max_iter", "s"} <= set(rule))


def _wrong(one: Any, method: str) -> str:
    """What a parameter should be, where it is something else."""
    if not isinstance(one, dict) or not one:
        return "value: X, values: [X, Y] or min: A and max: B"
    kinds = set(one) - {"distribution", "probabilities"}
    if kinds == {"value"} or (kinds == {"values"} and isinstance(one["values"], list) and one["values"]):
        probabilities = one.get("probabilities")
        if probabilities is not None and (
            len(probabilities) != len(one.get("values", ())) or not math.isclose(sum(probabilities), 1, abs_tol=1e-6)
        ):
            return "one probability for each value, 1 in all"
        return ""
    if kinds != {"min", "max"}:
        return "value: X, values: [X, Y] or min: A and max: B"
    if method == "grid":
        return "values: [X, Y] in a grid"
    low, high = one["min"], one["max"]
    if not all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high)) or low >= high:
        return "min below max, both numbers (1.0e-5; YAML reads 1e-5 as text)"
    distribution = one.get("distribution", _usual(one))
    if distribution not in DISTRIBUTIONS:
        return f"distribution: {' or '.join(DISTRIBUTIONS)}"
    return "min above 0" if distribution == "log_uniform_values" and low <= 0 else ""


def _usual(one: Mapping[str, Any]) -> str:
    """wandb's distribution where a parameter names none."""
    return "int_uniform" if isinstance(one["min"], int) and isinstance(one["max"], int) else "uniform"


def _values(one: Mapping[str, Any]) -> list[Any]:
    return [one["value"]] if "value" in one else list(one["values"])


def _draw(one: Mapping[str, Any], random: np.random.Generator) -> Any:
    if "min" not in one:
        values = _values(one)
        return values[int(random.choice(len(values), p=one.get("probabilities")))]
    low, high = one["min"], one["max"]
    match one.get("distribution", _usual(one)):
        case "int_uniform":
            return int(random.integers(int(low), int(high), endpoint=True))
        case "log_uniform_values":
            return float(f"{math.exp(random.uniform(math.log(low), math.log(high))):.4g}")
        case _:
            return float(f"{random.uniform(low, high):.4g}")
