"""What a generator must be able to do for its configuration, and how its weights are held."""

from typing import Any

from openbook.config.checks import longest_answer
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.models.all_passages.cross_mass import has_cross_attention
from openbook.models.decoder_only.joined_prompt import passage_fields
from openbook.models.generator import Generator
from openbook.models.lora import has_adapters
from openbook.models.passes.cast_weights import hold_in_bf16
from openbook.models.small_reader.model import MiniLMReader
from openbook.setup.inputs.data import Parts
from openbook.utils.console import say


def check_reader_of_all(config: Config, generator: Generator, parts: Parts) -> None:
    """Raise OpenBookError where the generator cannot read all passages at once, or not as the objective needs it."""
    model: Any = generator
    if config.objective == "attention_distillation" and not has_cross_attention(model):
        raise OpenBookError(
            "the generator has no cross-attention that could be looked at",
            where="objective",
            got="attention_distillation",
            expected="a generator like BART, T5 or the small reader",
            action="Set objective=emdr2, perplexity_distillation or leave_one_out.",
        )
    if parts.prompt is not None and not parts.prompt.encoded:
        passage_fields(parts.prompt)
        passages = max(config.retriever.n_docs, config.evaluate.n_docs)
        needed = passages * config.data.max_context_tokens + longest_answer(config)[1]
        if needed > (most := getattr(model.model.config, "max_position_embeddings", None) or needed):
            raise OpenBookError(
                "the generator cannot read so many passages at once",
                where="generator.reads",
                got=f"{passages} passages of at most {config.data.max_context_tokens} tokens, and the answer",
                expected=f"at most {most} tokens",
                action="Lower data.max_context_tokens or retriever.n_docs.",
            )


def in_bf16(generator: Generator) -> None:
    """Hold a transformers model's weights in bf16, and say so; OpenBookError for the small reader."""
    if isinstance(generator, MiniLMReader):
        raise OpenBookError(
            "the small reader is small, and its weights are fp32",
            where="generator.weights",
            got="bf16",
            expected="fp32, or a transformers model as generator.model",
        )
    module: Any = generator
    hold_in_bf16(module)
    say("the generator's weights are held in bf16" + (", its adapters in fp32" * has_adapters(module.model)))
