"""Which prompt a decoder-only generator reads: a template of one's own, the plain one, or the tokenizer's chat."""

from collections.abc import Sequence
from typing import Any

from openbook.data.inputs import token_ids
from openbook.data.prompts import CLOSED, PLAIN, Prompt, make_prompt, read_template
from openbook.errors import OpenBookError
from openbook.models.decoder_only.known_by import eos_ids
from openbook.utils.console import say

CHAT = "chat:"  # what a template that is the user's message of a chat begins with
MESSAGE, CLOSED_MESSAGE = "{title}: {passage}\n\n{question}", "{question}"

# Templates that would write today's date, or leave room to think aloud before the answer.
FIXED = {"date_string": "26 Jul 2024", "enable_thinking": False}
# In front of a template, in place of the function of that name that transformers gives it; the line's end is dropped.
TODAY = f"{{%- macro strftime_now(format) -%}}{FIXED['date_string']}{{%- endmacro %}}\n"
MARKS = {"title": "TITLEMARK", "passage": "PASSAGEMARK", "question": "QUESTIONMARK", "answer": "ANSWERMARK"}


def prompt_of(tokenizer: Any, name: str, setting: str = "auto", system: str = "", closed: bool = False) -> Prompt:
    """The prompt of the generator `name` by its settings (generator.prompt, generator.system), said in a line. closed:
    no passage is read. OpenBookError on a template that cannot be used, or a tokenizer without an end of answers."""
    needed = ["question", "answer"] if closed else ["passage", "question", "answer"]
    stated = eos_ids(name)
    if setting == "auto":
        setting = "chat" if tokenizer.chat_template and _chat_end(tokenizer, system) in stated else "plain"
    chat = setting == "chat" or setting.startswith(CHAT)
    if system and not chat:
        raise OpenBookError(
            "only a chat has a system's message",
            where="generator.system",
            got=f"{system!r} with generator.prompt={setting!r}",
            expected="nothing",
            action="Set generator.prompt=chat.",
        )
    if chat:
        message = setting.removeprefix(CHAT) if setting != "chat" else CLOSED_MESSAGE if closed else MESSAGE
        words, fields, spaced, behind = _chat_words(tokenizer, message, system, needed)
        begin, end = [], token_ids(tokenizer, [behind])[0][0]
    else:
        template = {"plain": CLOSED if closed else PLAIN}.get(setting, setting)
        words, fields, spaced = read_template(template, needed)
        begin, end = _begin(tokenizer), tokenizer.eos_token_id
    if end is None:
        raise OpenBookError(
            "the tokenizer has no end-of-sequence token",
            where="generator.model",
            got=name,
            expected="a token that answers end with",
            action="Set eos_token in its tokenizer_config.json.",
        )
    pad = next(one for one in (tokenizer.pad_token_id, tokenizer.unk_token_id, end) if one is not None)
    prompt = make_prompt(tokenizer, words, fields, spaced, begin=begin, end=end, pad=pad)
    _tell(tokenizer, prompt, "chat" if chat else "plain" if setting == "plain" else "own", stated)
    return prompt


def _tell(tokenizer: Any, prompt: Prompt, kind: str, stated: Sequence[int]) -> None:
    shown = "".join(
        tokenizer.decode(list(words)) + (f" {{{field}}}" if field in prompt.spaced else f"{{{field}}}" if field else "")
        for words, field in zip(prompt.words, (*prompt.fields, ""), strict=True)
    )
    end = tokenizer.convert_ids_to_tokens(prompt.end)
    lines = [f"generator.prompt ({kind}): {shown!r}, then the answer and {end}"]
    if stated and prompt.end not in stated:
        before = tokenizer.convert_ids_to_tokens(list(stated))
        lines.append(f"the model's own answers end with {before}: it learns {end}")
    if tokenizer.pad_token_id is None:
        pad = tokenizer.convert_ids_to_tokens(prompt.pad)
        lines.append(f"the tokenizer has no padding token: {pad} stands in, and is neither attended to nor learned")
    if "passage" in prompt.fields and "title" not in prompt.fields:
        lines.append("titles are not read: the prompt has no {title}")
    say("\n  ".join(lines))


def _begin(tokenizer: Any) -> list[int]:
    """What the tokenizer writes before a text of its own accord: Llama's and Gemma's begin-of-sequence, GPT-2's and
    Qwen's nothing."""
    ids, text = tokenizer("a")["input_ids"], token_ids(tokenizer, ["a"])[0]
    return list(ids[: next(n for n in range(len(ids)) if ids[n : n + len(text)] == text)])


def _chat_words(
    tokenizer: Any, message: str, system: str, needed: Sequence[str]
) -> tuple[list[str], list[str], frozenset[str], str]:
    """`read_template` of a whole chat around the user's message, and what stands behind the answer in it."""
    # The chat's own words come before the answer; these stand in for them where the message alone is checked.
    _, fields, spaced = read_template(message.replace("\\n", "\n") + "\n\n{answer}", needed)
    for field in fields:
        message = message.replace("\\n", "\n").replace(f"{{{field}}}", MARKS[field])
    shown = _rendered(tokenizer, message, system)
    places = [shown.find(MARKS[field]) for field in fields]
    if -1 in places or places != sorted(places):
        raise _unusable(tokenizer, "the user's message does not stand in it as it is")
    words, at = [], 0
    for place, field in zip(places, fields, strict=True):
        words.append(shown[at:place].removesuffix(" ") if field in spaced else shown[at:place])
        at = place + len(MARKS[field])
    return [*words, shown[at:]], fields, spaced, _behind(tokenizer, system)


def _behind(tokenizer: Any, system: str) -> str:
    """What the chat template writes behind an assistant's answer, without the space that Llama-2's puts before its
    end: answers would end with that."""
    whole = _rendered(tokenizer, "question", system, MARKS["answer"])
    behind = whole.rpartition(MARKS["answer"])[2]
    if MARKS["answer"] not in whole or not behind.strip():
        raise _unusable(tokenizer, "nothing ends the assistant's answer")
    return behind.lstrip(" ")


def _chat_end(tokenizer: Any, system: str) -> int:
    return token_ids(tokenizer, [_behind(tokenizer, system)])[0][0]


def _rendered(tokenizer: Any, message: str, system: str, answer: str = "") -> str:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": message}]
    messages += [{"role": "assistant", "content": answer}] if answer else []
    try:
        template = TODAY + tokenizer.get_chat_template()
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=not answer, **FIXED
        )
    except Exception as error:  # of the template's own code
        said = str(error).strip().split("\n", 1)[0][:200]
        raise _unusable(tokenizer, f"{type(error).__name__}: {said}") from error


def _unusable(tokenizer: Any, said: str) -> OpenBookError:
    return OpenBookError(
        "the tokenizer's chat template cannot be used",
        where="generator.prompt",
        got=said,
        expected="a template of system, user and assistant messages",
        action="Set generator.prompt=plain, or a template of your own.",
    )
