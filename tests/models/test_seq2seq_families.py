"""Every architecture of the table in docs/models.md: logits, likelihoods and answers are transformers' own, and it
learns under the marginal. What answers begin with is each model's own convention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from openbook.data.inputs import decoder_inputs, special_ids, target_start, targets
from openbook.errors import OpenBookError
from openbook.inference.likelihood import target_logprobs
from openbook.inference.rag_token import greedy, rag_token_beams
from openbook.models.encoders import load_tokenizer
from openbook.models.probe import freeze_unreached, probe_generator
from openbook.models.seq2seq import Seq2SeqGenerator, load_generator
from openbook.objectives.marginal import rag_token_nll
from tests.seq2seq_families import EOS, FAMILIES, PAD, WORDS, Family, tokenizer

Loaded = tuple[Family, Seq2SeqGenerator, Any]
CONTEXTS = ["w1 w2 w5 w6 w7", "w8 w9 w1", "w3 w3 w20 w21 w2 w11 w4", "w29"]
DOCS = Path(__file__).parent.parent.parent / "docs" / "models.md"


def loaded(family: Family, folder: Path) -> Loaded:
    family.made(folder)
    tok, generator = load_tokenizer(str(folder)), load_generator(str(folder), 0.0, 0)
    assert isinstance(generator, Seq2SeqGenerator)
    generator.first_token_id = target_start(tok)
    return family, generator.eval(), tok


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return loaded(request.param, tmp_path_factory.mktemp("family"))


def contexts(tok: Any) -> tuple[torch.Tensor, torch.Tensor]:
    read = tok(CONTEXTS, return_tensors="pt", padding=True)
    return read["input_ids"], read["attention_mask"].bool()


@torch.no_grad()
def test_logits_are_transformers_own(made: Loaded) -> None:
    """Of two targets over each context, all at once and token by token; and the probe finds the same."""
    _, generator, tok = made
    probe_generator(generator, tok, special_ids(tok), max_context=48, max_target=8)
    ids, mask = contexts(tok)
    read = torch.randint(5, len(WORDS), (2 * len(ids), 6), generator=torch.Generator().manual_seed(0))
    theirs = generator.model(
        input_ids=ids.repeat_interleave(2, 0),
        attention_mask=mask.repeat_interleave(2, 0).long(),
        decoder_input_ids=read,
        use_cache=False,
    ).logits
    memory, cache, steps = generator.encode(ids, mask), None, []
    for place in range(read.shape[1]):
        hidden, cache = generator.decode(read[:, place : place + 1], memory, mask, cache)
        steps.append(generator.logits(hidden))
    for ours in (generator.logits(generator.decode(read, memory, mask)[0]), torch.cat(steps, 1)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert float((theirs[0] - theirs[2]).abs().max()) > 1e-2  # the context says something


def test_the_likelihood_is_transformers_loss_on_its_own_labels(made: Loaded) -> None:
    family, generator, tok = made
    assert target_start(tok) == family.first
    answers = ["w3 w7 w9", "w4", "w11 w2", "w8"]
    labels = targets(tok, answers, 10)
    theirs = [tok(text_target=answer)["input_ids"] for answer in answers]
    assert [[token for token in row if token >= 0] for row in labels.tolist()] == theirs
    ids, mask = contexts(tok)
    with torch.no_grad():
        ours = target_logprobs(generator, generator.encode(ids, mask), mask, labels[:, None])[:, 0, 0]
        shifted = decoder_inputs(labels, generator.decoder_start_token_id, generator.pad_token_id)
        loss = generator.model(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=shifted, labels=labels).loss
    assert float(-ours.sum() / (labels >= 0).sum()) == pytest.approx(float(loss), abs=1e-4)
    assert shifted[:, 0].tolist() == [family.start] * len(answers)


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_generate(beams: int, made: Loaded) -> None:
    """Behind their first token, where transformers forces one. Its log-probability counts here and is 0 there, which a
    length penalty would tell."""
    family, generator, tok = made
    ids, mask = contexts(tok)
    prior = torch.zeros(len(ids), 1)
    how = {"num_beams": beams, "do_sample": False, "length_penalty": 0.0, "max_new_tokens": 7}
    rows = generator.model.generate(input_ids=ids, attention_mask=mask.long(), **how)[:, 1:].tolist()
    expected = [tuple(row[: row.index(EOS) + 1] if EOS in row else row) for row in rows]
    found = [one[0].token_ids for one in rag_token_beams(generator, ids, mask, prior, beams, 7)]
    assert found == expected
    assert len(set(found)) > 1 and {row[0] for row in found} != {EOS}
    if family.first is not None:
        assert {row[0] for row in found} == {family.first}
    if beams == 1:
        ours = greedy(generator, ids, mask, prior, "rag_token", 7).token_ids.tolist()
        assert [tuple(row[: row.index(EOS) + 1] if EOS in row else row) for row in ours] == expected


def test_it_learns_under_the_marginal(tmp_path: Path, made: Loaded) -> None:
    """Twenty steps of RAG-Token over two passages of two questions."""
    _, generator, tok = loaded(made[0], tmp_path)
    freeze_unreached(generator, "generator.model")
    ids, mask = contexts(tok)
    labels = targets(tok, ["w3 w7 w9", "w4"], 10)
    inputs = decoder_inputs(labels, generator.decoder_start_token_id, PAD).repeat_interleave(2, 0)
    optimizer = torch.optim.AdamW([one for one in generator.parameters() if one.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        hidden, _ = generator.train().decode(inputs, generator.encode(ids, mask), mask)
        logprobs = generator.logits(hidden).log_softmax(-1).view(2, 2, *inputs.shape[1:], -1)
        places = labels.clamp(min=0)[:, None, :, None].expand(-1, 2, -1, -1)
        loss = rag_token_nll(logprobs.gather(3, places).squeeze(3), torch.zeros(2, 2), labels >= 0).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert [name for name, one in generator.named_parameters() if one.requires_grad and one.grad is None] == []


def test_the_table_in_the_docs(made: Loaded) -> None:
    family, generator, _ = made
    first = "nothing" if family.first is None else {1: "`<s>`", 4: "the language"}[family.first]
    shares = "yes" if generator.shared_layers else "no"
    table = DOCS.read_text(encoding="utf-8").split("### Encoder-decoders\n")[1].split("\n### ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert f"| {family.name} | `{family.example}` | {first} | {shares} |" in rows
    assert len(rows) == len(FAMILIES)


def test_a_forced_token_that_the_tokenizer_does_not_write_is_refused(tmp_path: Path) -> None:
    _, generator, _ = loaded(FAMILIES[1], tmp_path)
    plain = tokenizer("$A </s>")
    generator.first_token_id = target_start(plain)  # type: ignore[arg-type]
    with pytest.raises(OpenBookError, match=r"forces its answers .*got none, expected 4 \('en_XX'\)"):
        probe_generator(generator, plain, special_ids(plain), max_context=12, max_target=8)
