"""No retrieval: the generator reads the question alone (closed book; Lewis et al. 2020, section 4.1)."""

import torch
from torch import Tensor

from openbook.batch import Batch, Retrieved
from openbook.models.contexts import null_documents
from openbook.retrieval.base import Retriever


class ClosedBookRetriever(Retriever[Batch]):
    """Every question gets one null document, of probability 1, whatever top_k asks for."""

    has_passages = False

    def represent(self, batch: Batch) -> Batch:
        return batch

    def retrieve(self, queries: Batch, top_k: int) -> Retrieved:
        return Retrieved(null_documents(queries), torch.zeros_like(queries.weight)[:, None])

    def score(self, queries: Batch, retrieved: Retrieved) -> Tensor:
        """Zeros [batch, 1] fp32: log p(z|x) is 0."""
        return retrieved.index_scores

    def index_is_exact(self) -> bool:
        return True
