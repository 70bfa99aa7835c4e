"""A generator that reads all passages at once, and what it teaches the retriever, against loops in float64."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from openbook.batch import IGNORED_LABEL, MISSING_ROW, Batch, Example
from openbook.config.training import OptimConfig
from openbook.data.corpus_build import build_corpus
from openbook.data.inputs import special_ids
from openbook.inference.rag_token import rag_token_beams
from openbook.models.all_passages.reading import FusedContexts, read_all, read_together, side_by_side
from openbook.models.contexts import ContextBuilder, answer_hidden
from openbook.models.decoder_only.model import DecoderOnlyGenerator
from openbook.models.decoder_only.prompting import prompt_of
from openbook.models.encoders import load_tokenizer
from openbook.models.pretrained import DROPOUTS, drops_out, set_dropout
from openbook.models.seq2seq import Seq2SeqGenerator, load_generator
from openbook.models.small_reader.layers import Memory, ReaderConfig
from openbook.models.small_reader.model import MiniLMReader
from openbook.training.all_passages import AllPassagesModule
from tests.decoder_only import causal_folder
from tests.tiny_models import t5_config

GENERATORS = ("bart", "t5", "small reader", "decoder only")
TAUGHT = ("emdr2", "perplexity_distillation", "leave_one_out", "attention_distillation")
# The second question lacks a passage, the third has one alone, the fourth none.
ROWS = torch.tensor([[3, 8, 1], [8, MISSING_ROW, 5], [MISSING_ROW, 7, MISSING_ROW], [MISSING_ROW] * 3])
QUESTIONS = ["what is the capital of alpha beta ?", "which river ?", "is it the king ?", "a river ?"]
ANSWERS = ["upsilon", "the river eta theta", "gamma", "eta"]
TEMPERATURE = 0.7


@dataclass
class System:
    """A generator over a small corpus, and log p(y_t | ...) of one question by a plain forward pass of what it is."""

    generator: Any
    contexts: ContextBuilder
    batch: Batch
    kind: str

    def prompts(self, number: int) -> list[Tensor]:
        """Ids of the question's contexts, one for each of its three rows."""
        ids, mask = self.contexts(self.batch.context_questions[number : number + 1], ROWS[number : number + 1])
        return [row[kept] for row, kept in zip(ids, mask, strict=True)]

    def answer(self, number: int) -> Tensor:
        return self.batch.labels[number][self.batch.target_mask[number]]

    def logprobs(self, number: int, passages: list[int]) -> Tensor:
        """Of the answer's tokens, read from these passages of the question at once."""
        prompts, answer = self.prompts(number), self.answer(number)
        own = [prompts[passage] for passage in passages]
        if self.kind == "decoder only":
            return self._of_one_prompt(own, answer, self.batch.context_questions[number])
        inputs = torch.tensor([[self.generator.decoder_start_token_id, *answer[:-1].tolist()]])
        if self.kind == "small reader":
            each = [self.generator.encode(one[None], torch.ones(1, len(one), dtype=torch.bool)) for one in own]
            memory = Memory(*(torch.cat(parts, 1) for parts in zip(*each, strict=True)))
            hidden, _ = self.generator.decode(inputs, memory, torch.ones_like(memory.ids, dtype=torch.bool))
            logits = self.generator.logits(hidden)[0]
        else:
            logits = self.output(own, inputs).logits[0]
        return logits.log_softmax(-1).gather(1, answer[:, None])[:, 0]

    def output(self, own: list[Tensor], inputs: Tensor, model: Any = None, **more: Any) -> Any:
        """transformers' own output over the states of contexts that its encoder has read one by one."""
        model = model or self.generator.model
        states = [model.get_encoder()(input_ids=one[None]).last_hidden_state for one in own]
        return model(encoder_outputs=BaseModelOutput(torch.cat(states, 1)), decoder_input_ids=inputs, **more)

    def _of_one_prompt(self, own: list[Tensor], answer: Tensor, question: Any) -> Tensor:
        """The template is title, passage and question: all prompts of a question end alike."""
        prompt: Any = self.contexts.special
        tail = [*prompt.words[2], *question, *prompt.words[3][:-1]]
        heads = [one[: len(one) - len(tail)].tolist() for one in own]
        text = [token for head in heads for token in (*prompt.between, *head)][len(prompt.between) :] + tail
        ids = torch.tensor([[*text, prompt.start, *answer.tolist()]])
        logprobs = self.generator.model(input_ids=ids).logits[0].log_softmax(-1)
        return logprobs[len(text) : len(text) + len(answer)].gather(1, answer[:, None])[:, 0]


