"""The cost model's formulas count what torch counts on real layers, and its fit finds what the seconds were made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BartConfig, BartModel, BertConfig, BertModel

from benchmarks.training.cost import Stack, Step, fitted
from openbook.models.attention import ABSORBING_COSTS, NAME, cache_over, cross_attention_costs

STACK, ROWS, CONTEXT_LEN = Stack(layers=2, dim=24, heads=3), 5, 31


def counted(run: object) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        run()  # type: ignore[operator]
    return int(counter.get_total_flops())


def test_an_encoder() -> None:
    config = BertConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        vocab_size=50,
        attn_implementation="eager",
    )
    model = BertModel(config, add_pooling_layer=False)
    matmul, scores, elementwise = STACK.encode(ROWS, CONTEXT_LEN)
    ids = torch.ones(ROWS, CONTEXT_LEN, dtype=torch.int64)
    assert counted(lambda: model(input_ids=ids)) == matmul + scores * 2 * 2 * 8  # two products over 8 numbers per head
    assert elementwise == 2 * ROWS * CONTEXT_LEN * 24


@pytest.mark.parametrize(("target_len", "absorbs"), [(3, True), (3, False), (29, True)])
def test_a_decoder(target_len: int, absorbs: bool) -> None:
    config = BartConfig(
        d_model=24,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=3,
        vocab_size=50,
        decoder_attention_heads=3,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        attn_implementation=NAME,
    )
    decoder = BartModel(config).eval().get_decoder()
    memory = torch.randn(ROWS, CONTEXT_LEN, 24)
    plain, absorbed = cross_attention_costs(24, 24, 3, target_len, CONTEXT_LEN)
    absorbing = absorbs and ABSORBING_COSTS * absorbed < plain
    assert absorbing == (target_len == 3 and absorbs)
    matmul, scores, _ = STACK.decode(ROWS, target_len, CONTEXT_LEN, absorbs)
    if absorbing:  # what is read there are states, counted as a matmul
        scores -= 2 * 3 * ROWS * target_len * CONTEXT_LEN
    ids = torch.ones(ROWS, target_len, dtype=torch.int64)
    found = counted(
        lambda: decoder(
            input_ids=ids,
            encoder_hidden_states=memory,
            use_cache=False,
            past_key_values=cache_over(memory, 2) if absorbing else None,
        )
    )
    assert found == matmul + scores * 2 * 2 * 8


def test_the_fit_finds_the_constants() -> None:
    random = np.random.default_rng(0)
    work = random.uniform(1, 100, (12, 4)) * np.array([1e9, 1e6, 1e3, 1])
    constants = np.array([2e-12, 0, 3e-6, 1e-3])
    np.testing.assert_allclose(fitted(work, work @ constants), constants, rtol=1e-6, atol=1e-16)
    noisy = fitted(work, work @ constants * random.uniform(0.95, 1.05, 12))
    assert (noisy >= 0).all()
    assert abs(noisy[0] / constants[0] - 1) < 0.2


def test_a_step_of_more_questions_is_more_work() -> None:
    small, large = Step(batch=2).work(), Step(batch=4).work()
    assert (large >= small).all()
    assert large[0] == 2 * small[0]
