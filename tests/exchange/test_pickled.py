"""Pickled weights become safetensors, whole, sharded or in a folder of their own; pickles that do more are refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openbook.errors import OpenBookError
from openbook.exchange.pickled import converted, is_pickled, read_pickled
from openbook.models.encoders import load_encoder
from openbook.models.seq2seq import load_generator


def pickled(folder: Path, target: Path, shards: int = 1) -> Path:
    """The folder with its weights as older versions of transformers wrote them."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    names = sorted(weights)
    files = {}
    for number in range(shards):
        name = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        some = names[number::shards]
        torch.save({one: weights[one] for one in some}, target / name)
        files |= dict.fromkeys(some, name)
    if shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": files}
        (target / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return target


@pytest.mark.parametrize("shards", [1, 3])
def test_weights_are_the_same(shards: int, generator_folder: Path, tmp_path: Path) -> None:
    source = pickled(generator_folder, tmp_path / "old", shards)
    (source / "optimizer.bin").write_bytes(b"state")
    (source / "modeling_own.py").write_text("raise SystemExit")
    assert is_pickled(source) and not is_pickled(generator_folder)
    assert converted(source, tmp_path / "new") == ["modeling_own.py", "optimizer.bin"]
    found = load_generator(str(tmp_path / "new"), 0.0, 0).state_dict()
    wanted = load_generator(str(generator_folder), 0.0, 0).state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not list((tmp_path / "new").rglob("*.bin")) and not list((tmp_path / "new").rglob("*.py"))


def test_weights_that_share_memory_and_folders_within(encoder_folder: Path, tmp_path: Path) -> None:
    source = pickled(encoder_folder, tmp_path / "old")
    weights = torch.load(source / "pytorch_model.bin", weights_only=True)
    once = weights["embeddings.word_embeddings.weight"]
    torch.save({**weights, "cls.predictions.decoder.weight": once}, source / "pytorch_model.bin")
    (source / "2_Dense").mkdir()
    torch.save({"linear.weight": torch.eye(3)}, source / "2_Dense/pytorch_model.bin")
    converted(source, tmp_path / "new")
    assert torch.equal(load_file(tmp_path / "new/2_Dense/model.safetensors")["linear.weight"], torch.eye(3))
    found = load_encoder(str(tmp_path / "new"), None, None, 0.0).fingerprint()
    assert found == load_encoder(str(encoder_folder), None, None, 0.0).fingerprint()


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def test_a_pickle_that_does_more_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2), "other": Harm()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OpenBookError, match=r"cannot be read without executing what is in them .*pytorch_model\.bin"):
        read_pickled(tmp_path / "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(OpenBookError, match="without executing"):
        read_pickled(tmp_path / "pytorch_model.bin")
    torch.save({"weight": torch.ones(2), "step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OpenBookError, match=r"not a state_dict of tensors .*got step"):
        read_pickled(tmp_path / "pytorch_model.bin")
    torch.save({"weight": torch.ones(2).to_sparse()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OpenBookError, match=r"a tensor that safetensors cannot hold .*got weight, sparse"):
        read_pickled(tmp_path / "pytorch_model.bin")
    torch.save([torch.ones(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(OpenBookError, match=r"not a state_dict of tensors .*got list"):
        read_pickled(tmp_path / "pytorch_model.bin")


def test_damaged_files_are_one_error_that_advises_nothing_unsafe(generator_folder: Path, tmp_path: Path) -> None:
    whole = (pickled(generator_folder, tmp_path / "old") / "pytorch_model.bin").read_bytes()
    path = tmp_path / "pytorch_model.bin"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    for content, said in (
        (whole[: len(whole) // 2], "damaged, or cannot be read"),
        (whole[:3000], "damaged, or cannot be read"),
        (pointer, r"not a file of pickled weights .*\d+ bytes .*`git lfs pull`"),
        (bytes(400), "not a file of pickled weights"),
        (b"", "not a file of pickled weights"),
        (pickle.dumps(Harm()), "without executing"),
    ):
        path.write_bytes(content)
        with pytest.raises(OpenBookError, match=said) as caught:
            read_pickled(path)
        assert "weights_only" not in str(caught.value)
    (tmp_path / "old/pytorch_model.bin").unlink()
    for index in ('{"metadata": {}}', "{", "[]", '{"weight_map": []}'):
        (tmp_path / "old/pytorch_model.bin.index.json").write_text(index)
        with pytest.raises(OpenBookError, match=r"not an index of weights in several files .*index\.json"):
            converted(tmp_path / "old", tmp_path / "new")
