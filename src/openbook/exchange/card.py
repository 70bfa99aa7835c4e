"""The model card (README.md) of an export: what it is, how it was trained and measured, how it is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from openbook.config.schema import Config
from openbook.data.corpus import Corpus
from openbook.exchange.models import Written

MEASURED = {
    "exact_match": "exact match",
    "f1": "F1",
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "recall_at_20": "recall@20",
    "mrr": "MRR",
    "n_questions": "questions",
}
LOAD_RAG = """\
from transformers import {kind}, RagRetriever, RagTokenizer

folder = "FOLDER"  # this one
tokenizer = RagTokenizer.from_pretrained(folder)
retriever = RagRetriever.from_pretrained(
    folder, index_name="custom", passages_path=f"{{folder}}/dataset", index_path=f"{{folder}}/index/index.faiss"
)
model = {kind}.from_pretrained(folder, retriever=retriever)
asked = tokenizer(["a question"], return_tensors="pt")
ids = model.generate(asked["input_ids"], attention_mask=asked["attention_mask"])
print(tokenizer.batch_decode(ids, skip_special_tokens=True))
"""
SEARCH = """\
import faiss
from sentence_transformers import SentenceTransformer

folder = "FOLDER"  # this one
ids = open(f"{folder}/index/ids.txt", encoding="utf-8").read().split("\\n")
encoder = SentenceTransformer(f"{folder}/question_encoder")
scores, numbers = faiss.read_index(f"{folder}/index/index.faiss").search(encoder.encode_query(["a question"]), 5)
print([ids[number] for number in numbers[0]])
"""


@dataclass(frozen=True)
class Facts:
    """What a card states beside the configuration. name: of the run; summary, environment: the content of its
    summary.json and environment.json; corpus: that it answers from. notes: what a reader must know."""

    name: str
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    corpus: Corpus
    written: Written
    notes: Sequence[str]


def model_card(config: Config, facts: Facts) -> str:
    """README.md. Files are called by their names, without where they lay."""
    head = {"library_name": "transformers", "tags": ["retrieval-augmented-generation", "openbook"]}
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {facts.name}",
        f"Trained by openbook with the objective `{config.objective}`."
        if not facts.summary.get("imported_from")
        else f"Imported by openbook from {facts.summary['imported_from']}, not trained further.",
        "## What is in it\n\n" + _listed(facts.written.folders),
    ]
    if facts.written.left_out:
        sections.append("## What is not\n\n" + _listed(facts.written.left_out))
    if facts.notes:
        sections.append("## To know\n\n" + "\n".join(f"- {note}" for note in facts.notes))
    sections += [_training(config, facts), _data(config, facts), _metrics(facts)]
    if "rag" in facts.written.folders:
        kind = facts.written.folders["rag"].rsplit(" ", 1)[-1]
        sections.append(f"## Use with transformers\n\n```python\n{LOAD_RAG.format(kind=kind)}```")
    if {"index", "question_encoder"} <= facts.written.folders.keys():
        sections.append(f"## Search what was trained\n\n```python\n{SEARCH}```")
    return "\n\n".join(sections) + "\n"


def _listed(named: Mapping[str, str]) -> str:
    return "\n".join(f"- `{name}`: {text}" for name, text in named.items())


def _training(config: Config, facts: Facts) -> str:
    retriever, summary = config.retriever, facts.summary
    versions = facts.environment.get("versions", {})
    rows = {
        "question encoder": _base(retriever.question_encoder) if config.objective != "closed_book" else "",
        "passage encoder": _base(retriever.passage_encoder) if config.objective != "closed_book" else "",
        "generator": _base(config.generator.model) if config.objective != "dpr" else "",
        "steps": summary.get("steps"),
        "tested step": summary.get("tested_step"),
        "questions a step": config.trainer.batch_size * config.trainer.accumulate * config.trainer.world_size,
        "passages read (n_docs)": summary.get("n_docs"),
        "seed": summary.get("seed"),
        "commit": facts.environment.get("commit") or "unknown",
        "versions": ", ".join(f"{name} {one}" for name, one in versions.items()),
    }
    return "## Training\n\n" + _table(("", ""), [row for row in rows.items() if row[1] not in ("", None)])


def _data(config: Config, facts: Facts) -> str:
    questions, known = facts.summary.get("questions", {}), facts.summary.get("data", {})
    known = known | {"corpus": facts.corpus.fingerprint}  # of a run that passages were added to, a later one
    rows = []
    for split in ("corpus", "train", "validation", "test"):
        name = getattr(config.data, split)
        if name and split in known:
            n = f"{len(facts.corpus):,} passages" if split == "corpus" else f"{questions.get(split, 0):,} questions"
            rows.append((split, Path(name).name, n, known.get(split, "")[:12]))
    return "## Data\n\n" + _table(("", "file", "size", "sha256"), rows)


def _metrics(facts: Facts) -> str:
    test, before = facts.summary.get("test") or {}, facts.summary.get("before_training") or {}
    rows = [
        (label, _number(test[key]), _number(before.get(key)))
        for key, label in MEASURED.items()
        if isinstance(test.get(key), int | float)
    ]
    if not rows:
        return "## Metrics\n\nThe run has not been tested."
    told = "".join(f"\n{text}" for text in facts.summary.get("disclosures", []))
    return (
        "## Metrics\n\nOf the test questions; rates from 0 to 1.\n\n" + _table(("", "trained", "before"), rows) + told
    )


def _base(name: str) -> str:
    return name if name.count("/") == 1 and not name.startswith(("/", ".")) else Path(name).name


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)
