"""transformers' decoder-only models (Llama, Qwen, Mistral, GPT-2, Phi, ...) as a Generator.

A context is the prompt up to its last token, which is the decoder's start token (see data/prompts.py):

    context               p_1 .. p_{L-1}
    decoder_input_ids     p_L  y_1 .. y_{T-1}
    hidden, labels        y_1  y_2 .. y_T

While gradients are recorded, context and answer are one causal forward pass, the answer right behind its own context
and padding behind both: nothing real comes after padding, so that no mask is needed. Otherwise contexts are read
once, and their keys and values serve all beams and targets (shared_prefix.py). The probabilities are the model's own
in both ways: log p(y_t | p, y_<t) of the text without padding.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from openbook.data.prompts import Prompt
from openbook.errors import OpenBookError
from openbook.models.attention import use_implementation
from openbook.models.decoder_only.shared_prefix import Prefix, SharedPrefix
from openbook.models.lora import merged

# Context tokens, padding included, that are read at once when nothing is trained: see models/seq2seq.py.
TOKENS_PER_PIECE = 2048

LAYER_KINDS = {"full_attention", "sliding_attention"}


class DecoderOnlyGenerator(nn.Module):
    """A transformers causal language model behind the calls of models/generator.py.

    Its first and last tokens are those of a prompt: see `follow`. Contexts may be padded on either side.
    """

    model: Any  # nn.Module's own typing knows no attribute of the models inside

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        config: Any = self.model.config
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if not kinds <= LAYER_KINDS:
            raise OpenBookError(
                "the model has layers that keep something else of a context than keys and values",
                where="generator.model",
                got=", ".join(sorted(kinds)),
                expected=" or ".join(sorted(LAYER_KINDS)),
                action="Use a model of plain attention layers.",
            )
        self.window: int | None = getattr(config, "sliding_window", None)
        self.mixed = len(kinds) > 1  # then every kind is given its own mask
        if kinds == {"full_attention"} and getattr(config, "layer_types", None):
            self.window = None
        self.decoder_start_token_id = self.eos_token_id = self.pad_token_id = -1
        self.first_token_id: int | None = None
        # A cap on the attention's scores is known to transformers' plain function only.
        if getattr(config, "attn_logit_softcapping", None) is None:
            use_implementation(model)

    def follow(self, prompt: Prompt) -> None:
        """Start and end answers as the prompt does; a saved model says so too."""
        self.decoder_start_token_id, self.eos_token_id, self.pad_token_id = prompt.start, prompt.end, prompt.pad
        settings = (self.model.config, getattr(self.model, "generation_config", None))
        for one in settings:
            if one is not None:
                one.eos_token_id, one.pad_token_id = prompt.end, prompt.pad

    @property
    def head_weight(self) -> Tensor:
        return self.model.get_output_embeddings().weight

    @property
    def head_bias(self) -> Tensor | None:
        return self.model.get_output_embeddings().bias

    def encode(self, context_ids: Tensor, context_mask: Tensor) -> Prefix:
        """context_ids [n, context_len], context_mask True at tokens: padding on the left or on the right."""
        mask = context_mask.bool()
        order = (~mask).byte().argsort(dim=1, stable=True)  # tokens first, in their order
        ids, lengths = context_ids.gather(1, order), mask.sum(1)
        if torch.is_grad_enabled():
            return Prefix(ids, lengths)
        size = len(ids) if ids.is_cuda else max(1, TOKENS_PER_PIECE // max(1, ids.shape[1]))
        read = [
            self.model.base_model(input_ids=piece, past_key_values=DynamicCache(), use_cache=True).past_key_values
            for piece in ids.split(size)
        ]
        pieces = [[(layer.keys, layer.values) for layer in cache.layers] for cache in read]
        if len(pieces) == 1:
            return Prefix(ids, lengths, tuple(pieces[0]))
        layers = (zip(*of_layer, strict=True) for of_layer in zip(*pieces, strict=True))
        return Prefix(ids, lengths, tuple((torch.cat(keys), torch.cat(values)) for keys, values in layers))

    def decode(
        self, decoder_input_ids: Tensor, memory: Prefix, context_mask: Tensor, cache: SharedPrefix | None = None
    ) -> tuple[Tensor, SharedPrefix | None]:
        rows, target_len = decoder_input_ids.shape
        n = len(memory.ids)
        if not memory.layers:
            return self._in_one_pass(decoder_input_ids, memory), None
        if cache is None:
            cache = SharedPrefix(memory, rows // n, target_len)
        inputs = decoder_input_ids.view(n, cache.rows, target_len).transpose(1, 2)
        hidden = self.model.base_model(
            input_ids=inputs.reshape(n, -1),
            attention_mask=self._masks(cache, target_len),
            position_ids=cache.positions(target_len),
            past_key_values=cache.past,
            use_cache=True,
        ).last_hidden_state
        cache.steps += target_len
        return hidden.view(n, target_len, cache.rows, -1).transpose(1, 2).reshape(rows, target_len, -1), cache

    def reorder(self, cache: SharedPrefix, rows: Tensor) -> SharedPrefix:
        cache.reorder(rows)
        return cache

    def logits(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.head_weight, self.head_bias)

    def save_pretrained(self, folder: str | Path) -> None:
        """A folder as transformers writes it, adapters merged into the weights."""
        merged(self.model).save_pretrained(folder)

    def _in_one_pass(self, decoder_input_ids: Tensor, memory: Prefix) -> Tensor:
        """hidden [n * beams, target_len, dim] of answers that stand right behind their contexts."""
        rows, target_len = decoder_input_ids.shape
        beams = rows // len(memory.ids)
        ids, lengths = (part if beams == 1 else part.repeat_interleave(beams, 0) for part in memory[:2])
        whole = nn.functional.pad(ids, (0, target_len), value=self.pad_token_id)
        columns = lengths[:, None] + torch.arange(target_len, device=ids.device)
        whole = whole.scatter(1, columns, decoder_input_ids)
        states = self.model.base_model(input_ids=whole, use_cache=False).last_hidden_state
        return states.gather(1, columns[:, :, None].expand(-1, -1, states.shape[2]))

    def _masks(self, cache: SharedPrefix, target_len: int) -> Any:
        """As the model takes masks that are made already: one for each kind of layer where it has several."""
        everything = self._written(cache.mask(target_len))
        if self.window is None:
            return everything
        near = self._written(cache.mask(target_len, self.window))
        return {"full_attention": everything, "sliding_attention": near} if self.mixed else near

    def _written(self, mask: Tensor) -> Tensor:
        """Numbers to add where the model attends by transformers' plain function, which adds its mask."""
        if self.model.config._attn_implementation != "eager":
            return mask
        numbers = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device)
        return numbers.masked_fill(~mask, torch.finfo(numbers.dtype).min)
