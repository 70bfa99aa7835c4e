"""What a training step asks of the host, next to transformers' RagRetriever: search, and contexts for the generator.

    python -m benchmarks.training.host [--out FILE] [--quick]

Both sides get the same questions (token ids and embeddings), the same real passages with the same vectors, and find the
same rows; both tokenizers are MiniLM's. `openbook` searches its snapshot and assembles contexts from memory-mapped ids,
padded to the batch. `RagRetriever` searches, looks titles and texts up, decodes the questions, joins strings and
tokenises them, padded to 300. The vectors are synthetic: no time depends on what they mean.

RagRetriever gets an index over lists in memory, which costs less than the Dataset of its documentation and does without
the library `datasets`. FAISS runs for it as it comes, by inner product. Runs alternate; each round has another batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import faiss
import numpy as np
import torch
from torch import Tensor
from transformers import BartConfig, BertConfig, RagConfig, RagRetriever
from transformers.models.rag import retrieval_rag

from benchmarks.common import synthetic
from benchmarks.common.figures import Value, finish, median, options
from benchmarks.common.system import now, prepare_machine
from benchmarks.index.search import blas_from
from openbook.config.load import load_experiment
from openbook.data.collate import token_ids
from openbook.data.encoder_inputs import encoder_format, question_inputs
from openbook.data.inputs import special_ids
from openbook.data.question_file import QuestionFile
from openbook.index.shard_index import ShardIndex, shipped_blas_threshold
from openbook.index.snapshot import Snapshot
from openbook.models.contexts import ContextBuilder
from openbook.setup.inputs import data as setup_data

DIM, N_DOCS, LONGEST = 384, 5, 300
QUESTION_NOISE = 0.5


class InMemory(retrieval_rag.Index):
    """Titles and texts in lists and a flat index of FAISS's: what an Index of transformers has to do, and no more."""

    def __init__(self, titles: list[str], texts: list[str], vectors: np.ndarray):
        self.titles, self.texts, self.vectors = titles, texts, vectors
        self.index = faiss.IndexFlatIP(DIM)
        self.index.add(vectors)

    def init_index(self) -> None:
        pass

    def is_initialized(self) -> bool:
        return True

    def get_top_docs(self, question_hidden_states: np.ndarray, n_docs: int = 5) -> tuple[np.ndarray, np.ndarray]:
        rows = self.index.search(question_hidden_states, n_docs)[1]
        return rows, self.vectors[rows]

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, list[str]]]:
        return [
            {"title": [self.titles[row] for row in rows], "text": [self.texts[row] for row in rows]}
            for rows in doc_ids.tolist()
        ]


@dataclass(frozen=True)
class Asked:
    """One step's questions. ids [n, question_len] with special tokens and padding; embeddings [n, DIM] fp32."""

    ids: Tensor
    questions: list[list[int]]
    embeddings: Tensor


@dataclass(frozen=True)
class Host:
    """Both sides over one corpus."""

    texts: list[str]
    snapshot: Snapshot
    contexts: ContextBuilder
    peer: RagRetriever
    tokenizer: Any
    questions: QuestionFile

    def batch(self, n: int, seed: int) -> Asked:
        random = np.random.default_rng(seed)
        strings = [self.questions[int(number)].question for number in random.integers(len(self.questions), size=n)]
        ids = token_ids(self.tokenizer, strings)
        noise = random.standard_normal((n, DIM)) * QUESTION_NOISE / DIM**0.5
        near = self.snapshot.index.vectors(random.integers(len(self.texts), size=n)) + noise
        return Asked(question_inputs(ids, encoder_format(self.tokenizer), 64)[0], ids, torch.from_numpy(near).float())


def host(quick: bool) -> Host:
    ready = setup_data.parts(load_experiment("tiny" if quick else "rag_token", []))
    tokenizer = ready.generator_tokenizer
    passages = ready.corpus.passages(range(len(ready.corpus)))
    titles, texts = [passage.title for passage in passages], [passage.text for passage in passages]
    vectors = synthetic.embeddings(len(passages), DIM)
    index = ShardIndex(DIM, len(passages))
    index.write(np.arange(len(passages)), vectors)
    config = RagConfig.from_question_encoder_generator_configs(
        BertConfig(hidden_size=DIM),
        BartConfig(),
        n_docs=N_DOCS,
        max_combined_length=LONGEST,
        retrieval_vector_size=DIM,
        retrieval_batch_size=1024,
    )
    with patch.object(retrieval_rag, "requires_backends"):  # this index does without `datasets`
        peer = RagRetriever(config, tokenizer, tokenizer, index=InMemory(titles, texts, vectors))
    contexts = ContextBuilder(ready.corpus.tokens("generator"), special_ids(tokenizer), LONGEST)
    snapshot = Snapshot(index.finish(), 0, "", "", len(passages))
    return Host(texts, snapshot, contexts, peer, tokenizer, QuestionFile(ready.files.train))


