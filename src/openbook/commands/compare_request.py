"""What `compare` was asked for: read from the command line and checked whole, before anything trains."""

from __future__ import annotations

import argparse
import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openbook.config.load import load_experiment
from openbook.config.schema import Config
from openbook.errors import OpenBookError, raise_all
from openbook.tracking.run_folder import RUNS
from openbook.tracking.run_search import FoundRun, without_effect

OWN = {
    "seed": 'Name the seeds with SEEDS="0 1 2".',
    "run.dir": "Every run has a folder of its own: RUNS=FOLDER.",
    "run.name": "Every run has a name of its own.",
}
"""Keys that a comparison decides itself."""


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
    docs: bool = False

    @classmethod
    def read(cls, words: Sequence[str]) -> Request:
        """From `EXPERIMENT ... key=value ... --seeds "0 1 2"`; raises one error that lists every problem."""
        parser = argparse.ArgumentParser("openbook compare", description=__doc__)
        parser.add_argument("words", nargs="*", metavar="EXPERIMENT or key=value")
        parser.add_argument("--seeds", default="0", help='whole numbers: "0 1 2"')
        parser.add_argument("--test-n-docs", default="", help='also test with so many passages: "1 2 4 8"')
        parser.add_argument("--runs", default=str(RUNS), help="folder of EXPERIMENT/NAME/ in which to look and train")
        parser.add_argument("--name", default="", help="of the folder under compare/ in there")
        parser.add_argument("--dry-run", action="store_true", help="say what is missing and how long it would take")
        parser.add_argument("--docs", action="store_true", help="also write docs/results.md")
        chosen = parser.parse_intermixed_args(words)
        problems: list[OpenBookError] = []
        experiments = tuple(dict.fromkeys(word for word in chosen.words if "=" not in word))
        args = tuple(word for word in chosen.words if "=" in word)
        if not experiments:
            problems.append(
                OpenBookError(
                    "nothing to compare",
                    where="EXPS",
                    expected="names of experiments",
                    action='For example EXPS="rag_token rag_sequence".',
                )
            )
        for word in args:
            if word.partition("=")[0] in OWN:
                problems.append(
                    OpenBookError("not for a comparison", where="ARGS", got=word, action=OWN[word.partition("=")[0]])
                )
        seeds = _numbers("SEEDS", chosen.seeds, 0, problems)
        if not seeds and not problems:
            problems.append(OpenBookError("no seeds", where="SEEDS", expected='whole numbers, like "0 1 2"'))
        n_docs = _numbers("TEST_N_DOCS", chosen.test_n_docs, 1, problems)
        if chosen.name and (Path(chosen.name).name != chosen.name or chosen.name in (".", "..")):
            problems.append(OpenBookError("a comparison's name is not a path", where="NAME", got=repr(chosen.name)))
        raise_all(problems)
        return cls(experiments, seeds, args, n_docs, Path(chosen.runs), chosen.name, chosen.dry_run, chosen.docs)

    def configs(self) -> list[tuple[str, Config]]:
        """(experiment as it was named, configuration) of every run, experiment by experiment, then of those whose
        encoders others start from; every problem of every experiment at once, one that several have only once."""
        problems: dict[str, OpenBookError] = {}
        configs = []
        for word in self.experiments:
            for seed in self.seeds:
                try:
                    configs.append((word, load_experiment(word, [f"seed={seed}", *self.args])))
                except OpenBookError as problem:
                    problems.setdefault(str(problem), problem)
        self._add_origins(configs, problems)
        names: dict[str, str] = {}
        for word, config in configs:
            if names.setdefault(config.experiment, word) != word:
                both = f"{names[config.experiment]} and {word}"
                problems[both] = OpenBookError("two experiments of one name", where="EXPS", got=both)
        raise_all(list(problems.values()))
        return configs

    def _add_origins(self, configs: list[tuple[str, Config]], problems: dict[str, OpenBookError]) -> None:
        """The experiments that `retriever.start_from` names, of the same seed, where they are not among these: a run
        must not start from whichever run happens to be the newest."""
        there = {(config.experiment, config.seed) for _, config in configs}
        for _, config in configs:  # grows meanwhile: an origin may have an origin
            name = config.retriever.start_from
            if config.objective == "closed_book" or len(Path(name).parts) != 1 or Path(name, "config.yaml").is_file():
                continue
            if name == config.experiment:
                problems[name] = OpenBookError(
                    "an experiment cannot start from its own encoders",
                    where="retriever.start_from",
                    got=name,
                    action="Leave it out of EXPS: it is trained first.",
                )
            elif (name, config.seed) not in there:
                there.add((name, config.seed))
                try:
                    configs.append((name, load_experiment(name, [f"seed={config.seed}", *self._args_of(name)])))
                except OpenBookError as problem:
                    problems.setdefault(str(problem), problem)

    def _args_of(self, word: str) -> list[str]:
        """key=value for the runs of this experiment; one that was only added does not start from itself."""
        return [one for one in self.args if word in self.experiments or not one.startswith("retriever.start_from=")]

    @property
    def command(self) -> str:
        """The make command that gives the same tables; what only says where things are is left out."""
        names = " ".join(Path(word).stem for word in self.experiments)
        words = [f'EXPS="{names}"', f'SEEDS="{" ".join(map(str, self.seeds))}"']
        args = [word for word in self.args if not without_effect(word.partition("=")[0])]
        words += [f'ARGS="{" ".join(args)}"'] if args else []
        words += [f'TEST_N_DOCS="{" ".join(map(str, self.test_n_docs))}"'] if self.test_n_docs else []
        return " ".join(["make compare", *words, *(["DOCS=1"] if self.docs else [])])

    @property
    def folder(self) -> Path:
        """Where table and plots go."""
        told = repr((self.experiments, self.seeds, self.args, self.test_n_docs))
        return self.runs / "compare" / (self.name or hashlib.sha256(told.encode()).hexdigest()[:8])

    def training(self, word: str, config: Config, found: FoundRun | None, started: FoundRun | None) -> list[str]:
        """The words after `python -m openbook` that train a run, or continue the one found.

        started: the run whose encoders it starts from. A run that another process may be at right now is refused.
        """
        start = [f"retriever.start_from={started.path}"] if started else []
        if found is not None:
            if found.perhaps_running:
                raise OpenBookError(
                    "the run seems to be under way",
                    where=found.path,
                    got=f"written to {found.age:.0f} s ago",
                    action=f"Wait for its end; where it was killed, `make resume RUN={shlex.quote(str(found.path))}`.",
                )
            return ["resume", str(found.path), *self._args_of(word), *start]
        name = self._free_name(config)
        place = [f"run.name={name}"] if self.runs == RUNS else [f"run.dir={self.runs / config.experiment / name}"]
        return ["train", word, f"seed={config.seed}", *self._args_of(word), *start, *place]

    def _free_name(self, config: Config) -> str:
        """seed-S, with a hash of ARGS where there are any; numbered where such a folder holds another run."""
        told = [word for word in self.args if not without_effect(word.partition("=")[0])]
        tail = f"-{hashlib.sha256(' '.join(sorted(told)).encode()).hexdigest()[:6]}" if told else ""
        name = base = f"seed-{config.seed}{tail}"
        number = 1
        while (self.runs / config.experiment / name).exists():
            number += 1
            name = f"{base}-{number}"
        return name


def _numbers(where: str, text: str, least: int, problems: list[OpenBookError]) -> tuple[int, ...]:
    words = text.replace(",", " ").split()
    wrong = [word for word in words if not word.isascii() or not word.isdigit() or int(word) < least]
    if wrong:
        problems.append(
            OpenBookError(
                "not whole numbers", where=where, got=" ".join(wrong), expected=f'numbers from {least}, like "1 2 4"'
            )
        )
        return ()
    return tuple(dict.fromkeys(map(int, words)))
