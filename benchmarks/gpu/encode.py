"""Encoding a corpus on a GPU, and a refresh beside training.

    python -m benchmarks.gpu.encode [--out FILE] [--quick]

`encode`: a BERT-base-shaped encoder over passages of 100 to 160 tokens, in passes of one length as a refresh has them,
written to a Flat index on the device. `fraction_of_peak`: operations of the tokens, over seconds and the matmul peak.

`amortized`: blocks of steps of `rag_token` with an amortized and with a blocking refresh (benchmarks.index.amortized):
the longest step with all that is done in it over the median of training alone, and a block's seconds over the other's.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import BertConfig, BertModel

from benchmarks.common.figures import Value, median
from benchmarks.common.peer import SPECIAL
from benchmarks.gpu.common import PER_SCORE, device, dtype, in_turns, main, peak
from benchmarks.index import amortized
from benchmarks.training.cost import Stack
from openbook.data.corpus import PassageTokens
from openbook.data.encoder_inputs import separated
from openbook.index.shard_index import IndexOptions, ShardIndex
from openbook.models.attention import implementation
from openbook.models.encoders import TextEncoder
from openbook.retrieval.corpus_encoder import CorpusOptions, encode_passes


def encoding(quick: bool) -> dict[str, Value]:
    shape, n = (Stack(1, 32, 4), 64) if quick else (Stack(12, 768, 12), 60_000)
    draw = np.random.default_rng(0)
    lengths = draw.integers(100, 161, n)
    flat = draw.integers(1000, 30000, int(lengths.sum())).astype(np.uint16)
    tokens = PassageTokens(flat, np.concatenate([[0], np.cumsum(lengths)]), np.full(n, 4, dtype=np.int32))
    model = BertModel(
        BertConfig(
            hidden_size=shape.dim,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.inner,
        )
    )
    model.set_attn_implementation(implementation())
    encoder = TextEncoder(model, "cls", normalize=False).to(device())
    corpus = CorpusOptions(
        tokens, separated(SPECIAL), 256, "synthetic", 65536 if torch.cuda.is_available() else 4096, dtype()
    )
    index = ShardIndex(shape.dim, n, IndexOptions("Flat", "gpu" if torch.cuda.is_available() else "cpu"))
    coder = corpus.coder(encoder, index.device)
    passes = coder.passes(corpus.my_rows(), corpus.tokens_per_pass)

    def run() -> None:
        for rows, embeddings in encode_passes(coder, passes):
            index.write(rows, embeddings)

    seconds = median(in_turns({"encode": run}, 2 if quick else 3)["encode"])
    work = sum(shape.encode(1, int(length)) for length in coder.lengths(corpus.my_rows()))
    return {
        "gpu.encode.passages_per_second": n / seconds,
        "gpu.encode.fraction_of_peak": float(work[0] + PER_SCORE * work[1]) / seconds / peak(quick),
    }


def beside_training(quick: bool) -> dict[str, Value]:
    every, spread = (6, 3) if quick else (20, 10)
    found = amortized.blocks(every, spread, quick)
    steps = [step for block in found for step in block]
    plain = median([step.training for step in steps if not step.slice])
    longest = max(step.training + step.manager for step in steps if step.mode == "amortized")
    total = amortized.figures(found)["refresh.amortized.total_ratio"]
    return {"gpu.amortized.worst_step_ratio": longest / plain, "gpu.amortized.total_ratio": total}


def figures(quick: bool) -> dict[str, Value]:
    return encoding(quick) | beside_training(quick)


if __name__ == "__main__":
    main(__doc__, figures)
