"""`evaluate`: a trained run on its test split, or on another corpus or other questions, without training."""

import os
from collections.abc import Sequence
from pathlib import Path

import lightning as L

from openbook.callbacks import IndexRefresh
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.metrics.ranking import lines_of
from openbook.reporting.report import results_table
from openbook.setup.prepare import NOTHING_OWN, OwnParts, Prepared, prepare
from openbook.setup.trainer import make_trainer
from openbook.tracking.checkpoint import check_weights, read_checkpoint
from openbook.tracking.run_folder import RunFolder
from openbook.tracking.trec import write_trec
from openbook.training.dpr_module import DprModule
from openbook.training.rag_module import RagModule
from openbook.utils.atomic import write_json
from openbook.utils.console import console, say


def evaluate(folder: str | Path, overrides: Sequence[str] = (), own: OwnParts = NOTHING_OWN) -> Path:
    """Load a run's last checkpoint, or the best (evaluate.checkpoint), encode the corpus with it and answer the test
    questions; returns the result's file.

    Results go to `evaluations/<number>/` in the run folder: summary.json (as the run's, with the overrides),
    predictions.jsonl and, where passages are ranked (evaluate.depth), run.trec and qrels.trec. With objective=dpr
    retrieval is measured alone, without the run's generator. The run's own files are left as they are. A run that was
    tested on a stale index is tested on that index again, unless the corpus is another one.
    """
    run = RunFolder.existing(str(folder))
    config = run.load_config(list(overrides), training=False)
    if not config.data.test:
        raise OpenBookError("there are no test questions", where="data.test", action="Set data.test=FILE.")
    module, trainer, prepared = answer_test(run, config, own)

    number = 1 + max((int(p.name) for p in (run.path / "evaluations").glob("*") if p.name.isdigit()), default=0)
    target = run.path / "evaluations" / str(number)
    if trainer.is_global_zero:
        os.makedirs(target)
        run.write_predictions(target, [prediction.to_json() for prediction in module.predictions])
        write_trec(target, module.predictions)
        # With other questions or another corpus the run's own metrics are no comparison.
        before = {} if overrides else run.read_summary().get("before_training", {})
        result = {"experiment": config.experiment, "overrides": list(overrides), "before_training": before}
        data = {split: sha for split, sha in prepared.fingerprints.items() if split in ("corpus", "test")}
        result |= {"test": module.summary, "data": data}
        write_json(target / "summary.json", result)
        console.print(results_table(result))
        for line in lines_of(module.summary.get("retrieval", {})):
            say(line)
        say(f"results in {target}")
    return target / "summary.json"


def answer_test(
    run: RunFolder, config: Config, own: OwnParts = NOTHING_OWN
) -> tuple[RagModule | DprModule, L.Trainer, Prepared]:
    """The run's last checkpoint answers the test questions of a configuration; the predictions are in the module.

    Another corpus is another snapshot: of kept vectors only changed passages are encoded.
    """
    module, prepared, refresh = load_trained(run, config, own)
    trainer = make_trainer(config, [refresh] if refresh else [], [])
    trainer.test(module, prepared.questions, verbose=False, weights_only=True)
    return module, trainer, prepared


def load_trained(
    run: RunFolder, config: Config, own: OwnParts = NOTHING_OWN, stage: str = "test"
) -> tuple[RagModule | DprModule, Prepared, IndexRefresh | None]:
    """The run's models with the weights of its last or best checkpoint, and what builds their index, which is not built
    yet."""
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
        return module, prepared, None
    refresh = prepared.refresh(probes=False)
    state = content["callbacks"].get(refresh.state_key, {})
    if not config.refresh.fresh_test and state.get("corpus") == prepared.parts.corpus.fingerprint:
        refresh.load_state_dict(state)
    return module, prepared, refresh
