"""A run goes out and comes in again: in a process that knows transformers alone it has the same losses and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openbook.commands.evaluate import evaluate
from openbook.commands.exchange.export import export
from openbook.commands.exchange.imports import import_folder
from openbook.commands.train import resume, train
from openbook.errors import OpenBookError
from openbook.exchange.index_files import has_datasets
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")
AS_RAG = [
    *("retriever.pooling=cls", "retriever.normalize=false", "retriever.temperature=2"),
    *("generator.prompt={title} : {passage} , {question}", "generator.question=decoded"),
]

# What a user of transformers writes, who has never heard of this library. Losses of the gold answer, greedy answers.
ALONE = """
import json, sys
import faiss, torch
from transformers import DPRQuestionEncoder, {kind}, RagRetriever, RagTokenizer

folder, questions, with_retriever, out = {folder!r}, {questions!r}, {with_retriever}, {out!r}
tokenizer, more = RagTokenizer.from_pretrained(folder), {{}}
if with_retriever:
    more["retriever"] = RagRetriever.from_pretrained(
        folder, index_name="custom", passages_path=f"{{folder}}/dataset", index_path=f"{{folder}}/index/index.faiss"
    )
model = {kind}.from_pretrained(folder, **more).eval()
config, index = model.config, faiss.read_index(f"{{folder}}/index/index.faiss")
passages = [json.loads(line) for line in open(f"{{folder}}/index/passages.jsonl")]
found = []
for line in open(questions):
    example = json.loads(line)
    asked = dict(tokenizer([example["question"]], return_tensors="pt"))
    asked.pop("token_type_ids", None)
    answer = tokenizer.generator(example["answers"][0], add_special_tokens=False)["input_ids"]
    labels = torch.tensor([[config.decoder_start_token_id, *answer, config.eos_token_id]])
    with torch.no_grad():
        if not with_retriever:
            question = model.question_encoder(asked["input_ids"], asked["attention_mask"]).pooler_output
            _, numbers = index.search(question.numpy(), config.n_docs)
            said = tokenizer.question_encoder.decode(asked["input_ids"][0], skip_special_tokens=True)
            prefix = getattr(config.generator, "prefix", None) or ""
            texts = [
                prefix + passages[n]["title"] + config.title_sep + passages[n]["text"] + config.doc_sep + said
                for n in numbers[0]
            ]
            read = tokenizer.generator(texts, return_tensors="pt", padding=True)
            vectors = torch.stack([torch.from_numpy(index.reconstruct(int(n))) for n in numbers[0]])
            asked = {{
                "context_input_ids": read["input_ids"],
                "context_attention_mask": read["attention_mask"],
                "doc_scores": question @ vectors.T,
            }}
        loss = float(model(**asked, labels=labels, reduce_loss=False).loss)
        ids = model.generate(**asked)
    prediction = tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()
    found.append({{"id": example["id"], "loss": loss, "prediction": prediction, "answer": example["answers"][0]}})
assert not any(name.split(".")[0] in ("openbook", "lightning") for name in sys.modules)
json.dump(found, open(out, "w"))
"""


def predictions(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return {one["id"]: one for one in map(json.loads, lines)}


@pytest.fixture(scope="module")
def trained(small_system: SmallSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt some of its training questions by heart, on which it is tested."""
    folder = tmp_path_factory.mktemp("exchange")
    more = ["trainer.max_steps=25", "trainer.batch_size=8", "data.validation=", "refresh.every=10"]
    test = f"data.test={small_system.data / 'train.jsonl'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBOOK_RUN_DIR", "")
        return train(small_system.config(folder / "run", *AS_RAG, *more, test))


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    return export(trained, trained.parent / "exported")


def alone(system: SmallSystem, folder: Path, with_retriever: bool, out: Path, kind: str) -> list[dict[str, Any]]:
    names = {"folder": str(folder), "questions": str(system.data / "train.jsonl"), "out": str(out)}
    process = system.start_python(ALONE.format(**names, with_retriever=with_retriever, kind=kind))
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("how", ["RagRetriever", "contexts by hand"])
def test_transformers_alone_has_the_same_losses_answers_and_exact_match(
    how: str, small_system: SmallSystem, trained: Path, exported: Path, tmp_path: Path
) -> None:
    if how == "RagRetriever":
        pytest.importorskip("datasets")
    theirs = alone(small_system, exported, how == "RagRetriever", tmp_path / "out.json", "RagTokenForGeneration")
    ours = predictions(trained)
    assert len(theirs) == len(ours) == 23
    for one in theirs:
        assert one["loss"] == pytest.approx(-ours[one["id"]]["gold_logprob"], abs=1e-5)
        assert one["prediction"] == ours[one["id"]]["prediction"]
    exact_match = sum(one["prediction"] == one["answer"] for one in theirs) / len(theirs)
    assert exact_match == json.loads((trained / "summary.json").read_text())["test"]["exact_match"] > 0


def test_imported_again_it_is_the_same(
    small_system: SmallSystem, trained: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"data.corpus={small_system.data / 'passages.jsonl'}", f"data.test={small_system.data / 'train.jsonl'}"]
    more = [*data, f"data.cache={tmp_path / 'cache'}", "trainer.precision=fp32"]
    run = import_folder(str(exported), tmp_path / "run", more)
    assert "every one placed" in capsys.readouterr().out
    again, ours = predictions(evaluate(run).parent), predictions(trained)
    assert again.keys() == ours.keys()
    for name, one in ours.items():
        assert again[name]["gold_logprob"] == pytest.approx(one["gold_logprob"], abs=1e-5)
        assert again[name]["prediction"] == one["prediction"]
    with pytest.raises(OpenBookError, match=r"an imported run has no optimizer.*generator\.start_from=.*run"):
        resume(run, more)
    assert json.loads((run / "summary.json").read_text())["imported_from"] == "exported"

    twice = export(run, tmp_path / "twice")
    assert "Imported by openbook from exported" in (twice / "README.md").read_text()
    config, before = (json.loads((one / "config.json").read_text()) for one in (twice, exported))
    assert config == before


def test_the_card_and_what_lies_beside_it(trained: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    summary = json.loads((trained / "summary.json").read_text())
    environment = json.loads((trained / "environment.json").read_text())
    for part in (
        f"| exact match | {summary['test']['exact_match']:.4f} | {summary['before_training']['exact_match']:.4f} |",
        f"| corpus | passages.jsonl | 37 passages | {summary['data']['corpus'][:12]} |",
        f"| commit | {environment['commit'] or 'unknown'} |",
        "RagRetriever writes the contexts of 23 test questions as the run reads them",
        "doc_scores are divided by 2 in the RAG's question encoder",
    ):
        assert part in card
    for path in (*exported.rglob("*.json"), exported / "README.md"):  # where the models lay on this machine
        assert str(trained.parent.parent) not in path.read_text(encoding="utf-8"), path
    assert {path.suffix for path in exported.rglob("*") if path.is_file()}.isdisjoint({".bin", ".pt", ".pkl", ".ckpt"})
    assert (exported / "dataset").is_dir() == has_datasets()


def test_a_folder_with_something_in_it_is_left_alone(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("something")
    for target in (tmp_path, tmp_path / "there"):
        with pytest.raises(OpenBookError, match="the folder to export to has something in it"):
            export(trained, target)
    with pytest.raises(OpenBookError, match=r"the run has no adapters \(--adapters\)"):
        export(trained, tmp_path / "new", adapters=True)
    assert (tmp_path / "there").read_text() == "something" and not (tmp_path / "new").exists()
