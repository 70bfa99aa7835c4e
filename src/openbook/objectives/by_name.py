"""Objectives by the name that a configuration gives them."""

from functools import partial

from openbook.objectives.distillation import (
    emdr2,
    leave_one_out,
    perplexity_distillation,
)
from openbook.objectives.marginal import (
    Loss,
    Reading,
    closed_book_nll,
    rag_sequence_nll,
    rag_token_nll,
)

# The likelihood that an objective's run reports, and by which it weighs passages and decodes, where the generator reads
# one passage at a time.
LIKELIHOOD_OF: dict[str, Reading] = {
    "rag_token": "rag_token",
    "rag_sequence": "rag_sequence",
    "closed_book": "closed_book",
    "emdr2": "rag_token",
    "perplexity_distillation": "rag_token",
    "leave_one_out": "rag_token",
}


def likelihood_of(objective: str, reads: str) -> Reading:
    """The same, whether the generator reads one passage at a time or all of them (generator.reads)."""
    return "all_passages" if reads == "all" else LIKELIHOOD_OF[objective]


OBJECTIVES: dict[str, Loss] = {
    "rag_token": rag_token_nll,
    "rag_sequence": rag_sequence_nll,
    "closed_book": closed_book_nll,
    "emdr2": emdr2,
    "perplexity_distillation": perplexity_distillation,
    "leave_one_out": leave_one_out,
}


def loss_of(objective: str, distill_temperature: float = 1.0) -> Loss:
    """The loss of an objective, at this temperature where it distils."""
    if objective in ("perplexity_distillation", "leave_one_out"):
        return partial(OBJECTIVES[objective], temperature=distill_temperature)  # type: ignore[call-arg]
    return OBJECTIVES[objective]
