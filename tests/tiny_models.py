"""Configurations of transformers' models with random weights that are small enough for tests."""

from typing import Any

from transformers import BartConfig, T5Config


def bart_config(
    vocab: int, *, layers: tuple[int, int], heads: tuple[int, int] = (2, 2), pad: int, bos: int, eos: int, **more: Any
) -> BartConfig:
    """dim 20; layers, heads: of encoder and decoder. The decoder starts with `bos` unless `decoder_start_token_id` is
    among the rest, and nothing is forced at the end."""
    return BartConfig(
        vocab_size=vocab,
        d_model=20,
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        encoder_attention_heads=heads[0],
        decoder_attention_heads=heads[1],
        encoder_ffn_dim=36,
        decoder_ffn_dim=36,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
        forced_eos_token_id=None,
        **{"decoder_start_token_id": bos, **more},
    )


def t5_config(vocab: int, *, layers: int, d_kv: int, d_ff: int = 31, dropout: float = 0.0, **more: Any) -> T5Config:
    """dim 20, 4 heads."""
    return T5Config(
        vocab_size=vocab,
        d_model=20,
        d_kv=d_kv,
        d_ff=d_ff,
        num_layers=layers,
        num_heads=4,
        dropout_rate=dropout,
        decoder_start_token_id=0,
        **more,
    )
