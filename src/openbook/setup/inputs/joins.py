"""What of the data fits together: every join is counted and said, and refused where nothing at all matches."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from openbook.batch import MISSING_ROW, Example
from openbook.config.rules.combinations import labels_of
from openbook.config.schema import Config
from openbook.data.corpus import Corpus
from openbook.data.inputs import token_ids
from openbook.data.question_file import QuestionFile
from openbook.errors import OpenBookError, raise_all
from openbook.inference.evidence import own_row
from openbook.metrics.matching import answers_in_texts, check_pattern, has_answer, normalize_answer
from openbook.metrics.summary import is_label
from openbook.retrieval.bm25 import BM25Index
from openbook.setup.inputs.data import Parts
from openbook.utils.console import say

SAMPLE = 2000  # questions of a file that are looked at where each costs a tokenizer or a search
BM25_SAMPLE = 200


class Count(NamedTuple):
    """Of so many things, n do not fit."""

    where: str
    what: str
    n: int
    of: int


def check_joins(config: Config, parts: Parts, questions: dict[str, QuestionFile], training: bool) -> list[Count]:
    """Say how many positive ids, labels, answers and passages do not fit, as far as any do not, and return what was
    counted; OpenBookError where a file's positive ids, labels or answers fit nowhere and the run is there to train on
    them."""
    problems: list[OpenBookError] = []
    counts: list[Count] = []

    def count(where: str, n: int, of: int, things: str, fits: str, fails: str, action: str = "") -> None:
        counts.append(Count(where, f"{things} {fails}", n, of))
        if n and n == of and training:
            problems.append(OpenBookError(f"none of {of:,} {things} {fits}", where=where, action=action))
        elif n:
            say(f"{where}: {n:,} of {of:,} {things} {fails}{'. ' + action if action and n == of else ''}")

    if config.objective != "closed_book":
        _passages_cut(config, parts.corpus, parts)
    if config.evaluate.regex_answers:
        _check_patterns(questions)
    trained = _in_training(questions)
    for split, file in questions.items():
        where, some = f"data.{split}", _spread(file, SAMPLE)
        positives = [one for example in _spread(file, 10 * SAMPLE) for one in example.positive_ids]
        if positives and config.objective != "closed_book":
            n = sum(parts.corpus.row_of(one) is None for one in positives)
            action = "Compare the ids of the two files; without positive_ids recall counts passages with an answer."
            words = ("positive ids", "are in the corpus", "are not in the corpus")
            count(where, n, len(positives), *words, action)
        negatives = [one for example in some for one in example.negative_ids]
        n = sum(parts.corpus.row_of(one) is None for one in negatives)
        counts.append(Count(where, "negative ids are not in the corpus", n, len(negatives)))
        if n:
            say(f"{where}: {n:,} of {len(negatives):,} negative ids are not in the corpus")
        if split == "train" and not (config.objective == "dpr" and config.dpr.loss == "ordered"):
            n = sum(example.reward is not None for example in some)
            counts.append(Count(where, "questions have a reward that is not read", n, len(some)))
            if n:
                say(f"{where}: {n:,} of {len(some):,} questions have a `reward`, which only dpr.loss=ordered reads")
        if split != "train" and "train" in questions:
            counts.append(_leaks(where, file, trained))
        if config.objective == "dpr" and split != "train":
            counts.append(_own(config, parts.corpus, where, file))
        if config.objective == "dpr":
            known = (any(parts.corpus.row_of(one) is not None for one in example.positive_ids) for example in some)
            n = sum(not (has or example.answers) for has, example in zip(known, some, strict=True))
            count(
                where,
                n,
                len(some),
                "questions",
                "have an answer or a positive id of the corpus",
                "have neither an answer nor a positive id of the corpus: they are misses",
            )
        elif config.evaluate.task == "labels":
            labels, has = labels_of(config.evaluate.labels), "have one of evaluate.labels as an answer"
            n = sum(not any(is_label(label, example.answers) for label in labels) for example in some)
            count(where, n, len(some), "questions", has, f"do not {has}")
        elif not config.evaluate.regex_answers:
            n = _unwritable(parts.generator_tokenizer, some)
            action = "Exact match can only be 0: use a generator whose tokenizer keeps these signs and accents."
            has = "have an answer that the generator's tokenizer can write"
            count(where, n, len(some), "questions", has, f"do not {has}", action)
        if config.objective not in ("closed_book", "dpr"):
            n, of = _answers_cut(config, parts, some)
            counts.append(Count(where, "answers stand where the generator does not read", n, of))
            if n:
                say(
                    f"{where}: the answer of {n:,} of {of:,} questions stands only in the part of their gold passage "
                    "that the generator does not read: split passages, or raise data.max_context_tokens"
                )
    raise_all(problems)
    return counts


def _check_patterns(questions: dict[str, QuestionFile]) -> None:
    """Every answer that will be looked for is a regular expression, and one that ends: found before training."""
    for file in questions.values():
        for index, example in enumerate(file):
            for answer in example.answers:
                try:
                    check_pattern(answer)
                except OpenBookError as error:
                    line = f"{file.path}:{file.line_number(index)}"
                    raise OpenBookError(f"an answer cannot be looked for: {error}", where=line) from error


def answers_nowhere(corpus: Corpus, where: str, file: QuestionFile) -> Count:
    """Questions with answers none of which stands in any passage (as recall counts it); every passage is read."""
    answers = [example.answers for example in file if example.answers]
    texts = (corpus.passage(row).text for row in range(len(corpus)))
    there = answers_in_texts((answer for some in answers for answer in some), texts)
    return Count(
        where, "questions have no answer in any passage", sum(there.isdisjoint(a) for a in answers), len(answers)
    )


def _in_training(questions: dict[str, QuestionFile]) -> set[str]:
    """Those of the other files' questions, normalised, that are also training questions or paraphrases of one."""
    others = (file for split, file in questions.items() if split != "train")
    asked = {normalize_answer(example.question) for file in others for example in file}
    train = questions.get("train", ()) if asked else ()
    wordings = (one for example in train for one in (example.question, *example.paraphrases))
    # The questions about one fact stand together and have their paraphrases in common.
    return asked.intersection(map(lru_cache(1 << 14)(normalize_answer), wordings))


