"""Activations made again in the backward pass: the same numbers bit for bit, the memory of one part."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import BartForConditionalGeneration, T5ForConditionalGeneration

from benchmarks.training.passage_gradient import Peak
from openbook.batch import Retrieved
from openbook.commands.train import train
from openbook.config.load import load_experiment
from openbook.errors import OpenBookError
from openbook.models.encoders import TextEncoder
from openbook.models.passes.activation_checkpointing import checkpoint_layers, recomputed
from openbook.models.seq2seq import Seq2SeqGenerator
from openbook.models.small_reader.layers import ReaderConfig
from openbook.models.small_reader.model import MiniLMReader
from openbook.retrieval.dense import DenseRetriever
from openbook.retrieval.passage_embedder import PassageEmbedder
from openbook.setup import models as setup_models
from openbook.setup.inputs import data as setup_data
from tests.ranks import on_ranks
from tests.small_system import DIM, SmallSystem, column, tiny_corpus, tiny_encoder
from tests.tiny_models import bart_config, t5_config

BATCH, N_DOCS = 3, 7
ROWS = torch.tensor([[3, 8, 1, 30, 12, 17, -1], [8, 2, 36, 5, 0, 40, 22], [7, 3, 29, 11, 13, -1, -1]])
QUESTIONS = torch.randint(4, 61, (BATCH, 5), generator=torch.Generator().manual_seed(11))
MASK = torch.ones_like(QUESTIONS, dtype=torch.bool)
Gradients = dict[str, Tensor]


def retriever(tokens_per_backward: int, dropout: float = 0.0, tied: bool = False, **settings: bool) -> DenseRetriever:
    corpus = tiny_corpus()
    questions, passages = tiny_encoder(1, dropout), tiny_encoder(2, dropout)
    embedder = PassageEmbedder(
        questions if tied else passages,
        corpus.tokens,
        corpus.style,
        corpus.max_length,
        tokens_per_pass=64,
        tokens_per_backward=tokens_per_backward,
    )
    return DenseRetriever(questions, embedder, temperature=0.5, **settings).train()


def loss_of(system: DenseRetriever, rows: Tensor = ROWS) -> Tensor:
    """Something in which every passage of a question depends on the others, as in the marginal likelihood."""
    questions = system.question_encoder(QUESTIONS[: len(rows)], MASK[: len(rows)])
    scores = system.score(questions, Retrieved(rows, torch.zeros(rows.shape)))
    return -scores.log_softmax(-1)[:, 1].sum()


def gradients(model: nn.Module, loss: Callable[[], Tensor], seed: int = 3) -> Gradients:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    value = loss()
    value.backward()
    found = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    return {"loss": value.detach(), "next random number": torch.rand(()), **found}


def assert_same(found: Gradients, wanted: Gradients) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def most_kept(loss: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes of a forward and backward pass at their peak, without the weights' gradients."""
    model.zero_grad(set_to_none=True)
    with Peak() as live:
        loss().backward()
    return live.most - sum(part.grad.nbytes for part in model.parameters() if part.grad is not None)


