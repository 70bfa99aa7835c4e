"""What stands in a generator's contexts beside question and passage: special tokens, or a prompt."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from openbook.config.models import MINILM
from openbook.config.schema import Config
from openbook.data.inputs import SpecialIds, special_ids, target_start
from openbook.data.prompts import Prompt, make_prompt, read_template
from openbook.errors import OpenBookError
from openbook.models.decoder_only.known_by import is_decoder_only
from openbook.models.decoder_only.prompting import prompt_of
from openbook.models.pretrained import model_facts
from openbook.utils.console import say


def special_of(tokenizer: Any, language: int | None) -> SpecialIds:
    """An encoder-decoder's special tokens. language: the token that contexts of a multilingual one begin with."""
    special = special_ids(tokenizer)
    return special if language is None else replace(special, start=language)


def prompt_for(config: Config, tokenizer: Any, language: int | None = None) -> Prompt | None:
    """What a decoder-only generator reads, or an encoder-decoder by a template of the user's own; None for others.
    OpenBookError where the generator reads no such prompt."""
    settings = config.generator
    if config.objective == "dpr":
        return None
    closed = config.objective == "closed_book"
    if is_decoder_only(settings.model):
        return prompt_of(tokenizer, settings.model, settings.prompt, settings.system, closed)
    if settings.prompt == "auto" and not settings.system:
        return None
    own_layout = settings.model == MINILM or model_facts(settings.model).get("model_type") == "minilm_reader"
    if own_layout or settings.system or settings.prompt.partition(":")[0] in ("plain", "chat"):
        raise OpenBookError(
            "only a decoder-only generator reads a prompt of this kind",
            where="generator.system" if settings.system else "generator.prompt",
            got=f"{settings.system or settings.prompt!r} with {settings.model}",
            expected="auto, and nothing as generator.system"
            + ("" if own_layout else "; or a template such as '{title} / {passage} // {question}'"),
        )
    needed = ["question"] if closed else ["passage", "question"]
    prompt = context_prompt(tokenizer, settings.prompt, needed, special_of(tokenizer, language))
    if "title" not in prompt.fields and not closed:
        say("titles are not read: generator.prompt has no {title}")
    return prompt


def context_prompt(tokenizer: Any, template: str, needed: Sequence[str], special: SpecialIds) -> Prompt:
    """What an encoder-decoder reads by a template: start, the template with its fields, end. special: its tokenizer's;
    answers begin and end by its own convention. OpenBookError on a template that cannot be used."""
    if "{answer}" in template:
        raise OpenBookError(
            "an encoder-decoder's context has no answer in it",
            where="generator.prompt",
            got=repr(template),
            expected="a template of {title}, {passage} and {question}, for example '{title} / {passage} // {question}'",
        )
    words, fields, spaced = read_template(template + "\n{answer}", needed)
    words[-1] = words[-1].removesuffix("\n")
    first = target_start(tokenizer)
    return make_prompt(
        tokenizer,
        words,
        fields,
        spaced,
        begin=[] if special.start is None else [special.start],
        end=special.end,
        pad=special.pad,
        first=() if first is None else (first,),
        encoded=True,
    )
