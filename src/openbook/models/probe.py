"""One small batch through a model that has just been loaded: what it would do wrong in training is found before it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from openbook.data.encoder_inputs import EncoderFormat
from openbook.data.inputs import SpecialIds
from openbook.data.prompts import Prompt
from openbook.errors import OpenBookError
from openbook.models.decoder_only.model import DecoderOnlyGenerator
from openbook.models.encoders import TextEncoder
from openbook.models.generator import Generator
from openbook.utils.console import say

# Largest difference of two logits (or embeddings) that are the same but for the order of their sums, as a share of the
# largest of them.
TOLERANCE = 1e-4

# Weights in 8 bits are multiplied with inputs in 8 bits, whose outliers depend on what else is in the batch.
QUANTIZED_TOLERANCE = 0.05


def probe_generator(
    generator: Generator,
    tokenizer: Any,
    special: SpecialIds | Prompt,
    *,
    max_context: int,
    max_target: int,
    limit: str = "data.max_target_tokens",
) -> None:
    """OpenBookError where the generator cannot do what training and decoding ask of it: know every token, end answers
    as they are written, give its own model's logits (alone, for two targets over one context, and token by token), and
    read the longest inputs. max_context, max_target: tokens; limit: the key of the
    second."""
    where = "generator.model"
    _check_vocabulary(generator.head_weight.shape[0], tokenizer, where)
    if special.end != generator.eos_token_id:
        raise OpenBookError(
            "the tokenizer ends an answer with another token than the generator waits for (eos_token_id)",
            where=where,
            got=f"token {special.end} ({tokenizer.convert_ids_to_tokens(special.end)!r})",
            expected=f"{generator.eos_token_id} ({tokenizer.convert_ids_to_tokens(generator.eos_token_id)!r}), by its "
            "config.json",
            action="Make the two agree in the model's folder.",
        )
    module: nn.Module = generator  # type: ignore[assignment]
    check_finite(module, where)
    _check_first_token(generator, tokenizer, where)
    own = getattr(generator, "model", None)
    same = partial(_same, tolerance=QUANTIZED_TOLERANCE if getattr(own, "is_quantized", False) else TOLERANCE)
    with _trial(module, where, "run as it is used here"), torch.no_grad():
        device = generator.head_weight.device
        ids, mask = _padded(generator.head_weight.shape[0], (12, 7), special.pad, device)
        targets = _ids(generator.head_weight.shape[0], 5, device)[:4].repeat(2, 1)
        targets[:, 0], targets[1, 1:] = generator.decoder_start_token_id, targets[1, 1:].flip(0)
        memory = generator.encode(ids, mask)
        both = generator.logits(generator.decode(targets.repeat(2, 1), memory, mask)[0])
        steps, cache = [], None
        for place in range(targets.shape[1]):
            hidden, cache = generator.decode(targets.repeat(2, 1)[:, place : place + 1], memory, mask, cache)
            steps.append(generator.logits(hidden))
        same(torch.cat(steps, 1), both, where, "decoding token by token gives other logits than all at once")
        if own is not None:
            theirs = _own_logits(
                generator, ids.repeat_interleave(2, 0), mask.repeat_interleave(2, 0), targets.repeat(2, 1)
            )
            same(both, theirs, where, "its logits are not a linear head's on its decoder, as trained here")
            with torch.enable_grad():
                trained = generator.logits(generator.decode(targets, generator.encode(ids, mask), mask)[0])
            same(trained, both[[0, 3]], where, "it gives other logits in training than in decoding")
    with _trial(module, where, f"read contexts of {max_context} tokens (data.max_context_tokens)"), torch.no_grad():
        ids, mask = _padded(generator.head_weight.shape[0], (max_context,), special.pad, device)
        memory = generator.encode(ids, mask)
    with _trial(module, where, f"write answers of {max_target} tokens ({limit})"), torch.no_grad():
        targets = _ids(generator.head_weight.shape[0], max_target, device)[None]
        written = generator.logits(generator.decode(targets, memory, mask)[0])
        if isinstance(generator, DecoderOnlyGenerator):  # positions and windows of the longest texts
            theirs = _own_logits(generator, ids, mask, targets)
            same(written, theirs, where, "behind the longest context it gives other logits than in one piece with it")


def _own_logits(generator: Any, ids: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    """[n, target_len, vocab] of transformers' own forward pass; of a decoder-only model on each text without
    padding."""
    if not isinstance(generator, DecoderOnlyGenerator):
        mask = mask.long()
        return generator.model(input_ids=ids, attention_mask=mask, decoder_input_ids=targets, use_cache=False).logits
    texts = [
        torch.cat([row[there.bool()], answer])[None] for row, there, answer in zip(ids, mask, targets, strict=True)
    ]
    each = [generator.model(input_ids=text, use_cache=False).logits[0, -targets.shape[1] :] for text in texts]
    return torch.stack(each)


def probe_encoder(
    encoder: TextEncoder, tokenizer: Any, style: EncoderFormat, where: str, *, limit: str, longest: int
) -> None:
    """OpenBookError where the encoder does not know every token, gives a padded input another embedding than the same
    alone, or cannot read the longest input: `longest` tokens, by the key `limit`."""
    model: Any = encoder.model
    rows = model.get_input_embeddings().num_embeddings
    _check_vocabulary(rows, tokenizer, where)
    check_finite(encoder, where)
    with _trial(encoder, where, "encode a padded batch"), torch.no_grad():
        ids, mask = _padded(rows, (12, 7), style.pad, next(encoder.parameters()).device, style.pads_left)
        alone = torch.cat([encoder(ids[:1], mask[:1]), encoder(ids[1:][mask[1:]][None], None)])
        _same(encoder(ids, mask), alone, where, "a text has another embedding beside a longer one than alone")
    with _trial(encoder, where, f"read {longest} tokens ({limit})"), torch.no_grad():
        encoder(*_padded(rows, (longest,), style.pad, ids.device))


def freeze_unreached(module: Any, where: str) -> None:
    """Take weights that no answer (of a generator) or embedding (of an encoder) depends on out of training: LED's
    global attention is such. Several ranks would wait for the gradient of each."""
    encodes = isinstance(module, TextEncoder)
    vocabulary = module.model.get_input_embeddings().num_embeddings if encodes else module.head_weight.shape[0]
    with _trial(module, where, "be trained"):
        ids, mask = _padded(vocabulary, (12, 7), 0, next(module.parameters()).device)
        if encodes:
            module(ids, mask)[:, 0].sum().backward()
        else:
            hidden, _ = module.decode(ids[:, :4], module.encode(ids, mask), mask)
            module.logits(hidden).float().logsumexp(-1).sum().backward()
    unreached = [name for name, value in module.named_parameters() if value.requires_grad and value.grad is None]
    for name in unreached:
        module.get_parameter(name).requires_grad_(False)
    module.zero_grad(set_to_none=True)
    if unreached:
        say(f"{where}: {len(unreached)} weights that no output depends on are not trained, the first is {unreached[0]}")


def check_finite(module: nn.Module, where: str) -> None:
    """OpenBookError where a weight is NaN or infinite: training would seem to diverge at its first step."""
    # The least and the largest, which take no memory; of weights in 8 bits the scales are looked at.
    named = [(name, value.detach()) for name, value in module.named_parameters() if value.is_floating_point()]
    wrong = [name for name, value in named if value.numel() and not torch.stack(torch.aminmax(value)).isfinite().all()]
    if wrong:
        raise OpenBookError(
            "the model's folder holds weights that are not numbers",
            where=where,
            got=f"NaN or infinity in {len(wrong)} of {len(named)} weights, the first is {wrong[0]}",
            expected="finite weights",
            action="The folder is damaged, or of a training that diverged: copy it again, or name another.",
        )


def _check_first_token(generator: Any, tokenizer: Any, where: str) -> None:
    """forced_bos_token_id says what the model's answers begin with; its tokenizer must write them so."""
    model = getattr(generator, "model", None)
    settings = (getattr(model, "generation_config", None), getattr(model, "config", None))
    forced = next((n for one in settings if (n := getattr(one, "forced_bos_token_id", None)) is not None), None)
    if forced is not None and forced != generator.first_token_id:
        first = generator.first_token_id
        raise OpenBookError(
            "the model forces its answers to begin with another token than its tokenizer writes",
            where=where,
            got="none" if first is None else f"token {first} ({tokenizer.convert_ids_to_tokens(first)!r})",
            expected=f"{forced} ({tokenizer.convert_ids_to_tokens(forced)!r}), forced_bos_token_id",
            action="Make the two agree: set the tokenizer's target language, or remove forced_bos_token_id.",
        )


