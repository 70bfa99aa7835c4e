"""What training and answering ask of a retriever: p(z|x) of Lewis et al. 2020, section 2.2."""

from typing import Any, Protocol, TypeVar, cast

from torch import Tensor, nn

from openbook.batch import Batch, Retrieved
from openbook.config.training import OptimConfig

# A batch's questions as a retriever represents them: embeddings [batch, dim], strings, ...; opaque to its callers.
Queries = TypeVar("Queries")


class Retriever(Protocol[Queries]):
    """Three calls decide what is read and how much it weighs. Subclass this (beside `torch.nn.Module` where there are
    parameters), which gives defaults for the rest, to hand a retriever of one's own to `openbook.train`.

    represent   the batch's questions, once per step: q(x)
    retrieve    which passages are read: the top_k by the index as it stands; no gradient
    score       doc_scores [batch, n_docs] fp32, the logits of p(z|x), -inf where there is no passage; the gradient of
                the loss flows into them

    Parameters of a Module are trained (`parts`), and its state_dict is in the checkpoint.
    """

    temperature: float = 1.0
    """doc_scores = index score / temperature, where the two agree (`index_is_exact`)."""

    rerank: int = -1
    """-1: the order of `retrieve` stands; otherwise passages that are read are put in the order of their doc_scores."""

    has_passages: bool = True
    """False for a retriever that only ever gives the null document."""

    def represent(self, batch: Batch) -> Queries: ...

    def retrieve(self, queries: Queries, top_k: int) -> Retrieved: ...

    def score(self, queries: Queries, retrieved: Retrieved) -> Tensor: ...

    def search(self, queries: Queries, top_k: int) -> Retrieved:
        """`retrieve` without re-ranking."""
        return self.retrieve(queries, top_k)

    def index_is_exact(self) -> bool:
        """Whether index_scores / temperature are what `score` would give, so that evaluation need not compute them."""
        return False

    def index_facts(self) -> dict[str, Any]:
        """generation, n_passages and factory of the index, for summary.json; empty where there is none."""
        return {}

    def parts(self, optim: OptimConfig) -> list[tuple[str, nn.Module, float]]:
        """(name, module, peak learning rate) of what trains."""
        return [("retriever", cast(nn.Module, self), optim.lr)] if hasattr(self, "parameters") else []

    def weights_changed(self) -> None:
        """Called after every optimizer step: whatever was computed from the weights is no longer valid."""
        return
