"""Several passages in one prompt, for a decoder-only model that reads all of them at once.

    prompt    words  passage 1  (empty line)  passage 2 ...  words question words

A passage is the template's part from the first of title and passage to the last, with the words between them.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from openbook.batch import MISSING_ROW
from openbook.data.corpus import PassageTokens
from openbook.data.inputs import TokenIds, padded
from openbook.data.prompts import Prompt
from openbook.errors import OpenBookError


def joined_contexts(
    prompt: Prompt, question_ids: Sequence[TokenIds], tokens: PassageTokens, rows: Tensor, max_length: int
) -> tuple[Tensor, Tensor]:
    """Ids and mask [batch, context_len] as `Prompt.inputs` gives them, with all passages of a question in one context,
    in the order of rows [batch, n_docs]; missing ones are left out. Each passage is cut as if it stood there alone with
    max_length; one alone gives the context of `Prompt.inputs`."""
    ids, mask = (part.numpy() for part in prompt.inputs(question_ids, tokens, rows, max_length))
    lengths, (first, last), words = mask.sum(1), passage_fields(prompt), prompt.context_words()
    contexts = []
    for number, question in enumerate(question_ids):
        asked = [len(question) if field == "question" else 0 for field in prompt.fields]
        before = sum(map(len, words[: first + 1])) + sum(asked[:first])
        after = sum(map(len, words[last + 1 :])) + sum(asked[last + 1 :])
        present = np.flatnonzero(rows[number].numpy() != MISSING_ROW)
        own = number * rows.shape[1] + (present if len(present) else np.zeros(1, dtype=np.int64))
        passages = [ids[one, before : lengths[one] - after].tolist() for one in own]
        between = [token for passage in passages for token in (*prompt.between, *passage)][len(prompt.between) :]
        any_one, length = ids[own[0]].tolist(), int(lengths[own[0]])
        contexts.append([*any_one[:before], *between, *any_one[length - after : length]])
    return padded(contexts, prompt.pad)


def passage_fields(prompt: Prompt) -> tuple[int, int]:
    """The places of the first and the last field of a passage; OpenBookError where another one lies between."""
    places = [place for place, field in enumerate(prompt.fields) if field in ("title", "passage")]
    if not places or places[-1] - places[0] >= len(places):
        raise OpenBookError(
            "the prompt cannot hold several passages",
            where="generator.prompt",
            got=" ".join(f"{{{field}}}" for field in prompt.fields),
            expected="title and passage side by side with generator.reads=all",
        )
    return places[0], places[-1]