# Passes of passages


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("tied", [False, True])
def test_one_pass_at_a_time_gives_the_same_bits(dropout: float, tied: bool) -> None:
    plain, cached = retriever(0, dropout, tied), retriever(64, dropout, tied)
    wanted = gradients(plain, partial(loss_of, plain))
    assert_same(gradients(cached, partial(loss_of, cached)), wanted)
    assert sum(name.startswith("passage_encoder") for name in wanted) == (0 if tied else len(wanted) // 2 - 1)
    if dropout:
        other = gradients(plain, partial(loss_of, plain), seed=4)
        assert not torch.equal(other["loss"], wanted["loss"])


@pytest.mark.parametrize("tokens", [1, 23, 50, 64, 100_000])
def test_passes_of_any_size_give_one_gradient(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # embeddings and scores are made fp32 elsewhere
    plain, cached = retriever(0).double(), retriever(tokens).double()
    wanted = gradients(plain, partial(loss_of, plain))
    found = gradients(cached, partial(loss_of, cached))
    assert wanted["loss"].dtype == torch.float64
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, msg=name)


def test_autocast_is_what_it_was() -> None:
    plain, cached = retriever(0), retriever(64)

    def loss(system: DenseRetriever) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(system)

    wanted = gradients(plain, partial(loss, plain))
    assert_same(gradients(cached, partial(loss, cached)), wanted)
    assert not torch.equal(wanted["loss"], gradients(plain, partial(loss_of, plain))["loss"])


def test_memory_is_that_of_one_pass_whatever_the_number_of_passages() -> None:
    def peak(tokens: int, rows: Tensor) -> int:
        system = retriever(tokens)
        return most_kept(partial(loss_of, system, rows), system)

    few, many = ROWS[:1, :2], torch.arange(19)[None]
    plain, cached = (peak(tokens, many) - peak(tokens, few) for tokens in (0, 17))
    assert cached / 17 < 17 * (8 + 1) + 8 * 4 * DIM  # ids and mask, and some vectors as long as an embedding
    assert plain > 10 * cached


def test_each_pass_is_encoded_twice_and_only_where_there_is_a_gradient() -> None:
    system, seen = retriever(34), []
    system.passage_encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    loss = loss_of(system)
    n_passes = len(seen)
    assert n_passes > 3 and max(seen) <= 34
    loss.backward()
    assert sorted(seen[n_passes:]) == sorted(seen[:n_passes])
    seen.clear()
    with torch.no_grad():
        loss_of(system)
    assert not seen  # the same weights: known from the step
    system.passages.cache.outdate()
    with torch.no_grad():
        loss_of(system)
    assert 34 < max(seen) <= 64


def test_a_frozen_passage_encoder_is_encoded_once() -> None:
    system, seen = retriever(17, dropout=0.3, train_passage_encoder=False), []
    system.passage_encoder.register_forward_hook(lambda module, args, output: seen.append(output))
    loss = loss_of(system)
    n_passes = len(seen)
    loss.backward()
    assert len(seen) == n_passes and not any(output.requires_grad for output in seen)
    assert all(part.grad is None for part in system.passage_encoder.parameters())
    assert any(part.grad is not None for part in system.question_encoder.parameters())


def test_frozen_word_embeddings_stay_without_gradient() -> None:
    plain, cached = retriever(0), retriever(64)
    for system in (plain, cached):
        system.passage_encoder.freeze_word_embeddings()
    wanted = gradients(plain, partial(loss_of, plain))
    assert_same(gradients(cached, partial(loss_of, cached)), wanted)
    assert "passage_encoder.model.embeddings.word_embeddings.weight" not in wanted


# Several ranks


class _Loss(nn.Module):
    def __init__(self, system: DenseRetriever):
        super().__init__()
        self.system = system

    def forward(self, rows: Tensor) -> Tensor:
        return loss_of(self.system, rows)


def steps_of(rank: int) -> tuple[int, int, list[dict[str, Any]]]:
    """How many gradients arrived, at how many weights, and the gradients of both steps."""
    system = retriever(23, dropout=0.3, tied=True)  # one set of weights behind questions and passages: the harder case
    checkpoint_layers(system.passage_encoder)
    model = DistributedDataParallel(_Loss(system), broadcast_buffers=False)
    fired: list[str] = []
    for name, part in system.named_parameters():
        part.register_post_accumulate_grad_hook(lambda _, name=name: fired.append(name))  # type: ignore[misc]
    found = []
    for _ in range(2):  # a second step fails where the first left a bucket open
        found.append(gradients(system, lambda: model(ROWS[rank : rank + 2]), seed=rank))
    return len(fired), len(set(fired)), [{k: v.tolist() for k, v in step.items()} for step in found]


def test_two_ranks_average_the_gradients_of_both(tmp_path: Path) -> None:
    parts = on_ranks(2, steps_of, tmp_path)
    # The same weights and passes without DistributedDataParallel and without making anything again.
    plain = retriever(0, 0.3, tied=True)
    plain.passages.tokens_per_pass = 23
    alone = [gradients(plain, partial(loss_of, plain, ROWS[rank : rank + 2]), rank) for rank in (0, 1)]
    for n_fired, n_weights, steps in parts:
        assert n_fired == 2 * n_weights
        for step in steps:
            assert step.keys() == alone[0].keys()
            for name in step.keys() - {"loss", "next random number"}:
                mean = (alone[0][name] + alone[1][name]) / 2
                torch.testing.assert_close(torch.tensor(step[name]), mean, rtol=1e-5, atol=1e-6, msg=name)


# Layers


def reader() -> nn.Module:
    torch.manual_seed(5)
    small = MiniLMReader(
        ReaderConfig(
            encoder_layers=(0, 1, 2),
            decoder_layers=(0, 1),
            vocab=61,
            dim=28,
            heads=7,
            inner_dim=31,
            max_positions=41,
            pad_id=0,
            start_id=1,
            end_id=3,
        )
    )
    with torch.no_grad():
        for part in (*small.parameters(), small.word_embeddings, small.head):
            part.add_(torch.randn_like(part) * 0.3)
    return small.train()


def bart(dropout: float) -> nn.Module:
    torch.manual_seed(5)
    return Seq2SeqGenerator(
        BartForConditionalGeneration(
            bart_config(
                61,
                layers=(3, 2),
                pad=0,
                bos=1,
                eos=3,
                max_position_embeddings=41,
                dropout=dropout,
                attention_dropout=dropout,
                attn_implementation="eager",
            )
        )
    ).train()


def t5(dropout: float) -> nn.Module:
    torch.manual_seed(5)
    return Seq2SeqGenerator(
        T5ForConditionalGeneration(
            t5_config(
                61,
                layers=3,
                d_kv=5,
                d_ff=36,
                dropout=dropout,
                num_decoder_layers=2,
                pad_token_id=0,
                eos_token_id=3,
                attn_implementation="eager",
            )
        )
    ).train()


def reading(generator: Any, n: int = 5, context_len: int = 37, target_len: int = 3) -> Tensor:
    """-log p of random targets after random contexts, `start question end passage end` with padding."""
    draw = torch.Generator().manual_seed(17)
    ids = torch.randint(4, 61, (n, context_len), generator=draw)
    ids[:, 0], ids[:, 7], ids[:, -1] = 1, 3, 3
    mask = torch.arange(context_len) < torch.tensor([37, 31, 29, 23, 19])[:n, None]
    labels = torch.randint(4, 61, (n, target_len), generator=draw)
    inputs = torch.cat([torch.full((n, 1), generator.decoder_start_token_id), labels[:, :-1]], 1)
    hidden, _ = generator.decode(inputs, generator.encode(ids, mask), mask)
    return nn.functional.cross_entropy(generator.logits(hidden).flatten(0, 1), labels.flatten())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "reader": reader,
    "bart": partial(bart, 0.0),
    "bart with dropout": partial(bart, 0.2),
    "t5": partial(t5, 0.0),
    "t5 with dropout": partial(t5, 0.2),
}


