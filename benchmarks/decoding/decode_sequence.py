"""Thorough RAG-Sequence decoding next to transformers' RagSequenceForGeneration.generate: time and memory.

    python -m benchmarks.decoding.decode_sequence [--out FILE] [--quick]

Set up as in benchmarks.decoding.decode: the same weights, contexts and document scores on both sides, transformers with
its default of scoring every distinct candidate once. It encodes every passage again for every candidate; and it adds
log p(z|x) at the second token, which is the paper's sum here, where all answers are longer.
"""

from __future__ import annotations

from benchmarks.common.figures import Value, finish
from benchmarks.common.system import prepare_machine
from benchmarks.decoding.decode import (
    BEAMS,
    Case,
    Pair,
    Sides,
    asked_for,
    beside,
    generated,
    pair,
    print_memory,
    searched,
)
from openbook.inference.rag_sequence import rag_sequence_thorough


def ours(on: Pair, case: Case) -> list[list[int]]:
    return searched(rag_sequence_thorough, on, case)


def theirs(on: Pair, case: Case) -> list[list[int]]:
    return generated(on.sequence_peer, on, case, num_return_sequences=1, min_length=case.target_len + 1)


SIDES: Sides = {"ours": ours, "theirs": theirs}


def candidates(on: Pair, case: Case) -> float:
    """How many distinct answers the beams of a question's passages found, the mean over the questions."""
    found = rag_sequence_thorough(
        on.generator,
        on.context_ids,
        on.context_mask,
        on.doc_scores.log_softmax(1),
        BEAMS,
        case.target_len,
        case.target_len,
        n_best=BEAMS * on.doc_scores.shape[1],
    )
    return sum(map(len, found)) / len(found)


def main() -> None:
    parser = asked_for(__doc__)
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 4], help="questions decoded together")
    asked = parser.parse_args()
    prepare_machine()
    if asked.case:
        return print_memory(asked.case, SIDES)
    small = {"context_len": 11, "target_len": 4, "small": True} if asked.quick else {"target_len": 16}
    found: dict[str, Value] = {}
    for case in (Case(questions, **small) for questions in asked.questions):
        on, key = pair(case), "decode.rag_sequence_thorough" + ("" if case.questions == 1 else f"_{case.questions}")
        found |= beside(on, case, SIDES, asked.repeats, "benchmarks.decoding.decode_sequence", key)
        found[f"{key}.candidates"] = candidates(on, case)
    finish(asked, found)


if __name__ == "__main__":
    main()