@pytest.fixture(scope="module", params=GENERATORS)
def system(
    request: pytest.FixtureRequest, generator_folder: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> System:
    cache, kind, prompt = tmp_path_factory.mktemp("cache"), request.param, None
    folder = causal_folder(cache / "causal", small_data, "smollm") if kind == "decoder only" else generator_folder
    tokenizer = load_tokenizer(str(folder))
    torch.manual_seed(7)
    generator: Any
    if kind == "t5":
        generator = Seq2SeqGenerator(T5ForConditionalGeneration(t5_config(len(tokenizer), layers=2, d_kv=5)))
    elif kind == "small reader":
        special = special_ids(tokenizer)
        ids = {"pad_id": special.pad, "start_id": special.start, "end_id": special.end}
        config = ReaderConfig((0, 1), (0,), len(tokenizer), 28, 7, 31, 90, **ids)
        generator = MiniLMReader(config)
        generator.read_all()
        generator.config = config
        for part in (*generator.parameters(), generator.word_embeddings, generator.head):
            part.data.add_(torch.randn_like(part) * 0.3)
    else:
        generator = load_generator(str(folder), 0.0, 0)
    formats = {}
    if isinstance(generator, DecoderOnlyGenerator):
        prompt = prompt_of(tokenizer, str(folder))
        generator.follow(prompt)
        formats = {"generator": prompt}
    corpus = build_corpus(small_data / "passages.jsonl", {"generator": tokenizer}, cache, formats=formats)
    special = prompt or special_ids(tokenizer)
    asked = [tuple(ids) for ids in tokenizer(QUESTIONS, add_special_tokens=False)["input_ids"]]
    ends = generator.eos_token_id
    answers = [[*ids, ends] for ids in tokenizer(ANSWERS, add_special_tokens=False)["input_ids"]]
    longest = max(map(len, answers))
    labels = torch.tensor([row + [IGNORED_LABEL] * (longest - len(row)) for row in answers])
    examples = tuple(Example(str(n), "", ("",)) for n in range(len(ROWS)))
    batch = Batch(labels, labels >= 0, tuple(asked), labels, torch.ones(len(ROWS)), examples)
    contexts = ContextBuilder(corpus.tokens("generator"), special, 60, tokens_per_pass=80)
    return System(generator.double().eval(), contexts, batch, kind)


def present(number: int) -> list[int]:
    return [place for place in range(3) if ROWS[number, place] >= 0]


def module(system: System, objective: str) -> AllPassagesModule:
    made = AllPassagesModule(
        None,  # type: ignore[arg-type]
        system.generator,
        system.contexts,
        None,  # type: ignore[arg-type]
        objective=objective,
        n_docs=3,
        optim=OptimConfig(),
        max_steps=1,
        distill_temperature=TEMPERATURE,
    )
    return made.eval()


def looked_at(system: System, number: int) -> list[float]:
    """Attention weight times norm of the value, summed over a context's tokens, by transformers' eager attention."""
    own, answer = [system.prompts(number)[place] for place in present(number)], system.answer(number)
    model = copy.deepcopy(system.generator.model)
    model.set_attn_implementation("eager")
    inputs = torch.tensor([[system.generator.decoder_start_token_id, *answer[:-1].tolist()]])
    output = system.output(own, inputs, model, output_attentions=True)
    layers = model.get_decoder().layers if system.kind == "bart" else model.get_decoder().block
    found = torch.zeros(len(own), dtype=torch.float64)
    for weights, layer in zip(output.cross_attentions, layers, strict=True):
        project = layer.encoder_attn.v_proj if system.kind == "bart" else layer.layer[1].EncDecAttention.v
        heads = weights.shape[1]
        values = project(output.encoder_last_hidden_state)[0].view(-1, heads, project.out_features // heads)
        for t in range(len(answer)):
            for head in range(heads):
                start = 0
                for place, one in enumerate(own):
                    for token in range(start, start + len(one)):
                        found[place] += weights[0, head, t, token] * values[token, head].norm()
                    start += len(one)
        found = found.detach()
    return (found / (len(answer) * weights.shape[1] * len(output.cross_attentions))).tolist()


def expected(system: System, objective: str, doc_scores: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The generator's and the retriever's term of each question that has a passage."""
    reader, taught = [], []
    for number in range(3):
        places = present(number)
        reader.append(-system.logprobs(number, places).sum())
        weights = [doc_scores[number, place].exp() for place in places]
        prior = [weight / sum(weights) for weight in weights]
        with torch.no_grad():
            alone = [float(system.logprobs(number, [place]).sum()) for place in places]
            if objective == "emdr2":
                opinion = alone
            elif objective == "perplexity_distillation":
                opinion = [value / TEMPERATURE for value in alone]
            elif objective == "leave_one_out":
                left = [[other for other in places if other != place] for place in places]
                opinion = [-float(system.logprobs(number, some).sum()) / TEMPERATURE if some else 0.0 for some in left]
            elif objective == "attention_distillation":
                opinion = [value / TEMPERATURE for value in looked_at(system, number)]
        if objective == "generator_only":
            taught.append(torch.zeros((), dtype=torch.float64))
        elif objective == "emdr2":
            taught.append(-torch.log(sum(p * math.exp(one) for p, one in zip(prior, opinion, strict=True))))  # type: ignore[arg-type]
        else:
            target = [math.exp(one) / sum(map(math.exp, opinion)) for one in opinion]
            if objective == "leave_one_out" and len(places) == 1:
                target = [0.0]
            parts = [t * (math.log(t) - torch.log(p)) for t, p in zip(target, prior, strict=True) if t > 0]
            taught.append(sum(parts, start=torch.zeros((), dtype=torch.float64)))
    return reader, taught


@pytest.mark.parametrize("objective", [*TAUGHT, "generator_only"])
def test_losses_and_gradients_are_those_of_loops(system: System, objective: str) -> None:
    if objective == "attention_distillation" and system.kind not in ("bart", "t5"):
        pytest.skip("no attentions of transformers to compare with")
    scores = torch.tensor([[0.3, -0.7, 1.1], [0.9, -torch.inf, 0.2], [-torch.inf, 0.4, -torch.inf], [-torch.inf] * 3])
    weight = torch.tensor([0.5, 0.25, 1.0, 0.0])  # a question without any passage counts nothing

    def gradients(loss: Tensor, doc_scores: Tensor) -> dict[str, Tensor]:
        system.generator.zero_grad()
        doc_scores.grad = None
        loss.backward()
        named = {name: value.grad for name, value in system.generator.named_parameters() if value.grad is not None}
        return {"doc_scores": doc_scores.grad, **{name: grad.clone() for name, grad in named.items()}}  # type: ignore[dict-item]

    ours = scores.double().requires_grad_()
    read = module(system, objective).read(system.batch, ROWS, ours, weight.double())
    theirs = scores.double().requires_grad_()
    reader, taught = expected(system, objective, theirs)
    for number in range(3):
        torch.testing.assert_close(read.nll[number], reader[number].detach(), atol=1e-9, rtol=0)
        whole = (reader[number] + taught[number]).detach()
        torch.testing.assert_close(read.minimised[number], whole, atol=1e-6, rtol=0)
    total = sum((reader[n] + taught[n]) * weight[n].double() for n in range(3))
    found, wanted = gradients(read.loss, ours), gradients(total, theirs)  # type: ignore[arg-type]
    if objective == "generator_only":
        found["doc_scores"] = wanted["doc_scores"] = torch.zeros(1)
    wanted["doc_scores"] = wanted["doc_scores"].nan_to_num(0.0)
    assert found.keys() == wanted.keys() and len(found) > 5
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient,
            wanted[name].to(gradient.dtype),
            atol=1e-6,
            rtol=1e-5,
            msg=lambda text, name=name: f"{name} {text}",
        )


def test_alone_is_what_the_reader_of_one_passage_says(system: System) -> None:
    readings = read_together(system.generator, system.batch, ROWS, system.contexts)
    with torch.no_grad():
        plain = answer_hidden(system.generator, system.batch, ROWS, system.contexts)
    here = (ROWS >= 0)[:, :, None] & system.batch.target_mask[:, None]
    torch.testing.assert_close(readings.alone[here], plain[here], atol=1e-9, rtol=0)
    assert not readings.alone.requires_grad and readings.together.requires_grad
    every = read_all(system.generator, system.batch, ROWS, system.contexts)
    assert torch.equal(every, readings.together[:, 0]) and every.requires_grad


def test_opinions_are_those_of_the_whole_generator(system: System) -> None:
    if system.kind == "small reader":
        pytest.skip("has no dropout")
    generator = copy.deepcopy(system.generator)
    set_dropout(generator.model.config, 0.5)
    for part in generator.modules():  # what they have read off the configuration when they were made
        for name in ("p", *DROPOUTS):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.5)
    assert not drops_out(generator)
    kept = list(generator.train().modules())[-1].eval()
    assert drops_out(generator)
    found = read_together(generator, system.batch, ROWS, system.contexts, leave_one_out=True)
    plain = read_together(system.generator, system.batch, ROWS, system.contexts, leave_one_out=True)
    mask = system.batch.target_mask[:, None].expand(*ROWS.shape, -1)
    assert found.without is not None and plain.without is not None
    torch.testing.assert_close(found.alone[mask], plain.alone[mask], atol=1e-9, rtol=0)
    torch.testing.assert_close(found.without[mask], plain.without[mask], atol=1e-9, rtol=0)
    assert not torch.allclose(found.together, plain.together)
    assert generator.training and not kept.training and sum(part.training for part in generator.modules()) > 10


def test_one_passage_is_the_reader_of_one_passage_bit_for_bit(system: System) -> None:
    rows = torch.tensor([[3], [8], [7], [5]])
    generator = copy.deepcopy(system.generator).float()
    together = read_together(generator, system.batch, rows, system.contexts).together
    plain = answer_hidden(generator, system.batch, rows, system.contexts)
    mask = system.batch.target_mask[:, None]
    assert torch.equal(together[mask], plain[mask])


def test_a_missing_passage_changes_nothing(system: System) -> None:
    with_gap = torch.tensor([[3, MISSING_ROW, 8], [8, 5, MISSING_ROW], [MISSING_ROW, MISSING_ROW, 7], [1, 2, 3]])
    without = torch.tensor([[3, 8], [8, 5], [7, MISSING_ROW], [1, 2]])
    states = [
        read_together(system.generator, system.batch, rows, system.contexts).together[:3]
        for rows in (with_gap, without)
    ]
    mask = system.batch.target_mask[:3, None]
    torch.testing.assert_close(states[0][mask], states[1][mask], atol=1e-9, rtol=0)


def test_the_order_of_passages_does_not_matter_to_fusion(system: System) -> None:
    if system.kind == "decoder only":
        pytest.skip("a prompt has an order")
    rows = torch.tensor([[3, 8, 1]] * 4)

    def read(some: Tensor) -> Tensor:
        return read_together(system.generator, system.batch, some, system.contexts).together

    mask = system.batch.target_mask[:, None]
    torch.testing.assert_close(read(rows)[mask], read(rows.flip(1))[mask], atol=1e-9, rtol=0)


def greedy(system: System, number: int, most: int) -> list[int]:
    """The likeliest next token again and again, each by a forward pass over the question's passages."""
    written: list[int] = []
    while len(written) < most and system.generator.eos_token_id not in written:
        best, chosen = -math.inf, 0
        for token in range(system.generator.head_weight.shape[0]):
            labels = torch.tensor([[*written, token]])
            one = copy.copy(system)
            one.batch = replace(system.batch, labels=labels.repeat(4, 1))
            logprob = float(one.logprobs(number, present(number))[-1])
            best, chosen = max((best, chosen), (logprob, token))
        written.append(chosen)
    return written


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_read_from_all_passages(system: System, beams: int) -> None:
    questions = system.batch.context_questions
    ids, mask = system.contexts(questions, ROWS)
    memory = system.generator.encode(ids, mask)
    both_ids, both_mask = side_by_side(system.contexts, questions, ROWS)
    reader: Any = system.generator
    if system.kind != "decoder only":
        reader = FusedContexts(system.generator, memory, len(ROWS))
    prior = torch.tensor([[0.0], [0.0], [0.0], [-torch.inf]])
    found = rag_token_beams(reader, both_ids, both_mask, prior, beams, 4)
    memory = reader.encode(both_ids, both_mask)
    for number in range(3):
        answer = torch.tensor(found[number][0].token_ids)
        labels = answer.repeat(4, 1)
        one = copy.copy(system)
        one.batch = replace(system.batch, labels=labels)
        right = float(one.logprobs(number, present(number)).sum())
        assert found[number][0].logprob == pytest.approx(right, abs=1e-4)
        if beams == 1 and system.kind != "decoder only":
            assert answer.tolist() == greedy(system, number, 4)
    assert found[3][0].token_ids == (system.generator.eos_token_id,)
