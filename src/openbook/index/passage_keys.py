"""What identifies a stored embedding: the state of the encoder, and what that encoder reads of a passage."""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import torch

from openbook.data.corpus import PassageTokens
from openbook.data.encoder_inputs import EncoderFormat

# The version of the stored files and of what an encoder reads of a passage; raised when they change.
LAYOUT = 1

_CHUNK = 8192  # passages hashed at once: a few MB


def store_name(encoder_fingerprint: str, max_length: int, style: EncoderFormat, dtype: torch.dtype) -> str:
    """The sha256 of all that decides an embedding beside the passage: equal names, equal embeddings."""
    facts = [LAYOUT, encoder_fingerprint, max_length, asdict(style), str(dtype)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def passage_keys(tokens: PassageTokens, rows: np.ndarray | range) -> np.ndarray:
    """[n, 2] uint64: the first 128 bits of BLAKE2b over title length, title ids and text ids of each of the rows.

    Equal passages have equal keys, whatever their rows and whatever type the ids are stored in. Raises IndexError on a
    row that is not in the corpus.
    """
    rows = np.asarray(rows, dtype=np.int64)
    keys = np.empty((len(rows), 2), dtype=np.uint64)
    for start in range(0, len(rows), _CHUNK):
        chosen = rows[start : start + _CHUNK]
        lengths = tokens.length(chosen)
        ends = np.cumsum(lengths + 1)
        heads = ends - lengths - 1
        # Each passage as its title length and then its ids, one after another in one buffer.
        words = np.empty(ends[-1], dtype="<u4")
        is_id = np.ones(len(words), dtype=bool)
        is_id[heads] = False
        words[heads] = tokens.title_lengths[chosen]
        shifts = tokens.offsets[chosen] - np.cumsum(lengths) + lengths
        words[is_id] = tokens.flat[np.arange(lengths.sum()) + np.repeat(shifts, lengths)]
        raw = memoryview(words.tobytes())
        bounds = zip((4 * heads).tolist(), (4 * ends).tolist(), strict=True)
        digests = b"".join([hashlib.blake2b(raw[first:end], digest_size=16).digest() for first, end in bounds])
        keys[start : start + _CHUNK] = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
    return keys


def rows_of(held: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """[n] for each of the asked keys its row among the held ones, -1 where there is none. Two different keys that share
    their first half hide one another, about once in 2^64 pairs: that passage is encoded again."""
    order, wanted = np.argsort(held[:, 0]), np.argsort(asked[:, 0])
    place = np.empty(len(asked), dtype=np.int64)
    place[wanted] = np.searchsorted(held[order, 0], asked[wanted, 0])  # both in order: eight times as fast
    rows = order[np.minimum(place, len(order) - 1)]
    return np.where((held[rows] == asked).all(axis=1), rows, -1)
