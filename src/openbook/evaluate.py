"""`evaluate`: a trained run on its test split, or on another corpus or other questions, without training."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L

from openbook import build
from openbook.config import Config
from openbook.errors import OpenBookError
from openbook.hardware import accelerator, autocast_dtype, set_threads
from openbook.logs import WholeCheckpoints, read_checkpoint
from openbook.mips import use_threads
from openbook.preflight import check, check_corpus
from openbook.progress import console, say
from openbook.report import results_table
from openbook.runs import RunFolder, write_json


def evaluate(folder: str, overrides: list[str]) -> Path:
    """Load a run's last checkpoint, encode the corpus with it, answer the test questions; returns the result's file.

    Results go to `evaluations/<number>/` in the run folder: summary.json (as the run's, with the overrides) and
    predictions.jsonl. The run's own files are left as they are.
    """
    run = RunFolder.existing(folder)
    config = run.load_config(overrides)
    check(config)
    content = read_checkpoint(run.last)
    use_threads(set_threads(config.trainer.devices))
    L.seed_everything(config.seed, verbose=False)
    ready = build.parts(config)
    check_corpus(config, ready.corpus)
    questions = build.data(config, ready)
    questions.setup("test")
    if ready.files.test is None:
        raise OpenBookError("there are no test questions", where="data.test", action="Set data.test=FILE.")
    on = accelerator(config.trainer.accelerator)
    autocast = autocast_dtype(config.trainer.precision, on)
    module = build.module(config, ready, reader_folder=None)
    module.load_state_dict(content["state_dict"])
    callbacks: list[L.Callback] = []
    if module.retriever is not None:
        callbacks = [build.index_refresh(config, ready, None, autocast)]
    trainer = L.Trainer(
        accelerator=on, devices=config.trainer.devices, num_nodes=config.trainer.nodes,
        precision="bf16-mixed" if autocast else "32-true", callbacks=callbacks, logger=False,
        enable_checkpointing=False, use_distributed_sampler=False, enable_model_summary=False,
        plugins=[WholeCheckpoints()], strategy="ddp" if config.trainer.devices * config.trainer.nodes > 1 else "auto",
    )  # fmt: skip
    trainer.test(module, questions, verbose=False)
    return _write(run, config, module.summary, overrides, [p.to_json() for p in module.predictions], trainer)


def _write(
    run: RunFolder, config: Config, summary: dict, overrides: list[str], predictions: list[dict], trainer: L.Trainer
) -> Path:
    number = 1 + max((int(p.name) for p in (run.path / "evaluations").glob("*") if p.name.isdigit()), default=0)
    folder = run.path / "evaluations" / str(number)
    target = folder / "summary.json"
    if trainer.is_global_zero:
        folder.mkdir(parents=True)
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in predictions]
        (folder / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")
        trained = json.loads(run.summary.read_text(encoding="utf-8")) if run.summary.is_file() else {}
        result = {"experiment": config.experiment, "overrides": overrides, "test": summary,
                  "before_training": trained.get("before_training", {})}  # fmt: skip
        write_json(target, result)
        console.print(results_table(result))
        say(f"results in {target}")
    return target
