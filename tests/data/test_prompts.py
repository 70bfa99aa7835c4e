"""Prompts as token ids: decoded they are the template, cut only in the passage, and refused where they cannot be."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from openbook.batch import IGNORED_LABEL
from openbook.data.corpus import Corpus
from openbook.data.corpus_build import build_corpus
from openbook.data.prompts import PLAIN, Prompt, make_prompt, read_template
from openbook.errors import OpenBookError
from tests.decoder_only import bpe_tokenizer

PASSAGES = [("Kenya", "The capital of Kenya is Nairobi."), ("", "Nobody says where."), ("Peru (the Andes)", "Lima.")]
QUESTION = "What is the capital?"
TEMPLATES = {
    "plain": PLAIN,
    "lines": "{title}\n{passage}\nQ: {question}\nA:{answer}",
    "question first": "Question: {question}\nTitle: {title}\nPassage: {passage}\nAnswer: {answer}",
    "no title": "[{passage}] {question} => {answer}",
}


def prompt_of(tokenizer: Any, template: str, begin: tuple[int, ...] = ()) -> Prompt:
    return make_prompt(tokenizer, *read_template(template, ["question"]), begin=begin, end=0, pad=1)


def corpus_of(tokenizer: Any, prompt: Prompt, folder: Path) -> Corpus:
    lines = [json.dumps({"id": str(n), "title": t, "text": x}) for n, (t, x) in enumerate(PASSAGES)]
    (folder / "passages.jsonl").write_text("\n".join(lines))
    return build_corpus(
        folder / "passages.jsonl", {"generator": tokenizer}, folder / "cache", formats={"generator": prompt}
    )


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return bpe_tokenizer([f"{title}: {text} {QUESTION}" for title, text in PASSAGES] * 3, vocab=400)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_context_is_the_template_with_its_fields(name: str, tokenizer: Any, tmp_path: Path) -> None:
    template = TEMPLATES[name]
    prompt = prompt_of(tokenizer, template, begin=(0,))
    corpus = corpus_of(tokenizer, prompt, tmp_path)
    asked = prompt.questions(tokenizer, [QUESTION])
    ids, mask = prompt.inputs(asked, corpus.tokens("generator"), torch.tensor([[0, 1, 2, -1, -2]]), 200)
    labels = prompt.targets(tokenizer, ["Nairobi"], 20)
    for row, (title, text) in enumerate([*PASSAGES, ("", ""), ("", "")]):
        whole = [*ids[row][mask[row]].tolist(), prompt.start, *labels[0].tolist()]
        wanted = template.format(title=title, passage=text, question=QUESTION, answer="Nairobi")
        if not title:  # an empty field has no space of its own either
            wanted = template.replace(" {title}", "{title}").format(
                title="", passage=text, question=QUESTION, answer="Nairobi"
            )
        if not text:
            continue
        assert tokenizer.decode(whole) == f"<|endoftext|>{wanted}<|endoftext|>"
    assert not ids[~mask].ne(1).any()
    # what a field with a space before it is tokenised as, is what the whole text is tokenised as
    ours = [*ids[0][mask[0]].tolist(), prompt.start]
    wanted = template.format(title=PASSAGES[0][0], passage=PASSAGES[0][1], question=QUESTION, answer="Nairobi")
    if name in ("plain", "question first"):
        assert [*ours, *labels[0].tolist()] == [0, *tokenizer(wanted)["input_ids"], 0]


def test_a_missing_passage_leaves_the_words_and_the_question(tokenizer: Any, tmp_path: Path) -> None:
    prompt = prompt_of(tokenizer, PLAIN)
    tokens = corpus_of(tokenizer, prompt, tmp_path).tokens("generator")
    ids, mask = prompt.inputs(prompt.questions(tokenizer, [QUESTION]), tokens, torch.tensor([[-1, -2]]), 99)
    assert torch.equal(ids[0], ids[1])
    assert tokenizer.decode(ids[0][mask[0]]) + tokenizer.decode([prompt.start]) == f":\n\nQuestion: {QUESTION}\nAnswer:"


def test_the_text_is_cut_then_the_title_and_nothing_else(tokenizer: Any, tmp_path: Path) -> None:
    prompt = prompt_of(tokenizer, PLAIN)
    tokens = corpus_of(tokenizer, prompt, tmp_path).tokens("generator")
    asked = prompt.questions(tokenizer, [QUESTION])
    fixed = prompt.n_in_context + len(asked[0])
    title, text = 1, int(tokens.length([0])[0]) - 1
    assert title == tokens.title_lengths[0]
    whole = prompt.inputs(asked, tokens, torch.tensor([[0]]), 99)[0][0].tolist()
    for room in range(title + text + 2):
        ids, mask = prompt.inputs(asked, tokens, torch.tensor([[0]]), fixed + room)
        kept, n = ids[0][mask[0]].tolist(), min(room, title + text)
        assert len(kept) == fixed + n
        place = len(prompt.words[0])
        cut = [*whole[: place + min(title, room)], *prompt.words[1], *whole[place + title + len(prompt.words[1]) :]]
        behind = place + min(title, room) + len(prompt.words[1])
        expected = cut[: behind + max(0, n - title)] + whole[place + title + len(prompt.words[1]) + text :]
        assert kept == expected
    with pytest.raises(OpenBookError, match=rf"no room for a passage.*at least {prompt.n_in_context} of the prompt"):
        prompt.inputs(asked, tokens, torch.tensor([[0]]), fixed - 1)


def test_long_and_empty_answers(tokenizer: Any) -> None:
    prompt = prompt_of(tokenizer, PLAIN)
    labels = prompt.targets(tokenizer, ["", "Nairobi is the capital of Kenya"], 4)
    assert labels[0].tolist() == [prompt.end] + [IGNORED_LABEL] * 3
    assert labels[1, 3] == prompt.end and (labels[1] >= 0).all()
    assert pickle.loads(pickle.dumps(prompt)) == prompt


def test_a_line_end_as_a_shell_hands_it_over(tokenizer: Any) -> None:
    template = r"{passage}\n{question}\nA:{answer}"
    assert prompt_of(tokenizer, template) == prompt_of(tokenizer, template.replace(r"\n", "\n"))


def sentencepiece_like() -> Any:
    """A tokenizer that writes a space before every text, as Llama 2's does."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    texts = ["Question: where is it? Answer: Nairobi\n[x]", *(text for pair in PASSAGES for text in pair)]
    backend.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=["<unk>", "</s>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def test_a_tokenizer_that_writes_its_own_spaces(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    prompt = prompt_of(tokenizer, "{title} {passage} Question: {question} Answer: {answer}")
    tokens = corpus_of(tokenizer, prompt, tmp_path).tokens("generator")
    ids, mask = prompt.inputs(prompt.questions(tokenizer, ["where is it?"]), tokens, torch.tensor([[0]]), 200)
    answer = [one for one in prompt.targets(tokenizer, ["Nairobi"], 20)[0].tolist() if one != prompt.end]
    whole = tokenizer.decode([*ids[0][mask[0]].tolist(), prompt.start, *answer])
    assert whole == f"{PASSAGES[0][0]} {PASSAGES[0][1]} Question: where is it? Answer: Nairobi"


def test_words_that_the_tokenizer_does_not_know() -> None:
    with pytest.raises(OpenBookError, match=r"cannot write the prompt \(generator\.prompt\): got '%% '|got ' %%"):
        prompt_of(sentencepiece_like(), "{passage}{question} %% {answer}")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{passage} {question} {answer}", "no words right before"),
        ("{passage} {question}\nA:", "no {answer}"),
        ("{passage} {question} A: {answer}.", "something behind {answer}"),
        ("{passage} A: {answer}", "no {question}"),
        ("{question} A: {answer}", "no {passage}"),
        ("{passage} {question} {question} A: {answer}", "a field twice"),
        ("{passage} {quetsion} A: {answer}", "an unknown field {quetsion}"),
    ],
)
def test_templates_that_are_no_prompt(template: str, said: str) -> None:
    with pytest.raises(OpenBookError) as problem:
        read_template(template, ["passage", "question", "answer"])
    assert said in str(problem.value) and "generator.prompt" in str(problem.value)
