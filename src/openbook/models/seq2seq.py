"""transformers' encoder-decoders (BART, T5, ...) as a Generator, and loading any generator."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from openbook.config.models import MINILM, GeneratorConfig
from openbook.errors import OpenBookError
from openbook.models.attention import absorbing_pays, cache_over, cross_attentions, shared, use_implementation
from openbook.models.decoder_only.known_by import is_decoder_only
from openbook.models.decoder_only.model import DecoderOnlyGenerator
from openbook.models.lora import add_adapters, merged, quantization
from openbook.models.passes.packed import packed, packing_of, packs
from openbook.models.pretrained import load_weights, model_config, model_facts, model_folder, set_dropout
from openbook.models.small_reader.model import MiniLMReader

# Context tokens, padding included, that go through the encoder at once when nothing is trained: enough for full speed
# on a CPU, while activations take what a few contexts need.
TOKENS_PER_PIECE = 2048


class Seq2SeqGenerator(nn.Module):
    """A transformers encoder-decoder (BART, T5 and the like) behind these calls.

    It attends by models/attention. Without gradients it encodes in pieces, and memory is there once per context,
    whatever the number of beams. A model whose attention cannot be replaced gets its memory repeated for every beam.
    """

    model: Any  # nn.Module's own typing knows no attribute of the models inside

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        config: Any = self.model.config
        names = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
        start, eos, pad = (getattr(config, name, None) for name in names)  # PLBart's has no place for the first
        if isinstance(eos, list):  # any of them ends an answer; the first is what is written and waited for
            eos = eos[0] if eos else None
        if start is None or eos is None or pad is None:
            raise OpenBookError(
                "the generator's config.json lacks special tokens",
                expected="three token ids",
                got=f"decoder_start_token_id {start}, eos_token_id {eos}, pad_token_id {pad}",
            )
        self.decoder_start_token_id = int(start)
        self.eos_token_id = int(eos)
        self.pad_token_id = int(pad)
        self.first_token_id: int | None = None  # of every answer, by the tokenizer's convention for targets
        umt5 = config.model_type == "umt5"  # it shapes cross-attention's keys by the number of the decoder's rows
        self.shared_layers = 0 if umt5 else cross_attentions(model)
        # T5 with tied embeddings and UMT5 shrink the decoder's output before the head, which must be linear here.
        scaled = getattr(config, "scale_decoder_outputs", umt5)
        self.scale = float(config.d_model**-0.5) if scaled else 1.0

    @property
    def head_weight(self) -> Tensor:
        return self.model.get_output_embeddings().weight

    @property
    def head_bias(self) -> Tensor | None:
        bias = getattr(self.model, "final_logits_bias", None)
        return None if bias is None else bias[0]

    def encode(self, context_ids: Tensor, context_mask: Tensor) -> Tensor:
        encoder = self.model.get_encoder()
        if torch.is_grad_enabled():
            return encoder(input_ids=context_ids, attention_mask=context_mask, use_cache=False).last_hidden_state
        size = len(context_ids) if context_ids.is_cuda else max(1, TOKENS_PER_PIECE // context_ids.shape[1])
        pieces = zip(context_ids.split(size), context_mask.split(size), strict=True)
        with self._attention():
            done = [encoder(input_ids=ids, attention_mask=mask).last_hidden_state for ids, mask in pieces]
        return torch.cat(done) if len(done) > 1 else done[0]

    def decode(
        self, decoder_input_ids: Tensor, memory: Tensor, context_mask: Tensor, cache: Any = None
    ) -> tuple[Tensor, Any]:
        if torch.is_grad_enabled():
            absorbs = self.shared_layers and absorbing_pays(self.model, decoder_input_ids.shape[1], memory.shape[1])
            output = self.model.get_decoder()(
                input_ids=decoder_input_ids,
                encoder_hidden_states=memory,
                encoder_attention_mask=context_mask,
                past_key_values=cache_over(memory, self.shared_layers) if absorbs else None,
                use_cache=False,
            )
            return output.last_hidden_state * self.scale, None
        mask = context_mask.bool()[:, None, None]
        if not self.shared_layers:
            beams = decoder_input_ids.shape[0] // memory.shape[0]
            memory, mask = memory.repeat_interleave(beams, 0), context_mask.repeat_interleave(beams, 0)
        if cache is None:
            absorb = self.shared_layers and decoder_input_ids.shape[1] == 1
            cache = cache_over(memory, self.shared_layers if absorb else 0)
        with self._attention():
            output = self.model.get_decoder()(
                input_ids=decoder_input_ids,
                encoder_hidden_states=memory,
                encoder_attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
            )
        return output.last_hidden_state * self.scale, cache

    @property
    def packs(self) -> bool:
        """Whether `packed_hidden` can be asked here and now."""
        return packs(self.model)

    def packed_hidden(self, context_ids: Tensor, lengths: np.ndarray, decoder_input_ids: Tensor) -> Tensor:
        """The decoder's states [n, target_len, dim], as `encode` and `decode` have them, of n >= 2 contexts that stand
        one behind the other in context_ids [total] (models/passes/packed). lengths [n], on the CPU; decoder_input_ids
        [n, target_len]."""
        encoder, device = self.model.get_encoder(), context_ids.device
        answers = packing_of(np.full(len(lengths), decoder_input_ids.shape[1]), device)
        with packed(packing_of(lengths, device), encoder, answers):
            memory = encoder(input_ids=context_ids[None], use_cache=False).last_hidden_state
            output = self.model.get_decoder()(
                input_ids=decoder_input_ids, encoder_hidden_states=memory, use_cache=False
            )
        return output.last_hidden_state * self.scale

    def reorder(self, cache: Any, rows: Tensor) -> Any:
        (cache.self_attention_cache if self.shared_layers else cache).reorder_cache(rows)
        return cache

    def _attention(self) -> AbstractContextManager[None]:
        return shared(self.model) if self.shared_layers else nullcontext()

    def logits(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.head_weight, self.head_bias)

    def save_pretrained(self, folder: str | Path) -> None:
        """A folder as transformers writes it, adapters merged into the weights."""
        merged(self.model).save_pretrained(folder)


def load_generator(
    name: str, dropout: float, seed: int, settings: GeneratorConfig | None = None
) -> Seq2SeqGenerator | DecoderOnlyGenerator | MiniLMReader:
    """A generator from a folder (safetensors only) or a hub name; 'minilm' makes the small reader, not yet warmed up.

    The folder's config.json tells a saved small reader from a transformers model, and a decoder-only one from others.
    settings: adapters and the precision of the weights under them.
    """
    path = Path(model_folder(name))
    if name == MINILM:
        return MiniLMReader.from_minilm(path, seed=seed)
    written = model_facts(name)
    if written.get("model_type") == "minilm_reader":
        return MiniLMReader.from_pretrained(path)
    decoder_only = is_decoder_only(name)
    if path.exists() and not (decoder_only or written.get("is_encoder_decoder")):
        raise OpenBookError(
            "not a model that writes answers",
            where="generator.model",
            got=f"{path} of type {written.get('model_type')}, architectures {written.get('architectures')}",
            expected="an encoder-decoder (BART, T5) or a causal language model (Llama, Qwen) with its head",
        )
    config = model_config(name)
    set_dropout(config, dropout)
    # M2M100's default leaves out whole layers at random, whose gradients several ranks would wait for.
    config.update({name: 0.0 for name in ("encoder_layerdrop", "decoder_layerdrop") if hasattr(config, name)})
    kind = AutoModelForCausalLM if decoder_only else AutoModelForSeq2SeqLM
    settings = settings or GeneratorConfig()
    quantized = quantization(settings.quantize)
    model = load_weights(kind, "generator", name, "generator.model", config, quantized=quantized)
    add_adapters(model, settings.lora, "generator.lora", seed)
    if decoder_only:
        return DecoderOnlyGenerator(model)
    use_implementation(model)
    return Seq2SeqGenerator(model)
