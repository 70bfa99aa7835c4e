"""From a configuration to the callback that owns the index."""

from pathlib import Path

import torch

from openbook.callbacks import IndexRefresh
from openbook.config.refresh_schedule import RefreshSchedule
from openbook.config.schema import Config
from openbook.data.datamodule import QuestionAnswerData
from openbook.index.faiss_factory import search_device
from openbook.index.shard_index import IndexOptions
from openbook.index.vector_store import VectorStore
from openbook.refresh.manager import RefreshManager, RefreshOptions
from openbook.retrieval.corpus_encoder import CorpusOptions
from openbook.setup.data import Parts
from openbook.setup.encoders import encoder_dim
from openbook.setup.models import tokens_per_pass


def index_refresh(
    config: Config, parts: Parts, questions: QuestionAnswerData | None, autocast: torch.dtype | None
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
        tokens_per_pass(config),
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
