"""Embeddings of every family, from texts to numbers: equal to sentence-transformers' own and to transformers' DPR."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from openbook.config.load import load_experiment
from openbook.config.schema import Config
from openbook.data.corpus_build import build_corpus
from openbook.data.encoder_inputs import encoder_format, passage_inputs, question_inputs
from openbook.models.encoder_folder import read_folder
from openbook.models.encoders import TextEncoder, load_encoder, load_tokenizer
from openbook.setup.encoders import follow_folders, sides
from tests.encoder_families import FAMILIES, Family, passages_of, texts_of

QUESTIONS = [
    "what is the capital of alpha beta ?",
    "which river flows through delta ?",
    "kappa",
    "who is the Queen of Mu",
]
# Sums of fp32 in another order.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_data: Path
) -> tuple[Family, Path]:
    family = request.param
    return family, family.made(tmp_path_factory.mktemp("encoder"), texts_of(small_data))


def configured(folder: Path, cache: Path, *words: str) -> Config:
    path = cache / "e.yaml"
    path.write_text("shows: x\n", encoding="utf-8")
    keys = [f"retriever.{side}_encoder={folder}" for side in ("question", "passage")]
    return follow_folders(load_experiment(str(path), [*keys, *words]))


def embedded(folder: Path, data: Path, cache: Path, *words: str) -> tuple[Tensor, Tensor, TextEncoder]:
    """Questions [4, dim] and passages [37, dim] by the path that training takes, read as the folder states."""
    config = configured(folder, cache, *words)
    retriever, passage = config.retriever, sides(config)[1]
    tokenizer = load_tokenizer(str(folder))
    asked = encoder_format(tokenizer, "joined", retriever.question_prefix)
    read = encoder_format(tokenizer, retriever.passage_layout, retriever.passage_prefix)  # type: ignore[arg-type]
    corpus = build_corpus(data / "passages.jsonl", {"encoder": tokenizer}, cache, formats={"encoder": read})
    encoder = load_encoder(
        str(folder), passage.pooling, passage.normalize, 0.0, dim=passage.dim, pads_left=read.pads_left
    ).eval()
    with torch.no_grad():
        return (
            encoder(*question_inputs(asked.question_ids(tokenizer, QUESTIONS), asked, 96)),
            encoder(*passage_inputs(corpus.tokens("encoder"), range(37), read, 96)),
            encoder,
        )


def joined(data: Path) -> list[str]:
    return [f"{one['title']} {one['text']}" for one in passages_of(data)]


def reference(family: Family, folder: Path, data: Path) -> tuple[Any, Any]:
    """The same by the library that the folder comes from."""
    if family.pooling:
        model = pytest.importorskip("sentence_transformers").SentenceTransformer(str(folder), device="cpu")
        # A passage's prompt is given by hand: encode_document prefers "document", which it fills in itself as empty.
        before = family.yaml.get("passage_prefix") or family.prompts.get("passage")
        return (
            model.encode_query(QUESTIONS, prompt=family.yaml.get("question_prefix")),
            model.encode_document(joined(data), prompt=before),
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, family.model).from_pretrained(folder).eval()
    model.base_model.config.use_cache = False
    pairs = passages_of(data)
    titles, texts = [one["title"] for one in pairs], [one["text"] for one in pairs]
    results = []
    one_text = read_folder(str(folder)).layout == "joined"
    questions = [family.yaml.get("question_prefix", "") + question for question in QUESTIONS]
    for batch in ((questions,), (joined(data),) if one_text else (titles, texts)):
        inputs = tokenizer(*batch, padding=True, return_tensors="pt")
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        with torch.no_grad():
            found = model(input_ids=ids, attention_mask=mask)
        if family.model.startswith("DPR"):
            results.append(found.pooler_output)
        else:
            states = [rows[keep.bool()] for rows, keep in zip(found.last_hidden_state, mask, strict=True)]
            pooled = torch.stack([one[-1] if family.name == "Llama" else one.mean(0) for one in states])
            results.append(torch.nn.functional.normalize(pooled, dim=-1))
    return results[0], results[1]


def words(family: Family) -> list[str]:
    return [f"retriever.{key}={value}" for key, value in family.yaml.items() if key != "passage_encoder"]


def test_embeddings_are_the_makers(made: tuple[Family, Path], small_data: Path, tmp_path: Path) -> None:
    family, folder = made
    questions, passages, _ = embedded(folder, small_data, tmp_path, *words(family))
    expected_questions, expected_passages = reference(family, folder, small_data)
    np.testing.assert_allclose(questions, expected_questions, **CLOSE)
    np.testing.assert_allclose(passages, expected_passages, **CLOSE)
    assert passages.std(0).mean() > 1e-2  # of 37 passages, not one embedding for all


def test_the_table_in_the_docs_is_what_is_followed(made: tuple[Family, Path], tmp_path: Path) -> None:
    family, folder = made
    config = configured(folder, tmp_path, *words(family))
    question, passage = sides(config)
    set_by_hand = "<br>".join(f"`{key}: {json.dumps(value)}`" for key, value in family.yaml.items())
    cells = [
        f"{family.name}",
        f"`{family.example}`" if "/" in family.example else family.example,
        question.pooling + (" + Dense" if question.folder.dense else ""),
        "1" if question.normalize else "any",
        " ".join(f"`{json.dumps(side.prefix)}`" for side in (question, passage)) if question.prefix else "none",
        config.retriever.passage_layout,
        set_by_hand or "nothing",
    ]
    table = Path("docs/models.md").read_text(encoding="utf-8").partition("| family |")[2].partition("\n\n")[0]
    rows = [line for line in f"| family |{table}".splitlines() if line.startswith("| ")]
    assert "| " + " | ".join(cells) + " |" in rows
    assert len(rows) == len(FAMILIES) + 1  # and the head


def test_a_text_has_one_embedding_whatever_stands_beside_it(
    made: tuple[Family, Path], small_data: Path, tmp_path: Path
) -> None:
    """On the padding side that is the folder's, and on the other."""
    folder = made[1]
    tokenizer = load_tokenizer(str(folder))
    for side in ("left", "right"):
        tokenizer.padding_side = side
        style = encoder_format(tokenizer, "joined")
        encoder = load_encoder(str(folder), None, None, 0.0, pads_left=style.pads_left).eval()
        ids = style.question_ids(tokenizer, QUESTIONS)
        with torch.no_grad():
            beside = encoder(*question_inputs(ids, style, 96))
            alone = torch.cat([encoder(question_inputs([one], style, 96)[0], None) for one in ids])
        torch.testing.assert_close(beside, alone, **CLOSE)


