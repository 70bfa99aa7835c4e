"""What `train`, `evaluate` and `plan` begin with: checks and data first, then models."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import lightning as L
import torch

from openbook.callbacks import IndexRefresh
from openbook.config.schema import Config
from openbook.data.datamodule import QuestionAnswerData
from openbook.data.readers.checked_lines import file_fingerprint
from openbook.index.faiss_factory import use_threads
from openbook.index.plan import Plan
from openbook.setup import data as setup_data
from openbook.setup import index as setup_index
from openbook.setup import models as setup_models
from openbook.setup import plan as planning
from openbook.setup.preflight import check, check_corpus
from openbook.training.dpr_module import DprModule
from openbook.training.rag_module import RagModule
from openbook.utils.hardware import accelerator, autocast_dtype, set_threads


@dataclass(frozen=True)
class Prepared:
    """Data that has passed its checks, and what the models will run on; no model is loaded yet."""

    config: Config
    parts: setup_data.Parts
    questions: QuestionAnswerData
    on: Literal["cpu", "gpu"]
    autocast: torch.dtype | None

    def fingerprints(self) -> dict[str, str]:
        """sha256 of the corpus and of the test questions, where there are any: what summary.json says of its data."""
        test = self.parts.files.test
        return {"corpus": self.parts.corpus.fingerprint} | ({"test": file_fingerprint(test)} if test else {})

    def module(self) -> RagModule | DprModule:
        """With the warmed-up reader where the experiment wants one."""
        if self.config.objective == "dpr":
            return setup_models.dpr_module(
                self.config, self.parts, setup_models.training_passages(self.config, self.parts, self.questions)
            )
        return setup_models.module(self.config, self.parts, setup_models.reader(self.config, self.on, self.autocast))

    def refresh(self, probes: bool = True) -> IndexRefresh:
        """The callback that owns the index; without probes one index is not compared with the next."""
        return setup_index.index_refresh(self.config, self.parts, self.questions if probes else None, self.autocast)

    def plan(self, module: RagModule | DprModule, refresh: IndexRefresh) -> Plan:
        """Timed, said and checked; for rank 0. The module goes to the device that it will train on."""
        if self.on == "gpu":
            module.to(torch.device("cuda", torch.cuda.current_device()))
        plan = planning.plan_of(self.config, refresh.manager, module)
        plan = planning.timed(plan, self.config, refresh.manager, module, next(iter(self.questions.train_dataloader())))
        planning.announce(plan, self.config)
        return plan


def prepare(config: Config, stage: str | None = None) -> Prepared:
    """Everything that can be found wrong is found here. stage "test" looks at the test questions only."""
    check(config)
    on = accelerator(config.trainer.accelerator)
    if on == "gpu":  # the plan looks at this rank's GPU before Lightning has chosen it
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))))
    use_threads(set_threads(config.trainer.devices))
    L.seed_everything(config.seed, verbose=False)
    parts = setup_data.parts(config)
    check_corpus(config, parts.corpus)
    planning.check_early(config, parts.corpus)
    questions = setup_data.data(config, parts)
    questions.setup(stage)
    return Prepared(config, parts, questions, on, autocast_dtype(config.trainer.precision, on))
