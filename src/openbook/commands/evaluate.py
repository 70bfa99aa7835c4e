"""`evaluate`: a trained run on its test split, or on another corpus or other questions, without training; or the
retriever of an experiment as its encoders come, without a run."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning as L
import torch

from openbook.callbacks import IndexRefresh
from openbook.config.checks import source_problems
from openbook.config.load import list_experiments, load_experiment
from openbook.config.schema import Config
from openbook.errors import OpenBookError, raise_all
from openbook.metrics.ranking import lines_of
from openbook.reporting.results_table import results_table
from openbook.retrieval.dense import DenseRetriever
from openbook.serving.served import Served
from openbook.setup.inputs.data import answered_at_once
from openbook.setup.prepare import NOTHING_OWN, RANKED, OwnParts, Prepared, prepare
from openbook.setup.start_from import resolve_start, start_encoders
from openbook.setup.trainer import make_trainer, together
from openbook.tracking.added_passages import answering_overrides
from openbook.tracking.checkpoint import check_weights, read_checkpoint
from openbook.tracking.run_folder import SHARED, RunFolder
from openbook.tracking.trec import write_trec
from openbook.training.dpr_module import DprModule
from openbook.training.rag_module import RagModule
from openbook.utils.atomic import write_json
from openbook.utils.console import console, say, say_result
from openbook.utils.disk import check_writable
from openbook.utils.distributed import from_rank_zero, leave_together
from openbook.utils.hardware import rank_from_environment
from openbook.utils.rank_failure import solo


class Trained(NamedTuple):
    """A run's models with the weights of one of its checkpoints, and what builds their index, which is not built yet.
    step: of the checkpoint, whose file may be another by now."""

    module: RagModule | DprModule
    prepared: Prepared
    refresh: IndexRefresh | None
    checkpoint: Path
    step: int


UNTRAINED = "Nothing was trained here: the encoders are as they were loaded."


def evaluate(
    folder: str | Path, overrides: Sequence[str] = (), own: OwnParts = NOTHING_OWN, untrained: bool = False
) -> Path:
    """The test of a trained run. An experiment that has no run, and with `untrained` one that has, is tested as its
    encoders come: see `evaluate_untrained`.

    Load a run's last checkpoint, or the best (evaluate.checkpoint), encode the corpus with it and answer the test
    questions; returns the result's file.

    Results go to `evaluations/<number>/` in the run folder: summary.json (as the run's, with the overrides),
    predictions.jsonl and, where passages are ranked (evaluate.depth), run.trec and qrels.trec. With objective=dpr
    retrieval is measured alone, without the run's generator. Where passages were added (`index add`), the run answers
    from the corpus with them, unless data.corpus is overridden. The run's own files are left as they are. A run that
    was tested on a stale index is tested on that index again, unless the corpus is another one.
    """
    try:
        run = None if untrained else RunFolder.existing(str(folder))
    except OpenBookError:
        if not (
            str(folder) in list_experiments() or (Path(folder).suffix in (".yaml", ".yml") and Path(folder).exists())
        ):
            raise
        run = None
    if run is None:
        return evaluate_untrained(str(folder), overrides, own)
    overrides = answering_overrides(run.path, overrides)
    config = run.load_config(overrides, training=False)
    if not config.data.test:
        raise OpenBookError("there are no test questions", where="data.test", action="Set data.test=FILE.")
    check_writable(run.path / "evaluations", "the run folder")
    with together(config, run.path):
        return _evaluate(run, config, overrides, own)


def _evaluate(run: RunFolder, config: Config, overrides: Sequence[str], own: OwnParts) -> Path:
    module, trainer, prepared = answer_test(run, config, own)
    target = run.path
    with solo("writing the results"):
        if trainer.is_global_zero:
            target = _next_number(run.path / "evaluations")
            # With other questions or another corpus the run's own metrics are no comparison.
            before = {} if overrides else run.read_summary().get("before_training", {})
            result = {"experiment": config.experiment, "overrides": list(overrides), "before_training": before}
            data = {split: sha for split, sha in prepared.fingerprints.items() if split in ("corpus", "test")}
            _write(target, module, result | {"test": module.summary, "data": data})
    written = Path(from_rank_zero(str(target))) / "summary.json"
    leave_together()
    return written


def _next_number(folder: Path) -> Path:
    """A new folder of the next free number, also where several evaluations end at the same moment."""
    number = 1 + max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)
    while True:
        try:
            (folder / str(number)).mkdir()
            return folder / str(number)
        except FileExistsError:
            number += 1


def evaluate_untrained(experiment: str, overrides: Sequence[str] = (), own: OwnParts = NOTHING_OWN) -> Path:
    """Measure the retriever of an experiment as its encoders come (zero-shot), or as those of retriever.start_from
    are; returns the result's file. No training questions are read and no generator is loaded.

    The run folder is one of `EXPERIMENT_untrained`, so that nothing takes it for a run of the experiment. It holds
    config.yaml, environment.json, summary.json, predictions.jsonl, run.trec and qrels.trec. OpenBookError where the
    experiment has a generator, which could answer nothing untrained.
    """
    config = load_experiment(experiment, [*overrides, "data.train=", "data.validation="], training=False)
    if config.objective != "dpr":
        raise OpenBookError(
            "an experiment without a run is measured by its retrieval alone",
            where="objective",
            got=config.objective,
            expected="dpr",
            action=f"Set objective=dpr; or `openbook train {experiment}` trains a run to evaluate.",
        )
    if not config.data.test:
        raise OpenBookError("there are no test questions", where="data.test", action="Set data.test=FILE.")
    raise_all(source_problems(config))
    own.check(config)
    evaluation = replace(config.evaluate, depth=config.evaluate.depth or RANKED)
    config = resolve_start(replace(config, experiment=f"{config.experiment}_untrained", evaluate=evaluation))
    run = RunFolder.choose(config)
    if rank_from_environment():
        with together(config, run.path):
            return _test_untrained(run, config)
    run = run.claim()
    try:
        with together(config, run.path):
            return _test_untrained(run, config)
    finally:
        run.release()
        os.environ.pop(SHARED, None)


def _test_untrained(run: RunFolder, config: Config) -> Path:
    prepared = prepare(config, "test")
    config = prepared.config
    if rank_from_environment() == 0:
        run.create(config)
        say(f"run folder {run.path}; {prepared.parts.corpus.n_passages:,} passages; {UNTRAINED}")
    module = prepared.module(training=False)
    if config.retriever.start_from:
        start_encoders(config, cast(DenseRetriever, module.retriever))
    trainer = make_trainer(config, [prepared.refresh(probes=False)], [])
    trainer.test(module, prepared.questions, verbose=False, weights_only=True)
    if trainer.is_global_zero:  # the last thing: no rank waits for it
        result = {
            "experiment": config.experiment,
            "status": "evaluated",
            "steps": 0,
            "seed": config.seed,
            "n_docs": config.evaluate.n_docs or config.retriever.n_docs,
            "test": module.summary,
            "before_training": {},
            "questions": {"test": len(prepared.questions.questions["test"])},
            "data": prepared.fingerprints,
            "index": module.retriever.index_facts(),
            "disclosures": [UNTRAINED],
        }
        _write(run.path, module, result)
    return run.summary


def _write(target: Path, module: RagModule | DprModule, result: dict[str, Any]) -> None:
    """The files of a test, and what of it is printed."""
    RunFolder.write_predictions(target, [prediction.to_json() for prediction in module.predictions])
    write_trec(target, module.predictions)
    write_json(target / "summary.json", result)
    console.print(results_table(result))
    for line in lines_of(module.summary.get("retrieval", {})):
        say_result(line)
    say_result(f"results in {target}")


def answer_test(
    run: RunFolder, config: Config, own: OwnParts = NOTHING_OWN
) -> tuple[RagModule | DprModule, L.Trainer, Prepared]:
    """The run's last checkpoint answers the test questions of a configuration; the predictions are in the module.

    Another corpus is another snapshot: of kept vectors only changed passages are encoded.
    """
    module, prepared, refresh, *_ = load_trained(run, config, own)
    trainer = make_trainer(config, [refresh] if refresh else [], [])
    trainer.test(module, prepared.questions, verbose=False, weights_only=True)
    return module, trainer, prepared


def load_trained(run: RunFolder, config: Config, own: OwnParts = NOTHING_OWN, stage: str = "test") -> Trained:
    """The run's models with the weights of its last or best checkpoint."""
    own.check(config, run.read_summary() or None, needed=("retriever",))
    path = run.weights(config)
    content = read_checkpoint(path)
    say(f"weights of step {content['global_step']}, {path.name}")
    prepared = prepare(config, stage, own)
    module, weights = prepared.module(training=False), content["state_dict"]
    if config.objective == "dpr":  # retrieval alone, of any run: no generator is loaded
        weights = {name: value for name, value in weights.items() if name.startswith("retriever.")}
    elif config.retriever.kind == "bm25":  # the generator of any run can read what BM25 finds
        weights = {name: value for name, value in weights.items() if not name.startswith("retriever.")}
    check_weights(module, path, weights)
    module.load_state_dict(weights)
    if not prepared.is_dense:
        return Trained(module, prepared, None, path, content["global_step"])
    refresh = prepared.refresh(probes=False)
    state = content["callbacks"].get(refresh.state_key, {})
    if not config.refresh.fresh_test and state.get("corpus") == prepared.parts.corpus.fingerprint:
        refresh.load_state_dict(state)
    return Trained(module, prepared, refresh, path, content["global_step"])


def load_served(run: RunFolder, config: Config, own: OwnParts = NOTHING_OWN) -> tuple[Served, Prepared]:
    """The run's models with their index over the configuration's corpus, on their device and ready to answer."""
    module, prepared, refresh, checkpoint, step = load_trained(run, config, own)
    module.eval().to(torch.device("cuda" if prepared.on == "gpu" else "cpu"))
    retriever, corpus = module.retriever, prepared.parts.corpus
    if refresh is not None:
        refresh.manager.ensure(cast(DenseRetriever, retriever), 0)
    facts = {
        "run": str(run.path),
        "experiment": config.experiment,
        "objective": config.objective,
        "checkpoint": checkpoint.name,
        "step": step,
        "corpus": config.data.corpus,
        "corpus_fingerprint": corpus.fingerprint,
        "n_passages": corpus.n_passages,
        "index": retriever.index_facts(),
    }
    n_docs = config.evaluate.n_docs or config.retriever.n_docs
    passes = (config.serve.batch_size, answered_at_once(config))
    return Served(module, prepared.questions.batch_of, corpus, n_docs, passes, facts), prepared