def test_gradients_reach_every_weight(made: tuple[Family, Path], small_data: Path, tmp_path: Path) -> None:
    """And equal the slope of the loss where a weight of a projection is moved a little."""
    folder = made[1]
    tokenizer = load_tokenizer(str(folder))
    style = encoder_format(tokenizer, "joined")
    encoder = load_encoder(str(folder), None, None, 0.0, projection=7, seed=3, pads_left=style.pads_left)
    ids, mask = question_inputs(style.question_ids(tokenizer, QUESTIONS), style, 96)
    weights = torch.linspace(-1, 1, 28).view(4, 7)
    (encoder(ids, mask) * weights).sum().backward()
    without = [name for name, value in encoder.named_parameters() if value.grad is None]
    assert without == []
    assert [name for name, _ in encoder.named_parameters() if name.startswith("head")][-1].endswith("weight")
    projection = encoder.head[-1].weight
    assert isinstance(projection, torch.nn.Parameter) and projection.grad is not None
    step = 1e-2
    with torch.no_grad():
        moved = []
        for sign in (1, -1):
            projection[2, 5] += sign * step
            moved.append((encoder(ids, mask) * weights).sum())
            projection[2, 5] -= sign * step
    slope = float(moved[0] - moved[1]) / (2 * step)
    assert float(projection.grad[2, 5]) == pytest.approx(slope, rel=2e-2, abs=1e-4)


def test_dropout_at_work_is_seen(made: tuple[Family, Path]) -> None:
    """Of every family, however its model keeps the rate: what differs between two passes is fit for learning alone."""
    ids = torch.arange(5, 20)[None]
    encoder = load_encoder(str(made[1]), None, None, 0.3)
    for mode in (True, False):
        encoder.train(mode)
        assert encoder.has_dropout == mode
        assert torch.equal(encoder(ids, None), encoder(ids, None)) != mode
    assert not load_encoder(str(made[1]), None, None, 0.0).train().has_dropout
