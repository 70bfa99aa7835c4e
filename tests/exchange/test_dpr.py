"""Encoders as DPR's: the same embeddings, divided by a temperature where one is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import DPRContextEncoder, DPRQuestionEncoder

from openbook.config.models import LoraConfig
from openbook.exchange.dpr import as_dpr, why_not_dpr
from openbook.models.encoders import TextEncoder, load_encoder
from openbook.models.linear import new_projection
from openbook.models.lora import add_adapters

IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 9, 3, 0, 0]])


def encoder_of(folder: Path, **more: object) -> TextEncoder:
    return load_encoder(str(folder), "cls", False, 0.0, **more).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("kind", [DPRQuestionEncoder, DPRContextEncoder])
@pytest.mark.parametrize("more", [{}, {"projection": 7}, {"dim": 5}, {"projection": 7, "lora": True}])
def test_embeddings_are_the_encoders(
    more: dict[str, int], kind: type, scale: float, encoder_folder: Path, tmp_path: Path
) -> None:
    adapters = {"projection": more["projection"]} if "lora" in more else more
    encoder = encoder_of(encoder_folder, **adapters)
    if "lora" in more:
        pytest.importorskip("peft")
        add_adapters(encoder.model, LoraConfig(rank=2, targets="query"), "retriever.lora", 0)
        for name, value in encoder.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.5)
    for layer in encoder.head:
        layer.bias = torch.nn.Parameter(torch.arange(7.0))  # type: ignore[assignment]
    assert why_not_dpr(encoder) == ""
    as_dpr(encoder, kind, scale).save_pretrained(tmp_path)
    loaded, said = kind.from_pretrained(tmp_path, output_loading_info=True)  # type: ignore[attr-defined]
    assert not any(said.values())
    with torch.no_grad():
        theirs = loaded.eval()(IDS, attention_mask=(IDS > 0).long()).pooler_output
        torch.testing.assert_close(theirs, scale * encoder(IDS, IDS > 0), atol=1e-5, rtol=1e-5)
    if scale == 1:
        again = load_encoder(str(tmp_path), None, None, 0.0).eval()
        torch.testing.assert_close(again(IDS, IDS > 0), encoder(IDS, IDS > 0), atol=1e-5, rtol=1e-5)


def test_what_dpr_cannot_be(encoder_folder: Path) -> None:
    def reason(pooling: str, normalize: bool, layers: int = 0) -> str:
        encoder = load_encoder(str(encoder_folder), pooling, normalize, 0.0)
        for _ in range(layers):
            encoder.head.append(new_projection(24, 24, 0))
        return why_not_dpr(encoder)

    assert reason("mean", False) == "its pooling is mean, DPR's cls"
    assert reason("cls", True) == "its embeddings are of length 1, which DPR's are not"
    assert reason("cls", False, 2) == "it has 2 linear layers, DPR at most one"
    assert reason("cls", False, 1) == ""
