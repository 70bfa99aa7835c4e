"""Which prompt is chosen, what a chat template becomes, and what stands in for tokens that a tokenizer lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openbook.data.prompts import Prompt
from openbook.errors import OpenBookError
from openbook.models.decoder_only.prompting import prompt_of
from openbook.models.encoders import load_tokenizer
from tests.decoder_only import CHATML, causal_folder


def shown(tokenizer: Any, prompt: Prompt) -> str:
    fields = [f"{{{field}}}" for field in prompt.fields]
    spaces = [" " if field in prompt.spaced else "" for field in prompt.fields]
    parts = [tokenizer.decode(list(words)) for words in prompt.words]
    inner = "".join(a + space + b for a, space, b in zip(parts, spaces, fields, strict=False))
    return inner + parts[-1]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda: " ".join(capsys.readouterr().out.split())


def test_a_model_whose_answers_end_as_its_chats_do_is_asked_in_a_chat(
    small_data: Path, tmp_path: Path, said: Any
) -> None:
    folder = causal_folder(tmp_path, small_data, chat=True)
    tokenizer = load_tokenizer(str(folder))
    for setting in ("auto", "chat"):
        prompt = prompt_of(tokenizer, str(folder), setting)
        wanted = "<|im_start|>user\n{title}: {passage}\n\n{question}<|im_end|>\n<|im_start|>assistant\n"
        assert shown(tokenizer, prompt) == wanted
        assert prompt.end == tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert "generator.prompt (chat)" in said()
    prompt = prompt_of(tokenizer, str(folder), "chat:Say it. {passage}\\n{question}", "Be short.")
    wanted = "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nSay it. {passage}\n{question}<|im_end|>\n"
    assert shown(tokenizer, prompt) == wanted + "<|im_start|>assistant\n"
    assert "titles are not read" in said()
    assert shown(tokenizer, prompt_of(tokenizer, str(folder), closed=True)) == (
        "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_other_models_read_the_plain_prompt(small_data: Path, tmp_path: Path, said: Any) -> None:
    folder = causal_folder(tmp_path, small_data, pad=False)
    tokenizer = load_tokenizer(str(folder))
    prompt = prompt_of(tokenizer, str(folder))
    assert shown(tokenizer, prompt) == "{title}: {passage}\n\nQuestion: {question}\nAnswer:"
    assert prompt.pad == prompt.end == tokenizer.eos_token_id
    told = said()
    assert "no padding token: <|endoftext|> stands in" in told and "(plain)" in told
    tokenizer.chat_template = (
        CHATML  # a base model: its chat's answers end with a token that it has not learned to write
    )
    assert prompt_of(tokenizer, str(folder)) == prompt
    assert "it learns <|im_end|>" not in said()
    assert prompt_of(tokenizer, str(folder), "chat").end == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert "own answers end with ['<|endoftext|>']: it learns <|im_end|>" in said()


def test_what_cannot_be_a_prompt(small_data: Path, tmp_path: Path) -> None:
    folder = str(causal_folder(tmp_path, small_data))
    tokenizer = load_tokenizer(folder)
    with pytest.raises(OpenBookError, match=r"the tokenizer's chat template cannot be used \(generator\.prompt\)"):
        prompt_of(tokenizer, folder, "chat")
    with pytest.raises(OpenBookError, match=r"only a chat has a system's message \(generator\.system\)"):
        prompt_of(tokenizer, folder, "auto", "Be short.")
    tokenizer.chat_template = "{{ raise_exception('no system') }}"
    with pytest.raises(OpenBookError, match="no system"):
        prompt_of(tokenizer, folder, "chat", "Be short.")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(OpenBookError, match=r"nothing ends the assistant's answer"):
        prompt_of(tokenizer, folder, "chat")
    tokenizer.chat_template, tokenizer.eos_token = None, None
    with pytest.raises(OpenBookError, match=r"no end-of-sequence token"):
        prompt_of(tokenizer, folder, "plain")


def test_a_chat_is_the_same_on_every_day(small_data: Path, tmp_path: Path) -> None:
    folder = causal_folder(tmp_path, small_data, chat=True)
    tokenizer = load_tokenizer(str(folder))
    plain = shown(tokenizer, prompt_of(tokenizer, str(folder), "chat"))
    for before in ("", "  {% if true %}{% endif %}"):  # blanks before a block are dropped, with a date or without
        tokenizer.chat_template = before + CHATML
        assert shown(tokenizer, prompt_of(tokenizer, str(folder), "chat")) == plain
    tokenizer.chat_template = "{{ 'It is ' + strftime_now('%d %b %Y') + '. ' }}" + CHATML
    assert shown(tokenizer, prompt_of(tokenizer, str(folder), "chat")) == "It is 26 Jul 2024. " + plain


def test_a_space_before_the_end_of_an_answer_is_not_its_end(small_data: Path, tmp_path: Path) -> None:
    folder = causal_folder(tmp_path, small_data)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    for setting in ("auto", "chat"):  # it ends as the model's own answers do, so auto is the chat
        prompt = prompt_of(tokenizer, str(folder), setting)
        assert prompt.end == tokenizer.eos_token_id
        assert shown(tokenizer, prompt) == "[INST] {title}: {passage}\n\n{question} [/INST]"
