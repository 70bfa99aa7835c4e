"""Adapters as peft's folders: peft reads what is written here, and what peft writes is read."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openbook.config.models import GeneratorConfig, LoraConfig
from openbook.errors import OpenBookError
from openbook.exchange.adapters import load_adapters, read_adapter_config, save_adapters
from openbook.models.seq2seq import load_generator
from tests.decoder_only import causal_model

peft = pytest.importorskip("peft")
KEY = "generator.start_from"


@pytest.fixture(scope="module", params=["gpt2", "qwen2", "bart"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, generator_folder: Path) -> Path:
    if request.param == "bart":
        return generator_folder
    folder = tmp_path_factory.mktemp(request.param)
    causal_model(request.param).save_pretrained(folder)
    return folder


def generator_of(base: Path, lora: LoraConfig, learned: bool = False) -> Any:
    generator = load_generator(str(base), 0.0, 3, GeneratorConfig(lora=lora))
    torch.manual_seed(2)
    for name, value in generator.named_parameters():
        if learned and ".lora_B" in name:
            torch.nn.init.normal_(value, std=0.4)
    return generator


@torch.no_grad()
def logits(model: Any) -> Tensor:
    ids = torch.randint(5, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    more = {"decoder_input_ids": ids[:, :3]} if model.config.is_encoder_decoder else {}
    return model.eval()(input_ids=ids, **more).logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", ["all-linear", "some"])
def test_peft_reads_what_is_written_and_it_is_read_back(base: Path, targets: str, tmp_path: Path) -> None:
    names = {"all-linear": "all-linear", "some": "c_attn" if base.name.startswith("gpt2") else "q_proj,v_proj"}
    settings = LoraConfig(rank=3, alpha=5.0, targets=names[targets])
    trained = generator_of(base, settings, learned=True)
    before = logits(trained.model)
    save_adapters(trained.model, settings, str(base), tmp_path, None)
    plain = load_generator(str(base), 0.0, 0)
    assert (logits(plain.model) - before).abs().max() > 0.01
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain.model), tmp_path)
    torch.testing.assert_close(logits(theirs), before, atol=1e-5, rtol=1e-5)

    load_adapters(plain.model, LoraConfig(), str(tmp_path), KEY)  # added to the weights
    torch.testing.assert_close(logits(plain.model), before, atol=1e-5, rtol=1e-5)
    again = generator_of(base, settings)
    load_adapters(again.model, settings, str(tmp_path), KEY)  # as adapters
    assert torch.equal(logits(again.model), before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_writes_is_read(base: Path, rslora: bool, tmp_path: Path) -> None:
    targets = ["c_attn"] if base.name.startswith("gpt2") else ["q_proj", "v_proj"]
    plain = load_generator(str(base), 0.0, 0)
    asked = peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets, init_lora_weights=False, use_rslora=rslora)
    theirs = peft.get_peft_model(copy.deepcopy(plain.model), asked)
    theirs.save_pretrained(tmp_path)
    load_adapters(plain.model, LoraConfig(), str(tmp_path), KEY)
    torch.testing.assert_close(logits(plain.model), logits(theirs), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"rank_pattern": {"q_proj": 1}}, "rank_pattern"),
    ],
)
def test_what_changes_more_than_the_product_is_refused(
    setting: dict[str, Any], said: str, generator_folder: Path, tmp_path: Path
) -> None:
    plain = load_generator(str(generator_folder), 0.0, 0)
    asked: Any = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **setting)
    peft.get_peft_model(copy.deepcopy(plain.model), asked).save_pretrained(tmp_path)
    with pytest.raises(OpenBookError, match=f"of a kind that is not read here .*got LORA with {said}"):
        load_adapters(plain.model, LoraConfig(), str(tmp_path), KEY)


def test_adapters_of_another_kind_scale_or_model_are_refused(generator_folder: Path, tmp_path: Path) -> None:
    settings = LoraConfig(rank=3, targets="q_proj")
    trained = generator_of(generator_folder, settings)
    save_adapters(trained.model, settings, "base", tmp_path, None)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["base_model_name_or_path"] == "base"
    other = LoraConfig(rank=3, alpha=9.0, targets="q_proj")
    with pytest.raises(OpenBookError, match=r"another scale, alpha / rank .*: got 3\.0, expected 2\.0"):
        load_adapters(generator_of(generator_folder, other).model, other, str(tmp_path), KEY)
    wider = LoraConfig(rank=3, targets="q_proj,v_proj")
    with pytest.raises(OpenBookError, match=r"are others .*got 6 that differ.*lora.rank=0 to merge them"):
        load_adapters(generator_of(generator_folder, wider).model, wider, str(tmp_path), KEY)
    before = logits(causal_model("qwen2"))
    model = causal_model("qwen2")
    with pytest.raises(OpenBookError, match=r"are of another model .*no such layer"):
        load_adapters(model, LoraConfig(), str(tmp_path), KEY)
    assert torch.equal(logits(model), before)
    (tmp_path / "adapter_config.json").write_text(json.dumps(content | {"use_dora": True}))
    with pytest.raises(OpenBookError, match=r"of a kind that is not read here .*got LORA with use_dora"):
        read_adapter_config(str(tmp_path), KEY)
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(OpenBookError, match=r"weights are missing .*openbook import .* converts adapter_model.bin"):
        read_adapter_config(str(tmp_path), KEY)
