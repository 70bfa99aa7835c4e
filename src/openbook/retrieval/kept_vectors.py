"""The vectors of a searched index, kept on disk: whoever meets the same weights again encodes only other passages."""

import numpy as np

from openbook.index.passage_keys import passage_keys, store_name
from openbook.index.snapshot import Snapshot
from openbook.index.vector_store import VectorStore
from openbook.retrieval.corpus_encoder import CorpusOptions


def stored_as(encoder_fingerprint: str, corpus: CorpusOptions) -> str:
    """The name under which a store has the vectors of an encoder's state."""
    return store_name(encoder_fingerprint, corpus.max_length, corpus.style, corpus.dtype)


def keep_vectors(snapshot: Snapshot, corpus: CorpusOptions, store: VectorStore, keys: np.ndarray | None = None) -> None:
    """Write the vectors of this rank's part of a snapshot to a store. Families that do not hold the vectors themselves,
    and a snapshot whose passages are of different ages, have none to keep. keys: of the rank's passages (see
    `passage_keys`), where they are known."""
    if not snapshot.encoder_fingerprint or not snapshot.index.options.exact:
        return
    rows = corpus.my_rows()
    part = f"{rows.start}-{rows.stop}-of-{corpus.fingerprint[:12]}"
    vectors = snapshot.index.stored().view(np.float32)  # Flat stores the vectors themselves: no copy
    keys = passage_keys(corpus.tokens, rows) if keys is None else keys
    store.save(stored_as(snapshot.encoder_fingerprint, corpus), part, keys, vectors)