@pytest.mark.parametrize("name", MODELS)
def test_checkpointed_layers_give_the_same_bits_and_keep_less(name: str) -> None:
    plain, checkpointed = MODELS[name](), MODELS[name]()
    checkpoint_layers(checkpointed)
    wanted = gradients(plain, partial(reading, plain))
    assert_same(gradients(checkpointed, partial(reading, checkpointed)), wanted)
    if "dropout" in name:
        assert not torch.equal(wanted["loss"], gradients(plain, partial(reading, plain), seed=4)["loss"])
    ratio = most_kept(partial(reading, checkpointed), checkpointed) / most_kept(partial(reading, plain), plain)
    assert ratio < 0.65, ratio


@pytest.mark.parametrize("name", ["reader", "bart", "t5"])
def test_checkpointed_models_decode_as_before(name: str) -> None:
    """Token by token with a cache, which checkpointed layers could not fill."""
    plain, checkpointed = MODELS[name]().eval(), MODELS[name]().eval()
    checkpoint_layers(checkpointed)
    with torch.no_grad():
        assert torch.equal(reading(plain), reading(checkpointed))
        hidden = []
        for model in (plain, checkpointed):
            generator: Any = model
            ids = torch.tensor([[1, 9, 3, 11, 12, 13, 3]])
            memory, cache = generator.encode(ids, ids > 0), None
            for token in (1, 11, 12):
                states, cache = generator.decode(torch.tensor([[token]]), memory, ids > 0, cache)
            hidden.append(states)
        assert torch.equal(*hidden)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_encoders_give_the_same_bits_alone_and_within_passes(dropout: float) -> None:
    wanted = gradients(plain := retriever(0, dropout), partial(loss_of, plain))
    for tokens in (0, 64):
        system = retriever(tokens, dropout)
        for encoder in (system.question_encoder, system.passage_encoder):
            checkpoint_layers(encoder)
        assert_same(gradients(system, partial(loss_of, system)), wanted)


