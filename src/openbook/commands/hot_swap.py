"""`hot-swap`: a trained run answers from two corpora that disagree, without training (Lewis et al. 2020, section 4.5).

Two indexes times two sets of facts. If the answers come from the index, the matching cells are high and the others
low; a generator that answered from its parameters would give the same answers with both.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from openbook.batch import Example
from openbook.commands.evaluate import answer_test
from openbook.config.data import BUILT_IN
from openbook.config.schema import Config
from openbook.data.question_file import QuestionFile
from openbook.errors import OpenBookError, raise_all
from openbook.metrics.matching import normalize_answer
from openbook.metrics.prediction import Prediction
from openbook.reporting.hot_swap_table import FACTS, INDEXES, summarize, table
from openbook.setup.inputs import data as setup_data
from openbook.setup.preflight import check_swap
from openbook.setup.prepare import prepare
from openbook.setup.trainer import together
from openbook.tracking.run_folder import RunFolder
from openbook.utils.atomic import replacing_folder, write_json
from openbook.utils.console import console, say, say_result
from openbook.utils.disk import check_writable


def hot_swap(folder: str, overrides: list[str]) -> Path:
    """Answer the changed questions from both corpora and score them by both sets of facts; returns summary.json.

    It is written to `hot_swap/` in the run folder, beside predictions_original_index.jsonl and
    predictions_changed_index.jsonl, each scored by the facts of its own corpus. The run's own files are left as they
    are. Exact match, 0 to 1; questions in unseen phrasings are reported apart.
    """
    run = RunFolder.existing(folder)
    config = run.load_config(overrides, training=False)
    _check(config)
    check_writable(run.path, "the run folder")
    swap = config.hot_swap
    # The configuration of each evaluation: its corpus, and the questions with the answers of that corpus.
    pairs = zip(INDEXES, (config.data.corpus, swap.corpus), (swap.facts, swap.changed_facts), strict=True)
    sides = {
        index: replace(config, data=replace(config.data, corpus=corpus, test=test)) for index, corpus, test in pairs
    }
    facts = {name: _facts(config, file) for name, file in zip(FACTS, (swap.facts, swap.changed_facts), strict=True)}
    _check_facts(config, *facts.values())
    with together(config, run.path):
        return _answered(run, config, sides, facts, overrides)


def _answered(
    run: RunFolder,
    config: Config,
    sides: Mapping[str, Config],
    facts: Mapping[str, Mapping[str, Example]],
    overrides: list[str],
) -> Path:
    """Of both sides, and what comes of it as summary.json."""
    for side in sides.values():  # finds errors in the second corpus before answering from the first
        prepare(side, "test")
    answered: dict[str, list[Prediction]] = {}
    for number, (index, side) in enumerate(sides.items(), 1):
        say(f"answering from the {index.replace('_', ' ')}, {number} of 2: {side.data.corpus}")
        module, trainer, _ = answer_test(run, side)
        answered[index] = module.predictions
    summary = {"experiment": config.experiment, "seed": config.seed, "overrides": overrides} | summarize(
        answered,
        {name: {id_: one.answers for id_, one in of.items()} for name, of in facts.items()},
        config.evaluate.regex_answers,
        config.evaluate.bootstrap,
        config.seed,
    )
    target = run.path / "hot_swap"
    if trainer.is_global_zero:  # the last thing: no rank waits for it
        with replacing_folder(target, complete=lambda _: False) as new:  # replaces an earlier one as a whole
            for index, predictions in answered.items():
                RunFolder.write_predictions(new, [one.to_json() for one in predictions], f"predictions_{index}.jsonl")
            write_json(new / "summary.json", summary)
        console.print(table(summary))
        say_result(f"results in {target}")
    return target / "summary.json"


def _check(config: Config) -> None:
    if config.objective in ("closed_book", "dpr"):
        lacks = "index to swap" if config.objective == "closed_book" else "generator to answer with"
        raise OpenBookError(
            f"this run has no {lacks}",
            where="objective",
            got=config.objective,
            expected="a run that answers from passages",
        )
    check_swap(config)
    embedded = config.data.corpus in BUILT_IN["corpus"]
    names = asdict(config.hot_swap)
    problems = [
        OpenBookError(
            f"it does not go with {'the embedded corpus' if embedded else 'a corpus of your own'}",
            where=f"hot_swap.{key}",
            got=repr(names[key]),
            expected=f"one of {', '.join(BUILT_IN[kind])}" if embedded else "a file",
        )
        for key, kind in (("corpus", "corpus"), ("facts", "test"), ("changed_facts", "test"))
        if (names[key] in BUILT_IN[kind]) != embedded
    ]
    if config.hot_swap.corpus == config.data.corpus:
        problems.append(
            OpenBookError(
                "both indexes would be of the same corpus",
                where="hot_swap.corpus",
                got=repr(config.hot_swap.corpus),
                expected="another one than data.corpus",
            )
        )
    raise_all(problems)


def _facts(config: Config, name: str) -> dict[str, Example]:
    path = setup_data.named_file(config, "test", name)
    assert path is not None  # check_swap refuses an empty name
    return {example.id: example for example in QuestionFile(path, config.data.cache)}


def _check_facts(config: Config, original: Mapping[str, Example], changed: Mapping[str, Example]) -> None:
    """The same questions in both, and no answer that is correct by both, unless answers are regular expressions, which
    cannot be compared."""
    where = "hot_swap.facts, hot_swap.changed_facts"
    asked, also = ({id_: one.question for id_, one in facts.items()} for facts in (original, changed))
    if asked != also:
        differ = sorted(set(asked.items()) ^ set(also.items()))
        raise OpenBookError(
            "the two sets of facts ask different questions",
            where=where,
            got=f"{len({id_ for id_, _ in differ})} ids that differ, the first is {differ[0][0]!r}",
            expected="the same ids and questions, with other answers",
        )
    answers = [
        {id_: set(map(normalize_answer, one.answers)) for id_, one in facts.items()} for facts in (original, changed)
    ]
    same = [id_ for id_ in asked if answers[0][id_] & answers[1][id_]]
    if same and not config.evaluate.regex_answers:
        raise OpenBookError(
            "a question has an answer that is right by both sets of facts",
            where=where,
            got=f"{len(same)} of {len(asked)}, the first is {same[0]!r}",
            expected="questions about what differs",
            action="Leave those questions out.",
        )