def _check_vocabulary(rows: int, tokenizer: Any, where: str) -> None:
    if len(tokenizer) > rows:
        raise OpenBookError(
            "the tokenizer has tokens that the model has no embedding for",
            where=where,
            got=f"{len(tokenizer)} tokens, {rows} embeddings; the first without one is "
            f"{tokenizer.convert_ids_to_tokens(rows)!r}",
            expected="an embedding for every token",
            action="Resize the model's embeddings (resize_token_embeddings) and save it again.",
        )


@contextmanager
def _trial(module: nn.Module, where: str, what: str) -> Iterator[None]:
    """In eval mode and with random states put back; whatever the model raises is one OpenBookError."""
    training = module.training
    module.eval()
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
            torch.manual_seed(0)
            yield
    except OpenBookError:
        raise
    except Exception as error:  # of any kind: it is the model's own code
        said = str(error).strip().split("\n", 1)[0][:200]
        raise OpenBookError(f"the model cannot {what}", where=where, got=f"{type(error).__name__}: {said}") from error
    finally:
        module.train(training)


def _ids(vocabulary: int, length: int, device: torch.device) -> Tensor:
    """Token ids [length], none of them among the first hundred, where special tokens lie, if there are more."""
    return torch.randint(min(100, vocabulary // 2), vocabulary, (length,)).to(device)


def _padded(
    vocabulary: int, lengths: tuple[int, ...], pad: int, device: torch.device, left: bool = False
) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(lengths), max(lengths)), pad, device=device)
    mask = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
    for row, length in enumerate(lengths):
        ids[row, :length] = _ids(vocabulary, length, device)
    return (ids.flip(1), mask.flip(1)) if left else (ids, mask)


def _same(one: Tensor, other: Tensor, where: str, what: str, tolerance: float = TOLERANCE) -> None:
    one, other = one.float(), other.float()
    # Logits of tokens that a model rules out altogether are very low on both sides.
    counted = (one > -1e4) | (other > -1e4)
    difference = float((one - other)[counted].abs().max())
    largest = max(1.0, float(other[counted].abs().max()))
    if not difference <= tolerance * largest:
        raise OpenBookError(
            f"the model cannot be used: {what}",
            where=where,
            got=f"a difference of {difference:.3g}",
            expected=f"at most {tolerance * largest:.1g}",
            action="Use another model; this one computes its outputs in a way that is not known here.",
        )
