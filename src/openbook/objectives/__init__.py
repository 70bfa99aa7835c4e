"""Training objectives, all of one signature: (token_logprobs, doc_scores, target_mask) -> loss per question [batch]."""

from openbook.objectives.by_name import OBJECTIVES, loss_of
from openbook.objectives.distillation import emdr2, leave_one_out, perplexity_distillation
from openbook.objectives.marginal import closed_book_nll, rag_sequence_nll, rag_token_nll

__all__ = [
    "OBJECTIVES",
    "closed_book_nll",
    "emdr2",
    "leave_one_out",
    "loss_of",
    "perplexity_distillation",
    "rag_sequence_nll",
    "rag_token_nll",
]
