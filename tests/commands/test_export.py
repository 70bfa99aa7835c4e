"""Runs that are no RAG of transformers: what is written of them can be used, and what cannot be written is said."""

from __future__ import annotations

import json
from pathlib import Path

import faiss
import pytest
import torch

from openbook.__main__ import main
from openbook.commands.exchange.export import export
from openbook.commands.index_add import index_add
from openbook.commands.train import train
from openbook.models.seq2seq import load_generator
from openbook.tracking.checkpoint import read_checkpoint
from openbook.tracking.run_folder import RunFolder
from tests.commands.test_exchange import AS_RAG, predictions
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT = ["trainer.max_steps=1", "data.validation=", "warmup.steps=0"]


def test_the_small_reader_and_encoders_of_cosines(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = small_system.words(tmp_path / "run", *SHORT, "generator.model=minilm", "retriever.question_prefix=what ")
    assert main(["train", *words]) == 0
    capsys.readouterr()
    out = export(tmp_path / "run", tmp_path / "out")
    told = capsys.readouterr()
    said, card = " ".join(told.out.split()), (out / "README.md").read_text()
    assert "LOAD REPORT" not in told.out + told.err  # transformers' table of poolers, which nobody reads
    for why in (
        "rag left out: RAG asks questions with DPR's encoder, and of retriever.question_encoder its pooling is mean",
        "its generator is a transformers encoder-decoder, and generator.model is none",
        "RagRetriever would show the generator retriever.question_prefix 'what '",
        "dpr/question_encoder left out: the encoder is no DPR: got its pooling is mean, DPR's cls",
    ):
        assert why in said and why.partition("left out: ")[2] in " ".join(card.split())
    assert "generator the small reader, for openbook alone" in said
    assert not (out / "dpr").exists() and not (out / "config.json").exists() and not (out / "dataset").exists()
    assert json.loads((out / "generator/config.json").read_text())["model_type"] == "minilm_reader"

    library = pytest.importorskip("sentence_transformers")
    ids = (out / "index/ids.txt").read_text().splitlines()
    questions = [json.loads(line) for line in (small_system.data / "test.jsonl").read_text().splitlines()]
    encoder = library.SentenceTransformer(str(out / "question_encoder"), device="cpu")
    asked = encoder.encode_query([one["question"] for one in questions], convert_to_numpy=True)
    _, numbers = faiss.read_index(str(out / "index/index.faiss")).search(asked, 3)
    ours = predictions(tmp_path / "run")
    for one, row in zip(questions, numbers.tolist(), strict=True):
        assert {ids[number] for number in row} == {passage["id"] for passage in ours[one["id"]]["passages"]}


def test_adapters_alone_or_merged(small_system: SmallSystem, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lora = ["generator.lora.rank=2", "generator.lora.targets=q_proj,fc1"]
    run = RunFolder(train(small_system.config(tmp_path / "run", *SHORT, *lora, "optim.lr_generator=0.5", "data.test=")))
    merged = load_generator(str(export(run.path, tmp_path / "merged") / "generator"), 0.0, 0).model.eval()
    alone = export(run.path, tmp_path / "alone", adapters=True) / "generator_adapters"
    assert not (alone.parent / "generator").exists()
    ids = torch.randint(5, 40, (2, 7))
    plain = load_generator(str(small_system.generator), 0.0, 0).model.eval()
    with torch.no_grad():
        before = plain(input_ids=ids, decoder_input_ids=ids).logits
        theirs = peft.PeftModel.from_pretrained(plain, alone).eval()(input_ids=ids, decoder_input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids, decoder_input_ids=ids).logits, theirs, atol=1e-5, rtol=1e-4)
    assert (theirs - before).abs().max() > 1e-3
    assert any(".lora_" in name for name in read_checkpoint(run.last)["state_dict"])


def test_line_ends_of_a_prompt_and_passages_that_were_added(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = r"generator.prompt={title}\n: {passage}\n, {question}"
    run = train(small_system.config(tmp_path / "run", *AS_RAG, prompt, *SHORT))
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "new", "title": "psi", "text": "the river of alpha"}) + "\n")
    assert index_add(str(run), [str(tmp_path / "more.jsonl")])
    out = export(run, tmp_path / "out")
    config, card = json.loads((out / "config.json").read_text()), (out / "README.md").read_text()
    assert (config["title_sep"], config["doc_sep"]) == ("\n: ", "\n, ")
    assert "contexts of 7 test questions as the run reads them" in card
    assert "new" in (out / "index/ids.txt").read_text().splitlines()
    assert "38 passages" in card and "the metrics are of fewer" in card and "the metrics are" in capsys.readouterr().out