def _leaks(where: str, file: QuestionFile, trained: set[str]) -> Count:
    """Questions that are also training questions, up to case, punctuation and articles."""
    asked = [normalize_answer(example.question) for example in file]
    found = Count(where, "questions stand in data.train too", sum(one in trained for one in asked), len(asked))
    if found.n:
        say(f"{where}: {found.n:,} of {found.of:,} {found.what}: what is measured on them may be learned by heart")
    return found


def check_bm25(index: BM25Index, questions: dict[str, QuestionFile]) -> None:
    """Say for how many questions BM25 finds no passage; OpenBookError where it finds none for any."""
    for split, file in questions.items():
        some = _spread(file, BM25_SAMPLE)
        n = int((index.search([example.question for example in some], 1)[0][:, 0] < 0).sum())
        if n == len(some):
            raise OpenBookError(
                "BM25 finds no passage for any question",
                where=f"data.{split}",
                got=f"{n} of {len(some)} questions share no word with a passage",
                expected="questions and passages in one language",
                action="Set retriever.kind=dense.",
            )
        if n:
            say(f"data.{split}: BM25 finds no passage for {n:,} of {len(some):,} questions")


def _own(config: Config, corpus: Corpus, where: str, file: QuestionFile) -> Count:
    """How many questions are passages of the corpus themselves, and whether these count as found."""
    how = config.evaluate.identical_ids
    asked = "auto" if how == "keep" else how
    n = sum(own_row(example, corpus, asked) != MISSING_ROW for example in file)
    if n:
        counts = "counts as found" if how == "keep" else "is ignored among what is found for them"
        say(
            f"{where}: {n:,} of {len(file):,} questions have the id of a passage, which {counts} "
            f"(evaluate.identical_ids={how})"
        )
    return Count(where, "questions are passages themselves", n, len(file))


def _spread(file: QuestionFile, n: int) -> list[Example]:
    """At most n questions, spread evenly over the file."""
    n = min(n, len(file))
    return [file[place * len(file) // n] for place in range(n)]


def _unwritable(tokenizer: object, examples: Sequence[Example]) -> int:
    """Questions none of whose answers comes back from its tokens."""
    answers = [answer for example in examples for answer in example.answers]
    unknown = getattr(tokenizer, "unk_token_id", None)
    ids = token_ids(tokenizer, answers)  # type: ignore[arg-type]
    back = tokenizer.batch_decode(ids, skip_special_tokens=True)  # type: ignore[attr-defined]
    writable = {
        answer: unknown not in one and _signs(answer) == _signs(text)
        for answer, one, text in zip(answers, ids, back, strict=True)
    }
    return sum(not any(writable[answer] for answer in example.answers) for example in examples)


def _signs(text: str) -> str:
    """What must come back from the tokens, as exact match compares it, accents with it: only spaces may be the
    tokenizer's own."""
    return "".join(normalize_answer(text).split())


def _passages_cut(config: Config, corpus: Corpus, parts: Parts) -> None:
    """Passages longer than the models read, and how much of the corpus that is."""
    readers: list[tuple[str, str, int, str]] = []
    if config.retriever.kind == "dense":
        room = config.data.max_passage_tokens - parts.passage_format.n_special
        readers.append(("encoder", "the passage encoder", room, "data.max_passage_tokens"))
    if config.objective != "dpr":
        asked = 16  # tokens of a usual question beside the passage
        room = config.data.max_context_tokens - parts.in_context.n_in_context - asked
        readers.append(("generator", "the generator", room, "data.max_context_tokens"))
    for role, who, room, key in readers:
        lengths = np.diff(corpus.tokens(role).offsets)
        n = int((lengths > room).sum())
        if n:
            lost = float(np.maximum(lengths - room, 0).sum() / lengths.sum())
            say(
                f"data.corpus: {n:,} of {len(lengths):,} passages are cut for {who}, which reads {max(room, 0)} of at "
                f"most {int(lengths.max()):,} tokens ({lost:.1%} of the corpus is not read): split them, or raise {key}"
            )


def _answers_cut(config: Config, parts: Parts, examples: Sequence[Example]) -> tuple[int, int]:
    """(questions whose answer stands in their gold passage, but not in what the generator reads of it; questions whose
    answer stands there)."""
    tokens, tokenizer = parts.corpus.tokens("generator"), parts.generator_tokenizer
    room = config.data.max_context_tokens - parts.in_context.n_in_context
    decode: Callable[[list[int]], str] = tokenizer.decode
    n_cut = n_there = 0
    for example in examples:
        row = next((row for one in example.positive_ids if (row := parts.corpus.row_of(one)) is not None), None)
        if row is None:
            continue
        start, stop = int(tokens.offsets[row]), int(tokens.offsets[row + 1])
        passage = parts.corpus.passage(row)
        if not has_answer(f"{passage.title} {passage.text}", example.answers, config.evaluate.regex_answers):
            continue
        n_there += 1
        kept = room - min(len(token_ids(tokenizer, [example.question])[0]), config.data.max_question_tokens)
        if stop - start > kept:
            read = decode(list(map(int, tokens.flat[start : start + max(kept, 0)])))
            n_cut += not has_answer(read, example.answers, config.evaluate.regex_answers)
    return n_cut, n_there
