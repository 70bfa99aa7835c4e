"""A process of its own that tokenises pieces: their numbers come on its standard input, and go back when they are done.

    python -m openbook.data.store.worker BUILDING TEXTS

BUILDING holds plan.json and tokenizer.json (tokens.py). When the parent is gone, the input ends and so does the worker.
Neither torch nor transformers is imported: a worker starts in a tenth of a second and keeps some 50 MB.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from openbook.data.store.pieces import Ids, Texts, Writing, write_piece


def fast_ids(backend: Tokenizer) -> Ids:
    """What transformers' tokenizers give without special tokens, cut and padded nowhere."""
    return lambda texts: [one.ids for one in backend.encode_batch_fast(texts, add_special_tokens=False)]


def main() -> None:
    building, texts = Path(sys.argv[1]), Texts(Path(sys.argv[2]))
    plan = json.loads((building / "plan.json").read_text(encoding="utf-8"))
    backend = Tokenizer.from_file(str(building / "tokenizer.json"))
    backend.encode_special_tokens = plan["split_special_tokens"]
    ids, writing, dtype = fast_ids(backend), Writing(*plan["writing"]), np.dtype(plan["dtype"])
    for line in sys.stdin:
        for done in write_piece(building, int(line), texts, writing, ids, dtype):
            print(done, flush=True)
        print("piece", flush=True)


if __name__ == "__main__":
    main()
