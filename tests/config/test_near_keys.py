"""What is written by habit is answered with the key that is meant."""

from __future__ import annotations

import pytest

from openbook.config.load import load_experiment
from openbook.config.near_keys import ALSO_CALLED, nearest
from openbook.config.schema import keys_of
from openbook.errors import OpenBookError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lr", "optim.lr"),
        ("learning_rate", "optim.lr"),
        ("optim.learning_rate", "optim.lr"),
        ("optim.lrr", "optim.lr"),
        ("batch_size", "trainer.batch_size"),
        ("batch_siz", "trainer.batch_size"),
        ("max_steps", "trainer.max_steps"),
        ("steps", "trainer.max_steps"),
        ("n_docs", "retriever.n_docs"),
        ("retriver.n_docs", "retriever.n_docs"),
        ("every", "refresh.every"),
        ("seeed", "seed"),
        ("nprobe", "index.nprobe"),
        ("no_such_thing_at_all", None),
    ],
)
def test_the_key_that_is_meant_is_named(written: str, meant: str | None) -> None:
    assert nearest(written, list(keys_of())) == meant
    hint = f"Did you mean {meant}\\?" if meant else "lists every key"
    with pytest.raises(OpenBookError, match=rf"unknown key \({written}\): .* {hint}"):
        load_experiment("rag_token", [f"{written}=1"])


def test_what_others_call_a_key_is_a_key_here() -> None:
    assert set(ALSO_CALLED.values()) <= set(keys_of()) and not set(ALSO_CALLED) & set(keys_of())
