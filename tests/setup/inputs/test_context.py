"""Templates of encoder-decoders: contexts are what the tokenizer makes of the whole text, labels stay its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from openbook.batch import Example
from openbook.data.collate import Collate
from openbook.data.encoder_inputs import encoder_format
from openbook.data.inputs import special_ids, target_start, targets
from openbook.data.question_lengths import Reader, over
from openbook.data.sampler import BatchPlan
from openbook.errors import OpenBookError
from openbook.setup.inputs.context import context_prompt
from tests.data.test_prompts import PASSAGES, QUESTION, corpus_of

TEMPLATE = "{title} / {passage} // {question}"
TEMPLATES = {
    "transformers' RAG": TEMPLATE,
    "with a space in front": " " + TEMPLATE,
    "with words at both ends": "passage: {title}. {passage} question: {question} answer:",
}


def tokenizer_of(kind: str, folder: Path) -> Any:
    """As BART's (byte-level), T5's (spaces of its own) and BERT's write a text."""
    if kind == "bert":
        words = "[PAD] [UNK] [CLS] [SEP] [MASK] the capital of kenya is nairobi nobody says where what lima peru andes"
        vocab = [*words.split(), *"passage question answer : . / ? ( )".split()]
        (folder / "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
        return BertTokenizerFast(str(folder / "vocab.txt"))
    texts = ["passage: question: answer: / // ?", QUESTION, *(text for pair in PASSAGES for text in pair)]
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    own_space = kind == "t5"
    if own_space:
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(texts * 3, trainer)
    marks = [(one, backend.token_to_id(one)) for one in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>" if own_space else "<s> $A </s>", special_tokens=marks
    )
    begin = {} if own_space else {"bos_token": "<s>", "cls_token": "<s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **begin
    )


@pytest.mark.parametrize("kind", ["bart", "t5", "bert"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_context_is_what_the_tokenizer_makes_of_the_whole_text(kind: str, name: str, tmp_path: Path) -> None:
    tokenizer, template = tokenizer_of(kind, tmp_path), TEMPLATES[name]
    special = special_ids(tokenizer)
    prompt = context_prompt(tokenizer, template, ["passage", "question"], special)
    tokens = corpus_of(tokenizer, prompt, tmp_path).tokens("generator")
    asked = prompt.questions(tokenizer, [QUESTION])
    ids, mask = prompt.inputs(asked, tokens, torch.tensor([[0, 2]]), 200)
    for row, (title, text) in enumerate((PASSAGES[0], PASSAGES[2])):
        whole = tokenizer(template.format(title=title, passage=text, question=QUESTION))["input_ids"]
        assert ids[row][mask[row]].tolist() == whole
        assert (ids[row][~mask[row]] == tokenizer.pad_token_id).all()
    assert len(asked[0]) + int(tokens.length([0])[0]) + prompt.n_in_context == int(mask[0].sum())
    answers = ["Nairobi", "", "Nairobi is the capital of Kenya"]
    assert torch.equal(prompt.targets(tokenizer, answers, 5), targets(tokenizer, answers, 5))
    assert prompt.first == (() if target_start(tokenizer) is None else (target_start(tokenizer),))


def test_a_passage_that_does_not_fit_is_cut_and_question_and_end_stay(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bart", tmp_path)
    prompt = context_prompt(tokenizer, TEMPLATE, ["passage", "question"], special_ids(tokenizer))
    tokens = corpus_of(tokenizer, prompt, tmp_path).tokens("generator")
    asked = prompt.questions(tokenizer, [QUESTION])
    most = prompt.n_in_context + len(asked[0]) + 3
    ids, mask = prompt.inputs(asked, tokens, torch.tensor([[0]]), most)
    text = tokenizer.decode(ids[0][mask[0]])
    assert len(ids[0]) == most and text.startswith("<s>Kenya / ") and text.endswith(f" // {QUESTION}</s>")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (TEMPLATE + " {answer}", "an encoder-decoder's context has no answer in it"),
        ("{title} / {passage}", "no {question}"),
        ("{question}", "no {passage}"),
    ],
)
def test_templates_that_are_no_context(template: str, said: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bert", tmp_path)
    with pytest.raises(OpenBookError) as problem:
        context_prompt(tokenizer, template, ["passage", "question"], special_ids(tokenizer))
    assert said in str(problem.value) and "generator.prompt" in str(problem.value)


@pytest.mark.parametrize("how", [True, False])
def test_questions_as_they_are_written_or_decoded(how: bool, tmp_path: Path) -> None:
    """As RagRetriever hands them on: what the question encoder's tokens decode to, for an uncased one in lower case."""
    asks, writes = tokenizer_of("bert", tmp_path), tokenizer_of("bart", tmp_path)
    collate = Collate(
        question_tokenizer=asks,
        question_format=encoder_format(asks, "joined"),
        generator_tokenizer=writes,
        max_question_tokens=40,
        max_target_tokens=9,
        seed=0,
        sample_answers=False,
        decoded_questions=how,
    )
    question = "Where is  Nairobi (Kenya)?"
    batch = collate((BatchPlan((0,), filler=0, epoch=0, cursor=0), [Example("0", question, ("Kenya",))]))
    theirs = asks.decode(asks(question)["input_ids"], skip_special_tokens=True)
    assert theirs != question
    assert writes.decode(batch.context_questions[0]) == (theirs if how else question)
    reader = Reader(writes, through=(asks, "") if how else None)
    assert over(reader, [(1, question)], len(batch.context_questions[0])) == []
    assert over(reader, [(1, question)], len(batch.context_questions[0]) - 1) == [(1, len(batch.context_questions[0]))]
