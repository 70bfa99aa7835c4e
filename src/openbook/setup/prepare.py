"""What `train`, `evaluate` and `plan` begin with: checks and data first, then models."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch

from openbook.callbacks import IndexRefresh
from openbook.config.checks import has_index
from openbook.config.refresh_schedule import RefreshSchedule
from openbook.config.rules.notes import notes_of
from openbook.config.schema import Config
from openbook.data.corpus import Corpus
from openbook.data.datamodule import QuestionAnswerData
from openbook.data.readers.checked_lines import file_fingerprint
from openbook.errors import OpenBookError
from openbook.index.faiss_factory import search_device, use_threads
from openbook.index.shard_index import IndexOptions
from openbook.index.vector_store import VectorStore
from openbook.objectives.marginal import Loss
from openbook.refresh.manager import RefreshManager, RefreshOptions
from openbook.retrieval.base import Retriever
from openbook.retrieval.bm25 import BM25Retriever
from openbook.retrieval.corpus_encoder import CorpusOptions
from openbook.setup import models as setup_models
from openbook.setup.encoders import encoder_dim, follow_folders
from openbook.setup.inputs import data as setup_data
from openbook.setup.inputs.joins import Count, check_bm25, check_joins
from openbook.setup.preflight import check, check_corpus
from openbook.setup.resources import plan as planning
from openbook.setup.resources.model_memory import Kept, memory_of
from openbook.setup.settle import settle
from openbook.setup.warmup import warmed_up, without_missing_spans
from openbook.training.dpr_module import DprModule
from openbook.training.rag_module import RagModule
from openbook.utils.console import say
from openbook.utils.disk import check_writable
from openbook.utils.hardware import accelerator, autocast_dtype, set_threads

RANKED = 100  # passages per question of a test of retrieval alone
NEEDED = ("objective", "retriever")  # The caller's own parts that a run cannot be resumed without.


@dataclass(frozen=True)
class OwnParts:
    """What the caller of `openbook.train` brings instead of a configuration's parts.

    objective: (token_logprobs [batch, n_docs, target_len], doc_scores [batch, n_docs], target_mask [batch, target_len])
    -> loss per question [batch]. retriever: a Retriever, or a function of the Corpus that makes one. callbacks:
    Lightning's; they run before the checkpoint is written.
    """

    objective: Loss | None = None
    retriever: Retriever[Any] | Callable[[Corpus], Retriever[Any]] | None = None
    callbacks: Sequence[L.Callback] = ()

    @property
    def names(self) -> list[str]:
        """Which of those are given."""
        return [name for name in NEEDED if getattr(self, name) is not None]

    def check(self, config: Config, summary: Mapping[str, Any] | None = None, needed: Sequence[str] = NEEDED) -> None:
        """Raise OpenBookError where the parts do not go with the configuration, or where the needed ones are not those
        that the run of this summary was started with."""
        if self.names and config.objective in ("dpr", "closed_book"):
            raise OpenBookError(
                f"{' and '.join(self.names)} of your own cannot be used here",
                where="objective",
                got=config.objective,
                expected="rag_token or rag_sequence, by which answers are decoded",
            )
        if self.objective is not None and config.generator.reads == "all":
            raise OpenBookError(
                "an objective of your own is one of log-probabilities by passage, and there are none",
                where="generator.reads",
                got="all",
                expected="one",
            )
        recorded = self.names if summary is None else summary.get("own_parts", [])
        if any((name in recorded) != (name in self.names) for name in needed):
            raise OpenBookError(
                "the run was trained with other parts of the caller's own",
                got=", ".join(self.names) or "none",
                expected=", ".join(recorded) or "none",
                action="From Python, pass them again: resume(run, retriever=...), evaluate(run, retriever=...).",
            )

    def retriever_over(self, corpus: Corpus) -> Retriever[Any] | None:
        """The retriever itself, or what the function (or class) makes of the corpus; None where none was given."""
        given: Any = self.retriever
        is_one = not isinstance(given, type) and hasattr(given, "retrieve")
        made = given if given is None or is_one else given(corpus)
        if made is not None and not hasattr(made, "index_is_exact"):
            got, expected = type(made).__name__, "a subclass of openbook.Retriever"
            raise OpenBookError("not a retriever", where="retriever", got=got, expected=expected)
        return made


NOTHING_OWN = OwnParts()


@dataclass(frozen=True)
class Prepared:
    """Data that has passed its checks, and what the models will run on; no model is loaded yet."""

    config: Config
    parts: setup_data.Parts
    questions: QuestionAnswerData
    on: Literal["cpu", "gpu"]
    autocast: torch.dtype | None
    own: OwnParts = NOTHING_OWN
    counts: Sequence[Count] = ()

    @property
    def is_dense(self) -> bool:
        """Whether the retriever is the configuration's two encoders with an index that needs refreshing."""
        return has_index(self.config) and self.own.retriever is None

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """{split: sha256} of the corpus and of the files of questions that there are: what summary.json says of its
        data, and what a resumed run must find again."""
        files = self.parts.files
        questions = {"train": files.train, "validation": files.validation, "test": files.test}
        found = {split: file_fingerprint(path, self.config.data.cache) for split, path in questions.items() if path}
        return {"corpus": self.parts.corpus.fingerprint} | found

    def module(self, training: bool = True, planning: bool = False) -> RagModule | DprModule:
        """With what training starts from (but for the warm-up), or to be loaded into, or for planning, with stand-ins
        that cost as much in a step and nothing to make."""
        module = self._module(training, planning)
        module.test_depth = self.test_depth
        return module

    @cached_property
    def test_depth(self) -> int:
        """Passages that the test ranks per question; where the key leaves it open, 100 if no question has an answer."""
        test = self.questions.questions.get("test")
        if test is None or self.config.objective == "closed_book":
            return 0
        return self.config.evaluate.depth or (0 if any(example.answers for example in test) else RANKED)

    def _module(self, training: bool, planning: bool) -> RagModule | DprModule:
        config, parts = self.config, self.parts
        if config.objective == "dpr":
            questions = None if planning else self.questions
            passages = setup_models.training_passages(config, parts, questions, config.dpr) if training else None
            return setup_models.dpr_module(config, parts, passages)
        own = self.own.retriever_over(parts.corpus)
        teacher = None
        if training and own is None:
            teacher = setup_models.passage_teacher(config, parts, None if planning else self.questions)
        module = setup_models.rag_module(config, parts, own, self.own.objective, teacher)
        if training and not planning and isinstance(module.retriever, BM25Retriever):
            check_bm25(module.retriever.index, self.questions.questions)
        return module

    def warm_up(self, module: RagModule | DprModule) -> float:
        """Seconds in which the small reader was warmed up, or found to be, and its weights taken over; 0 where the
        configuration has no warm-up."""
        if not (isinstance(module, RagModule) and self.config.warmup.steps):
            return 0.0
        started = time.perf_counter()
        reader: Any = module.generator
        reader.load_state_dict(warmed_up(self.config, self.on, self.autocast).state_dict())
        return time.perf_counter() - started

    def refresh(self, probes: bool = True) -> IndexRefresh:
        """The callback that owns the index; without probes one index is not compared with the next."""
        return index_refresh(self.config, self.parts, self.questions if probes else None, self.autocast)

    def plan(self, module: RagModule | DprModule, refresh: IndexRefresh, run: Path | None = None) -> dict[str, Any]:
        """Timed, printed and checked, the run folder's disk too; for rank 0. The module goes to the device that it will
        train on, but for a generator of which every rank will hold a part."""
        config, manager, kept = self.config, refresh.manager, Kept()
        if self.on == "gpu":
            parted = config.generator.sharded and config.trainer.world_size > 1
            moved: Any = module.retriever if parted else module
            moved.to(torch.device("cuda", torch.cuda.current_device()))
        plan = planning.plan_of(config, manager, module)
        planning.announce_sizes(plan, config, run)
        plan = planning.timed(plan, config, manager, module, next(iter(self.questions.train_dataloader())), kept)
        memory = memory_of(config, module, kept.n_bytes, plan.gpu_at_swap)
        planning.announce(plan, config, memory, self.autocast or torch.float32)
        return planning.as_json(plan, memory)


