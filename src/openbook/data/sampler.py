"""The stream of examples: which example is read when, a pure function of (seed, examples consumed by all ranks).

An epoch is a keyed permutation of the examples, cut into global batches; a global batch is dealt out to the ranks one
example at a time. So each example comes exactly once per epoch whatever the number of ranks and workers, and a run
that stops is continued from one number: how many examples were consumed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from openbook.batch import Example
from openbook.data.readers.checked_lines import id_hash

_ROUNDS = 6
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What one rank reads for one batch.

    indices: the examples; None where this rank has none left at the end of an epoch and only keeps in step.
    filler: the example to read in place of None, at weight 0; the same on every rank.
    epoch: from 0. cursor: examples consumed by all ranks, of all epochs, once this batch is trained on.
    """

    indices: tuple[int | None, ...]
    filler: int
    epoch: int
    cursor: int


class GlobalBatchSampler:
    """The plans of one rank for the rest of the epoch that `consumed` lies in; at an epoch's end, for the next one.

    `consumed` counts examples of the whole stream and may be set between two iterations. The last global batch of an
    epoch may be short; its examples are dealt out evenly and every rank gets the same number of entries. The same
    global batch size (batch_size_per_rank * world_size, unless given) gives the same global batches on any number
    of ranks.
    """

    def __init__(
        self,
        n_examples: int,
        batch_size_per_rank: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        global_batch_size: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        consumed: int = 0,
    ):
        if n_examples < 1 or batch_size_per_rank < 1 or not 0 <= rank < world_size or consumed < 0:
            raise ValueError(f"{n_examples=}, {batch_size_per_rank=}, {rank=}, {world_size=}, {consumed=}")
        self.n_examples = n_examples
        self.global_batch_size = global_batch_size or batch_size_per_rank * world_size
        self.rank, self.world_size = rank, world_size
        self.seed, self.shuffle, self.consumed = seed, shuffle, consumed

    def __len__(self) -> int:
        """Batches of a full epoch, also when an iteration starts in the middle of one."""
        return math.ceil(self.n_examples / self.global_batch_size)

    def __iter__(self) -> Iterator[BatchPlan]:
        epoch, position = divmod(self.consumed, self.n_examples)
        key = stream_key(self.seed, epoch)
        while position < self.n_examples:
            stop = min(position + self.global_batch_size, self.n_examples)
            n_per_rank = -(-(stop - position) // self.world_size)
            mine: list[int | None] = [
                self._example(place, key) if place < stop else None
                for place in range(position + self.rank, position + n_per_rank * self.world_size, self.world_size)
            ]
            yield BatchPlan(tuple(mine), self._example(position, key), epoch, epoch * self.n_examples + stop)
            position = stop

    def _example(self, place: int, key: int) -> int:
        return permuted(place, self.n_examples, key) if self.shuffle else place


def permuted(index: int, n: int, key: int) -> int:
    """Where a keyed pseudo-random permutation of 0 .. n - 1 sends `index`; no table, no state.

    A Feistel network (Luby and Rackoff 1988) permutes the next power of four; a result outside 0 .. n - 1 is sent
    through again until it falls inside (cycle walking, Black and Rogaway 2002), four times at most on average.
    """
    if not 0 <= index < n:
        raise IndexError(f"index {index} is not in 0 .. {n - 1}")
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for round_number in range(_ROUNDS):
            left, right = right, left ^ (_mixed(key + (round_number << 56) + right) & mask)
        index = left << half_bits | right
        if index < n:
            return index


def stream_key(seed: int, epoch: int, name: str = "") -> int:
    """A 64-bit key for one epoch (of one example, where named), the same on every machine."""
    return id_hash(f"{seed} {epoch} {name}")


def sampled_answer(example: Example, epoch: int, seed: int) -> str:
    """The answer to train on at this visit, each of the example's as likely as the others; without any, ""."""
    if not example.answers:
        return ""
    return example.answers[stream_key(seed, epoch, example.id) % len(example.answers)]


def sampled_paraphrases(example: Example, epoch: int, seed: int, most: int) -> list[str]:
    """At most so many of the example's paraphrases, others at another visit."""
    first = stream_key(seed, epoch, example.id) % max(len(example.paraphrases), 1)
    return [*example.paraphrases[first:], *example.paraphrases[:first]][:most]


def _mixed(value: int) -> int:
    """Spread the bits of a 64-bit number (the finalizer of splitmix64, Steele, Lea and Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK64
    return value ^ value >> 31