def ours(on: Host, asked: Asked) -> Tensor:
    """Context ids [n * N_DOCS, context_len] as the generator gets them."""
    return on.contexts(asked.questions, on.snapshot.search(asked.embeddings, N_DOCS).rows)[0]


def theirs(on: Host, asked: Asked) -> Tensor:
    """As transformers' RagModel calls it."""
    with blas_from(shipped_blas_threshold()):
        return on.peer(asked.ids, asked.embeddings.numpy(), n_docs=N_DOCS, return_tensors="pt")["context_input_ids"]


def check(on: Host, asked: Asked) -> None:
    """Both sides find the same passages and read the same words, or the comparison is none."""
    rows = on.snapshot.search(asked.embeddings, N_DOCS).rows.numpy()
    with blas_from(shipped_blas_threshold()):
        found = on.peer.retrieve(asked.embeddings.numpy(), N_DOCS)[1]
    mine, other = (on.tokenizer.batch_decode(side(on, asked), skip_special_tokens=True) for side in (ours, theirs))
    words, others = ([sorted(text.replace("/", " ").split()) for text in texts] for texts in (mine, other))
    if not np.array_equal(found, rows) or words != others:
        raise SystemExit("the two sides read different contexts")


def ours_without_search(on: Host, asked: Asked, rows: Tensor) -> Tensor:
    return on.contexts(asked.questions, rows)[0]


def theirs_without_search(on: Host, asked: Asked, rows: Tensor) -> Tensor:
    """What RagRetriever does once it has the rows."""
    documents = on.peer.index.get_doc_dicts(rows.numpy())
    strings = on.peer.question_encoder_tokenizer.decode(asked.ids, skip_special_tokens=True)
    return on.peer.postprocess_docs(documents, strings, None, N_DOCS, return_tensors="pt")[0]


def at_batch(on: Host, n: int, rounds: int) -> dict[str, Value]:
    """Seconds of one batch with the search and without it, each the median of the rounds; ratios likewise."""
    check(on, on.batch(n, rounds + 1))
    seconds: dict[str, list[float]] = {
        name: [] for name in ("ours", "theirs", "ours_with_search", "theirs_with_search")
    }
    for turn in range(rounds + 1):
        asked = on.batch(n, turn)
        rows = on.snapshot.search(asked.embeddings, N_DOCS).rows
        ends = [now()]
        ours_without_search(on, asked, rows)
        ends.append(now())
        theirs_without_search(on, asked, rows)
        ends.append(now())
        ours(on, asked)
        ends.append(now())
        theirs(on, asked)
        ends.append(now())
        if turn:
            for kept, started, ended in zip(seconds.values(), ends, ends[1:], strict=False):
                kept.append(ended - started)
    found: dict[str, Value] = {f"host.{n}.{name}.seconds": median(values) for name, values in seconds.items()}
    for key, search in (("speedup", ""), ("speedup_with_search", "_with_search")):
        pairs = zip(seconds[f"theirs{search}"], seconds[f"ours{search}"], strict=True)
        ratios = [peer / own for peer, own in pairs]
        found |= {f"host.{n}.{key}": median(ratios), f"host.{n}.{key}_least": min(ratios)}
    return found


def main() -> None:
    asked = options(__doc__).parse_args()
    prepare_machine()
    on = host(asked.quick)
    figures: dict[str, Value] = {"host.passages": len(on.texts), "host.n_docs": N_DOCS}
    batches = (2, 4) if asked.quick else (4, 16, 32)
    for n in batches:
        figures |= at_batch(on, n, 3 if asked.quick else 15)
    of_a_step = batches[1]  # as many as a step of rag_token has
    for key in ("speedup", "speedup_with_search"):
        figures[f"host.{key}"] = figures[f"host.{of_a_step}.{key}"]
    finish(asked, figures)


if __name__ == "__main__":
    main()
