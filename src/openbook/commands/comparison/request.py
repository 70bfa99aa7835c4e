"""The request of `compare`: read from the command line and checked completely before anything trains."""

from __future__ import annotations

import hashlib
import shlex
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count, product
from pathlib import Path

from openbook.config.load import known_experiments, load_experiment
from openbook.config.schema import Config
from openbook.errors import OpenBookError, raise_all
from openbook.tracking.open_keys import left_open
from openbook.tracking.run_folder import RUNS
from openbook.tracking.search.found_run import FoundRun, without_effect

# Keys that a comparison sets itself.
RESERVED = {
    "seed": 'Name the seeds with SEEDS="0 1 2".',
    "run.dir": "Every run has a folder of its own: RUNS=FOLDER.",
    "run.name": "Every run has a name of its own.",
}


@dataclass(frozen=True)
class Request:
    """experiments: names, or paths of YAML files. seeds, test_n_docs: whole numbers. args: key=value for every run.
    runs: the folder of `<experiment>/<name>/`. name: of the comparison's own folder."""

    experiments: tuple[str, ...]
    seeds: tuple[int, ...]
    args: tuple[str, ...] = ()
    test_n_docs: tuple[int, ...] = ()
    runs: Path = RUNS
    name: str = ""
    dry_run: bool = False

    @classmethod
    def of(cls, parsed: Namespace) -> Request:
        """From the parsed command line; raises one error that lists every problem."""
        problems: list[OpenBookError] = []

        def refuse(what: str, where: str, got: str = "", expected: str = "", action: str = "") -> None:
            problems.append(OpenBookError(what, where=where, got=got, expected=expected, action=action))

        def numbers(where: str, text: str, least: int) -> tuple[int, ...]:
            words = text.replace(",", " ").split()
            wrong = [word for word in words if not word.isascii() or not word.isdigit() or int(word) < least]
            if wrong:
                refuse("not whole numbers", where, " ".join(wrong), f'numbers from {least}, like "1 2 4"')
            return () if wrong else tuple(dict.fromkeys(map(int, words)))

        experiments = tuple(dict.fromkeys(word for word in parsed.words if "=" not in word))
        args = tuple(word for word in parsed.words if "=" in word)
        if not experiments:
            refuse(
                "nothing to compare",
                "EXPS",
                expected="names of experiments",
                action='For example EXPS="rag_token rag_sequence".',
            )
        for word in args:
            if action := RESERVED.get(word.partition("=")[0], ""):
                refuse("not allowed in a comparison", "ARGS", word, action=action)
        seeds = numbers("SEEDS", parsed.seeds, 0)
        if not seeds and not problems:
            refuse("no seeds", "SEEDS", expected='whole numbers, like "0 1 2"')
        test_n_docs = numbers("TEST_N_DOCS", parsed.test_n_docs, 1)
        name = parsed.name
        if name and (Path(name).name != name or name in (".", "..")):
            refuse("the name of a comparison must not be a path", "NAME", repr(name))
        raise_all(problems)
        return cls(experiments, seeds, args, test_n_docs, Path(parsed.runs), name, parsed.dry_run)

    def configs(self) -> list[tuple[str, Config]]:
        """(experiment as named on the command line, configuration) of every run, by experiment, then of those whose
        encoders others start from. One error lists the problems of all experiments, without repetitions."""
        problems: dict[str, OpenBookError] = {}
        configs: list[tuple[str, Config]] = []

        def load(word: str, seed: int) -> None:
            try:
                configs.append((word, load_experiment(word, [f"seed={seed}", *self._args_of(word)])))
            except OpenBookError as problem:
                problems.setdefault(str(problem), problem)

        for word, seed in product(self.experiments, self.seeds):
            load(word, seed)
        # The experiments that `retriever.start_from` names, of the same seed, where they are not among these: a run
        # must not start from whichever run happens to be the newest.
        requested = {(config.experiment, config.seed) for _, config in configs}
        for _, config in configs:  # grows meanwhile: an origin may have an origin
            name = config.retriever.start_from
            named = name in known_experiments() or len(Path(name).parts) == 1
            if config.objective == "closed_book" or not named or Path(name, "config.yaml").is_file():
                continue
            if name == config.experiment:
                problems[name] = OpenBookError(
                    "an experiment cannot start from its own encoders",
                    where="retriever.start_from",
                    got=name,
                    action="Leave it out of EXPS: it is trained first.",
                )
            elif (name, config.seed) not in requested:
                requested.add((name, config.seed))
                load(name, config.seed)
        names: dict[str, str] = {}
        for word, config in configs:
            if names.setdefault(config.experiment, word) != word:
                both = f"{names[config.experiment]} and {word}"
                problems[both] = OpenBookError("two experiments of one name", where="EXPS", got=both)
        raise_all(list(problems.values()))
        return configs

    def _args_of(self, word: str) -> list[str]:
        """key=value for the runs of this experiment; one that was only added does not start from itself."""
        return [one for one in self.args if word in self.experiments or not one.startswith("retriever.start_from=")]

    @property
    def _effective_args(self) -> list[str]:
        """The overrides that may change a run's metrics."""
        return [word for word in self.args if not without_effect(word.partition("=")[0])]

    @property
    def command(self) -> str:
        """The make command that gives the same tables, without what only says where things are."""
        settings: dict[str, Sequence[object]] = {
            "EXPS": [Path(word).stem if word.endswith((".yaml", ".yml")) else word for word in self.experiments],
            "SEEDS": self.seeds,
            "ARGS": self._effective_args,
            "TEST_N_DOCS": self.test_n_docs,
        }
        words = (f'{name}="{" ".join(map(str, values))}"' for name, values in settings.items() if values)
        return " ".join(["make compare", *words])

    @property
    def folder(self) -> Path:
        """Where table and plots go."""
        identity = repr((self.experiments, self.seeds, self.args, self.test_n_docs))
        return self.runs / "compare" / (self.name or hashlib.sha256(identity.encode()).hexdigest()[:8])

    def training(self, word: str, config: Config, found: FoundRun | None, started: FoundRun | None) -> list[str]:
        """The words after `python -m openbook` that train a run, or continue the one found.

        started: the run whose encoders it starts from. A run that another process may be at right now is refused.
        """
        start = [f"retriever.start_from={started.path}"] if started else []
        if found is not None:
            if found.perhaps_running:
                raise OpenBookError(
                    "the run seems to be running",
                    where=found.path,
                    got=f"written to {found.age:.0f} s ago",
                    action=f"Wait for it to end; if it was killed, `make resume RUN={shlex.quote(str(found.path))}`.",
                )
            opened = left_open(config)  # what the run itself chose there stays as it is
            words = [one for one in self._args_of(word) if one.partition("=")[0] not in opened]
            return ["resume", str(found.path), *words, *start]
        name = self._free_name(config)
        place = [f"run.name={name}"] if self.runs == RUNS else [f"run.dir={self.runs / config.experiment / name}"]
        return ["train", word, f"seed={config.seed}", *self._args_of(word), *start, *place]

    def _free_name(self, config: Config) -> str:
        """seed-S, with a hash of ARGS if there are any; numbered where such a folder holds another run."""
        args = sorted(self._effective_args)
        tail = f"-{hashlib.sha256(' '.join(args).encode()).hexdigest()[:6]}" if args else ""
        base = f"seed-{config.seed}{tail}"
        names = chain([base], (f"{base}-{number}" for number in count(2)))
        return next(name for name in names if not (self.runs / config.experiment / name).exists())
