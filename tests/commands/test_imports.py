"""Folders of other programs: a RAG as facebook/rag-token-nq is one becomes a run with every weight placed."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BartForConditionalGeneration,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    RagConfig,
    RagTokenizer,
)

from openbook.__main__ import main
from openbook.commands.evaluate import evaluate
from openbook.commands.exchange.export import export
from openbook.commands.exchange.imports import import_folder
from openbook.errors import OpenBookError
from openbook.exchange.rag import CLASSES
from openbook.tracking.checkpoint_io import WholeCheckpoints
from openbook.tracking.run_folder import RunFolder
from tests.commands.test_exchange import alone, predictions
from tests.exchange.test_pickled import pickled
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")


def rag_folder(folder: Path, system: SmallSystem, objective: str) -> Any:
    """Random weights in transformers' own classes, and DPR's passage encoder beside it; returns the model."""
    tokenizer = AutoTokenizer.from_pretrained(system.encoder)
    torch.manual_seed(5)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    more = {"intermediate_size": 40, "max_position_embeddings": 128, "projection_dim": 10, "initializer_range": 0.3}
    config = DPRConfig(**sizes, **more)
    generator = BartForConditionalGeneration.from_pretrained(system.generator)
    torch.nn.init.normal_(generator.final_logits_bias, std=0.5)
    rag = RagConfig.from_question_encoder_generator_configs(
        config,
        generator.config,
        n_docs=3,
        title_sep=" . ",
        doc_sep=" : ",
        max_combined_length=77,
        retrieval_vector_size=10,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        decoder_start_token_id=2,
    )
    rag.generator.prefix = "the "
    model = CLASSES[objective](config=rag, question_encoder=DPRQuestionEncoder(config), generator=generator)
    model.save_pretrained(folder)
    RagTokenizer(tokenizer, tokenizer).save_pretrained(folder)
    DPRContextEncoder(config).save_pretrained(folder.parent / "ctx")
    tokenizer.save_pretrained(folder.parent / "ctx")
    return model


def data_of(system: SmallSystem, cache: Path) -> list[str]:
    data = [f"data.corpus={system.data / 'passages.jsonl'}", f"data.test={system.data / 'train.jsonl'}"]
    more = ["decode.max_tokens=7", "retriever.passage_layout=pair", "data.max_passage_tokens=100"]
    return [*data, f"data.cache={cache}", "trainer.precision=fp32", *more]


@pytest.mark.parametrize("objective", CLASSES)
def test_a_rag_of_transformers(objective: str, small_system: SmallSystem, tmp_path: Path) -> None:
    model = rag_folder(tmp_path / "rag", small_system, objective)
    source = pickled(tmp_path / "rag", tmp_path / "pickled") if objective == "rag_token" else tmp_path / "rag"
    words = data_of(small_system, tmp_path / "cache")
    assert main(["import", str(source), str(tmp_path / "run"), *words, "--passage-encoder", str(tmp_path / "ctx")]) == 0
    config = RunFolder(tmp_path / "run").load_config([], training=False)
    assert (config.objective, config.retriever.n_docs, config.data.max_context_tokens) == (objective, 3, 77)
    assert config.generator.prompt == "the {title} . {passage} : {question}"
    ours = predictions(evaluate(tmp_path / "run").parent)
    start = [f"{part}.start_from={tmp_path / 'run'}" for part in ("retriever", "generator")]
    more = ["trainer.max_steps=1", f"data.train={small_system.data / 'train.jsonl'}", "data.validation=", *start]
    assert main(["train", objective, f"run.dir={tmp_path / 'on'}", *words, *more, "wandb.mode=disabled"]) == 0
    out = export(tmp_path / "run", tmp_path / "out")
    again = CLASSES[objective].from_pretrained(out)
    wanted, found = model.state_dict(), again.state_dict()
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert again.config.generator.prefix == "the "
    if objective == "rag_sequence":
        theirs = alone(small_system, out, False, tmp_path / "out.json", "RagSequenceForGeneration")
        for one in theirs:
            assert one["loss"] == pytest.approx(-ours[one["id"]]["gold_logprob"], abs=1e-5)


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_is_missing_or_too_much_is_refused(small_system: SmallSystem, tmp_path: Path) -> None:
    rag_folder(tmp_path / "rag", small_system, "rag_token")
    with pytest.raises(OpenBookError, match=r"a RAG has no passage encoder.*dpr-ctx_encoder-single-nq-base"):
        import_folder(str(tmp_path / "rag"), tmp_path / "run")
    old = pickled(tmp_path / "rag", tmp_path / "old")
    weights = torch.load(old / "pytorch_model.bin", weights_only=True)
    for change, said in (
        ({"rag.generator.extra.weight": torch.ones(2)}, r"has weights that the model has no place for .*extra\.weight"),
        ({}, r"weights are missing from the model folder"),
    ):
        left = weights | change
        if not change:
            left.pop("rag.question_encoder.question_encoder.encode_proj.bias")
        torch.save(left, old / "pytorch_model.bin")
        with pytest.raises(OpenBookError, match=said):
            import_folder(str(old), tmp_path / "run", passage_encoder=str(tmp_path / "ctx"))
        assert not (tmp_path / "run/config.yaml").exists()
    rag, encoder = str(tmp_path / "rag"), str(tmp_path / "ctx")
    with pytest.raises(OpenBookError, match=r"unknown key.*data\.corpsu.*data\.corpus"):
        import_folder(rag, tmp_path / "run", ["data.corpsu=x"], passage_encoder=encoder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WholeCheckpoints, "save_checkpoint", no_space)
        with pytest.raises(OpenBookError, match="the disk is full"):
            import_folder(rag, tmp_path / "run", passage_encoder=encoder)
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".run*"))
    (tmp_path / "mine/models").mkdir(parents=True)
    (tmp_path / "mine/models/weights").write_text("precious")
    with pytest.raises(OpenBookError, match="the folder to import to has something in it"):
        import_folder(rag, tmp_path / "mine", passage_encoder=encoder)
    assert (tmp_path / "mine/models/weights").read_text() == "precious"
    content = json.loads((tmp_path / "rag/config.json").read_text())
    (tmp_path / "rag/config.json").write_text(json.dumps(content | {"architectures": ["RagModel"]}))
    with pytest.raises(OpenBookError, match="does not say how it marginalises"):
        import_folder(str(tmp_path / "rag"), tmp_path / "run", passage_encoder=str(tmp_path / "ctx"))


@pytest.mark.parametrize("kind", ["encoder", "generator"])
def test_pickled_weights_of_any_model(
    kind: str, small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pickled(getattr(small_system, kind), tmp_path / "old")
    assert main(["import", str(source), str(tmp_path / "new")]) == 0
    assert (tmp_path / "new/model.safetensors").is_file() and not (tmp_path / "new/pytorch_model.bin").exists()
    with pytest.raises(OpenBookError, match=r"settings for what is no run .*got seed=1"):
        import_folder(str(source), tmp_path / "other", ["seed=1"])
    with pytest.raises(OpenBookError, match="the folder to import to has something in it"):
        import_folder(str(source), tmp_path / "new")
    facts = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(facts | {"model_type": "of-tomorrow"}))
    with pytest.raises(OpenBookError, match=r"the model's configuration cannot be loaded .*of-tomorrow"):
        import_folder(str(source), tmp_path / "other")
    monkeypatch.chdir((tmp_path / "here").mkdir() or tmp_path / "here")
    with pytest.raises(OpenBookError, match="the folder to import to is the one that this runs in"):
        import_folder(str(source), ".")
    shutil.rmtree(source)
    with pytest.raises(OpenBookError, match="no such folder"):
        import_folder(str(source), tmp_path / "other")