def test_an_architecture_without_checkpointing() -> None:
    encoder = TextEncoder(nn.Linear(2, 3), "mean", normalize=True)
    with pytest.raises(OpenBookError, match=r"cannot be checkpointed \(trainer.checkpointing\): got Linear.*=false"):
        checkpoint_layers(encoder)


def test_inside_another_recomputation() -> None:
    weight = torch.randn(3, 3, requires_grad=True)

    def inner(x: Tensor) -> Tensor:
        return (x @ weight).tanh()

    def outer(x: Tensor) -> Tensor:
        return recomputed(inner, recomputed(inner, x)).sin()

    x = torch.randn(2, 3)
    (wanted,) = torch.autograd.grad(inner(inner(x)).sin().sum(), weight)
    (found,) = torch.autograd.grad(recomputed(outer, x).sum(), weight)
    assert torch.equal(found, wanted)


# From a configuration


@pytest.mark.parametrize(
    "words",
    [["retriever.train_passage_encoder=false"], ["objective=closed_book"], ["retriever.kind=bm25"]],
)
def test_parts_of_a_gradient_that_is_not_there(words: list[str]) -> None:
    with pytest.raises(OpenBookError, match=r"no passage is encoded with a gradient.*tokens_per_backward\): got 512"):
        load_experiment("rag_token", ["retriever.tokens_per_backward=512", *words])


def test_fewer_tokens_than_none() -> None:
    with pytest.raises(OpenBookError, match=r"\(retriever.tokens_per_backward\): got -1, expected 0 or more"):
        load_experiment("rag_token", ["retriever.tokens_per_backward=-1"])


@pytest.mark.parametrize("objective", ["rag_token", "dpr"])
def test_both_keys_reach_the_models(objective: str, small_system: SmallSystem, tmp_path: Path) -> None:
    config = small_system.config(
        tmp_path / "run", f"objective={objective}", "trainer.checkpointing=true", "retriever.tokens_per_backward=61"
    )
    made: Any = setup_models.dpr_module if objective == "dpr" else setup_models.rag_module
    module = made(config, setup_data.parts(config), None)
    dense = cast(DenseRetriever, module.retriever)
    assert dense.passages.tokens_per_backward == 61
    models = [dense.question_encoder.model, dense.passage_encoder.model]
    if objective != "dpr":
        models.append(module.generator.model)  # type: ignore[union-attr, arg-type]
    assert all(any(getattr(part, "gradient_checkpointing", False) for part in model.modules()) for model in models)
    assert np.isfinite(dense.passages.encode(torch.tensor([3, 5])).detach().numpy()).all()


def test_a_run_gives_the_same_numbers(
    small_system: SmallSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning, refreshes and a generator with dropout included."""
    monkeypatch.setattr(
        "openbook.models.seq2seq.absorbing_pays", lambda *_: False
    )  # a checkpointed decoder never absorbs
    found = []
    for name, words in {
        "plain": [],
        "again": ["trainer.checkpointing=true", "retriever.tokens_per_backward=4096"],
    }.items():
        (tmp_path / name).mkdir()
        run = train(
            small_system.config(tmp_path / name / "run", "retriever.dropout=0.1", "generator.dropout=0.1", *words)
        )
        found.append([column(run, key) for key in ("train/nll", "train/grad_norm", "validation/f1")])
    assert found[0] == found[1]
    assert len(found[0][0]) == 6
