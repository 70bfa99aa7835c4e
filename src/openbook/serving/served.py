"""One generation of what is served: a trained retriever over one corpus, and the generator where the run has one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

from openbook.batch import Batch, Example
from openbook.data.corpus import Corpus
from openbook.errors import OpenBookError
from openbook.inference.answering import Answering
from openbook.inference.rag_token import Objective
from openbook.metrics.prediction import Prediction
from openbook.training.base_module import QuestionModule
from openbook.training.rag_module import RagModule

Decoding = Literal["thorough", "fast", "greedy"]


class Hit(NamedTuple):
    """A passage that was found. score: its logit of p(z|x); a softmax over a question's passages is their prior."""

    id: str
    title: str
    text: str
    score: float


class HowToAnswer(NamedTuple):
    """What a question may ask for otherwise than the run was tested; what is empty or 0 is as there.

    objective: by which likelihood answers are decoded. n_docs: passages read. beams: see decode.beams. decoding: see
    decode.rag_sequence.
    """

    objective: Literal["", "rag_token", "rag_sequence"] = ""
    n_docs: int = 0
    beams: int = 0
    decoding: Literal["", Decoding] = ""


AS_TESTED = HowToAnswer()


@dataclass(frozen=True)
class Served:
    """A run's model with its snapshot and corpus, in eval mode and on its device. Never changed once it is made: what
    is answered from it is of one generation.

    batch_of: questions to a Batch. n_docs: passages per question where a request names no number. passes: (questions
    encoded, questions answered) in one pass. facts: what it was made from, plain JSON types. generation: how many were
    served before it by this process.
    """

    module: QuestionModule
    batch_of: Callable[[Sequence[Example]], Batch]
    corpus: Corpus
    n_docs: int
    passes: tuple[int, int]
    facts: Mapping[str, Any]
    generation: int = 0

    @torch.inference_mode()
    def retrieve(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """The topk best passages of each question, best first; fewer where the corpus or the index has no more.

        The order is the index's, and the scores its own over the temperature. A run that re-ranks
        (retriever.rerank), unless its index is exact, orders and scores the candidates by fresh embeddings. Raises
        OpenBookError for a run without passages and for a question that is too long.
        """
        retriever = self.module.retriever
        if not retriever.has_passages:
            raise OpenBookError("this run retrieves nothing", got="objective closed_book")
        exact, hits = retriever.index_is_exact(), []
        for batch in self._batches(queries, self.passes[0]):
            asked = retriever.represent(batch)
            if retriever.rerank > 0 and not exact:
                found = retriever.retrieve(asked, topk)
                scores = retriever.score(asked, found)
            else:
                found = retriever.search(asked, topk)
                scores = found.index_scores / retriever.temperature
            hits += [
                [self._hit(row, score) for row, score in zip(rows, own, strict=True) if row >= 0]
                for rows, own in zip(found.rows.tolist(), scores.tolist(), strict=True)
            ]
        return hits

    def answer(
        self, questions: Sequence[str], how: HowToAnswer = AS_TESTED, ids: Sequence[str] = ()
    ) -> list[Prediction]:
        """Answers with the passages that were read, p(z|x) before and p(z|x,y) after each answer; what only gold
        answers could say is left empty. ids: by which drawn answers are drawn (decode.sample), the questions' own texts
        where there are none. Raises OpenBookError for a run without a generator, for a question that is too long, and
        for what the run cannot answer by.
        """
        if not isinstance(self.module, RagModule):
            raise OpenBookError(
                "this run trained no generator",
                got="objective dpr",
                expected="a run that answers",
                action="Its passages are there to retrieve: POST /retrieve of `openbook serve`.",
            )
        module, answering = self.module, self._answering(self.module.answering, how)
        exact, found = module.retriever.index_is_exact(), list[Prediction]()
        for batch in self._batches(questions, self.passes[1], ids):
            found += answering(batch, module.retriever, exact)
        return [_without_gold(one) for one in found]

    def _answering(self, tested: Answering, how: HowToAnswer) -> Answering:
        closed = tested.likelihood == "closed_book"
        if closed and (how.objective or how.n_docs):
            raise OpenBookError(
                "this run reads no passages", got="objective closed_book", action="Leave objective and n_docs out."
            )
        if tested.likelihood == "all_passages" and how.objective:
            raise OpenBookError(
                "this run's generator reads all passages at once and has no marginal over them",
                where="objective",
                got=how.objective,
                expected="none",
            )
        likelihood: Objective = how.objective or tested.likelihood  # type: ignore[assignment]
        if how.decoding and likelihood != "rag_sequence":
            raise OpenBookError(
                "a way of decoding that this objective does not have",
                where="decoding",
                got=f"{how.decoding} with {likelihood}",
                expected="none, or the objective rag_sequence",
            )
        beams = how.beams or tested.decode.beams
        decode = replace(
            tested.decode,
            beams=beams,
            n_best=min(tested.decode.n_best, beams),
            rag_sequence=how.decoding or tested.decode.rag_sequence,
        )
        n_docs = how.n_docs or tested.n_docs
        return replace(tested, utility=False, likelihood=likelihood, n_docs=n_docs, decode=decode)

    def _batches(self, questions: Sequence[str], size: int, ids: Sequence[str] = ()) -> Iterator[Batch]:
        device = next(self.module.parameters(), torch.empty(0)).device
        # An answer that is not known: what labels are made of, and no score.
        examples = [Example(name, text, ("",)) for name, text in zip(ids or questions, questions, strict=True)]
        for start in range(0, len(examples), size):
            yield self.batch_of(examples[start : start + size]).to(device)

    def _hit(self, row: int, score: float) -> Hit:
        passage = self.corpus.passage(row)
        return Hit(passage.id, passage.title, passage.text, score)


def _without_gold(one: Prediction) -> Prediction:
    read = tuple(passage._replace(relevant=False) for passage in one.passages)
    return replace(one, answers=(), passages=read, exact_match=None, f1=None, hits=(), answer_hits=())
