"""Encoding the corpus against the loop that a user would write, side by side on the same passages.

    python -m benchmarks.index.encode [--out FILE] [--quick]

Each round takes the next passes of a refresh of the whole corpus (they come in a seeded random order), and lets four
loops encode exactly their passages, all cut at 256 tokens. Texts are tokenised before the clock starts on either side.

    openbook    passes of one length, no padding, inference mode, weights in what the hardware computes fastest
    naive       transformers as its documentation has it: batches of 32 in the order of the file, padded to 256, fp32,
                no_grad, torch's own settings
    same        the same loop, with the matmul backend that openbook chooses
    to batch    the same loop as `naive`, padded to the longest passage of each batch

After each round a large matmul in openbook's dtype is timed: `encode.fraction_of_peak` is the operations that real
tokens need (linear layers and attention, no padding) per second of `openbook`, over those of the matmul.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel

from benchmarks.common.figures import Value, finish, median, options
from benchmarks.common.system import System, now, system
from openbook.models.encoders import load_tokenizer
from openbook.models.pretrained import model_folder
from openbook.retrieval.corpus_encoder import encode_passes

LONGEST = 256
BATCH = 32
SIDE = 2048  # of the matrices of the large matmul


class Naive:
    """AutoModel, mean over the tokens that are none of the padding, length 1."""

    def __init__(self, folder: str, device: torch.device):
        self.model, self.tokenizer, self.device = (
            AutoModel.from_pretrained(folder).to(device),
            load_tokenizer(folder),
            device,
        )

    def batches(self, titles: list[str], texts: list[str], padding: str) -> list[dict[str, Tensor]]:
        """What the model reads, BATCH passages at a time in their order."""
        settings: Any = {
            "truncation": "only_second",
            "max_length": LONGEST,
            "return_tensors": "pt",
            "return_token_type_ids": False,
        }
        return [
            dict(
                self.tokenizer(titles[start : start + BATCH], texts[start : start + BATCH], padding=padding, **settings)
            )
            for start in range(0, len(titles), BATCH)
        ]

    @torch.no_grad()
    def encode(self, batches: list[dict[str, Tensor]]) -> Tensor:
        """[n, dim]"""
        parts = []
        for batch in batches:
            batch = {name: part.to(self.device) for name, part in batch.items()}
            states = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            parts.append(nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).cpu())
        return torch.cat(parts)


def rounds(on: System, n: int, at_least: int) -> Iterator[list[np.ndarray]]:
    """n lists of a refresh's passes, each of at_least so many passages."""
    corpus = on.manager.corpus
    coder = corpus.coder(on.retriever.passage_encoder)
    passes = coder.passes(range(corpus.n_passages), corpus.tokens_per_pass, corpus.seed)
    for _ in range(n):
        chosen: list[np.ndarray] = []
        while sum(map(len, chosen)) < at_least and passes:
            chosen.append(passes.pop(0))
        yield chosen


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a matmul of two square matrices, the best of a few."""
    left, right = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        started = now()
        left @ right
        seconds.append(now() - started)
    return 2 * SIDE**3 / min(seconds)


def operations(config: Any, lengths: np.ndarray) -> float:
    """Of the encoder's linear layers and attention for passages of so many tokens; nothing else is counted."""
    dim, tokens = config.hidden_size, float(lengths.sum())
    linear = 2 * tokens * (4 * dim * dim + 2 * dim * config.intermediate_size)
    return config.num_hidden_layers * (linear + 4 * float((lengths.astype(float) ** 2).sum()) * dim)


def measure(on: System, n: int, at_least: int) -> dict[str, Value]:
    """Medians over the rounds, of speeds and of their ratios within a round."""
    corpus, chosen_precision = on.manager.corpus, torch.get_float32_matmul_precision()
    coder = corpus.coder(on.retriever.passage_encoder)
    naive = Naive(model_folder(on.config.retriever.passage_encoder), coder.device)
    speeds: dict[str, list[float]] = {"openbook": [], "naive": [], "same": [], "to batch": []}
    cosines, n_tokens, n_passages = [], 0, 0
    model: Any = coder.encoder.model
    peaks, fractions = [], []
    for number, passes in enumerate(rounds(on, n + 1, at_least)):
        rows = np.concatenate(passes)
        in_file = np.sort(rows)
        passages = on.parts.corpus.passages(in_file)
        titles, texts = [passage.title for passage in passages], [passage.text for passage in passages]
        padded, to_batch = (naive.batches(titles, texts, padding) for padding in ("max_length", "longest"))
        contenders: dict[str, tuple[str, Callable[[], Tensor]]] = {
            "openbook": (chosen_precision, lambda: torch.cat([found for _, found in encode_passes(coder, passes)])),  # noqa: B023
            "naive": ("highest", lambda: naive.encode(padded)),  # noqa: B023
            "same": (chosen_precision, lambda: naive.encode(padded)),  # noqa: B023
            "to batch": ("highest", lambda: naive.encode(to_batch)),  # noqa: B023
        }
        found = {}
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            precision, encode = contenders[name]
            torch.set_float32_matmul_precision(precision)
            started = now()
            found[name] = encode()
            speeds[name].append(len(rows) / (now() - started))
        torch.set_float32_matmul_precision(chosen_precision)
        lengths = coder.lengths(rows)
        peaks.append(matmul_peak(corpus.dtype, coder.device))
        fractions.append(operations(model.config, lengths) * speeds["openbook"][-1] / len(rows) / peaks[-1])
        mine = found["openbook"][np.argsort(rows)]
        cosines.append(float(nn.functional.cosine_similarity(mine, found["naive"]).min()))
        n_passages, n_tokens = n_passages + len(rows), n_tokens + int(lengths.sum())
    speeds = {name: values[1:] for name, values in speeds.items()}  # the first round warms all four up

    def times_faster_than(name: str) -> float:
        return median([mine / other for mine, other in zip(speeds["openbook"], speeds[name], strict=True)])

    return {
        "encode.speedup_naive": times_faster_than("naive"),
        "encode.speedup_naive_same_backend": times_faster_than("same"),
        "encode.speedup_padded_to_batch": times_faster_than("to batch"),
        "encode.fraction_of_peak": median(fractions[1:]),
        "encode.fraction_of_peak.least": min(fractions[1:]),
        "encode.peak_gflops": median(peaks[1:]) / 1e9,
        "encode.passages_per_second": median(speeds["openbook"]),
        "encode.naive_passages_per_second": median(speeds["naive"]),
        "encode.cosine_to_fp32_min": min(cosines),
        "encode.tokens_per_passage": n_tokens / n_passages,
        "encode.passages": n_passages,
        "encode.rounds": n,
        "encode.dtype": str(corpus.dtype).removeprefix("torch."),
    }


def main() -> None:
    asked = options(__doc__).parse_args()
    on = system(asked.quick, f"data.max_passage_tokens={LONGEST}", f"data.max_context_tokens={LONGEST + 64}")
    n, at_least = (2, 16) if asked.quick else (6, 160)
    finish(asked, measure(on, n, at_least))


if __name__ == "__main__":
    main()