def prepare(config: Config, stage: str | None = None, own: OwnParts = NOTHING_OWN) -> Prepared:
    """Everything that can be found wrong is found here, and what the configuration leaves to the data is settled. stage
    "test" reads the test questions only."""
    check(config)
    check_writable(config.data.cache, "data.cache")
    config = follow_folders(config, tell=True)
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
    if stage is None and own.retriever is not None:  # only openbook's own two encoders can be taught directly
        config = replace(config, retriever=replace(config.retriever, teacher="generator"))
    prompt = 0 if parts.prompt is None else parts.prompt.n_in_context
    config = settle(config, parts.corpus, len(questions.questions["train"]) if stage is None else 0, prompt)
    config = without_missing_spans(config) if stage is None else config
    if parts.prompt is not None:
        least = 0 if config.objective == "closed_book" else 8
        limits = (config.data.max_question_tokens, config.data.max_context_tokens)
        parts.prompt.check_room(*limits, least, "data.max_context_tokens")
    counts = check_joins(config, parts, questions.questions, training=stage is None)
    for note in notes_of(config) if stage is None else ():
        say(f"warning: {note}")
    return Prepared(config, parts, questions, on, autocast_dtype(config.trainer.precision, on), own, counts)


def index_refresh(
    config: Config, parts: setup_data.Parts, questions: QuestionAnswerData | None, autocast: torch.dtype | None
) -> IndexRefresh:
    """The callback that owns the index; without questions it cannot compare one index with the next."""
    index, refresh = config.index, config.refresh
    device = search_device(index.device, index.factory, encoder_dim(config))
    family = IndexOptions(index.factory, device, index.nprobe, index.ef_search, index.gpu_temp_memory, config.seed)
    corpus = CorpusOptions(
        parts.corpus.tokens("encoder"),
        parts.passage_format,
        config.data.max_passage_tokens,
        parts.corpus.fingerprint,
        setup_models.tokens_per_pass(config),
        autocast or torch.float32,
        config.seed,
    )
    schedule = RefreshSchedule.read(refresh.every, refresh.min_overlap, refresh.floor, refresh.ceiling)
    options = RefreshOptions(
        schedule, refresh.mode, refresh.spread, refresh.share, refresh.overlap_k, refresh.look_every
    )
    probes = questions.probe_questions(refresh.probes) if questions else None
    store = VectorStore(Path(config.data.cache) / "vectors", index.keep_vectors) if index.keep_vectors else None
    manager = RefreshManager(options=options, index=family, corpus=corpus, probes=probes, store=store)
    return IndexRefresh(manager, refresh.fresh_test)
