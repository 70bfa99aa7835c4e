"""Settings of the corpus, the questions and the embedded World Factbook."""

from dataclasses import dataclass, field
from typing import Literal

from openbook.config.unit import unit

# The value of data.corpus, data.train, … that stands for the embedded data, The World Factbook.
EMBEDDED = "factbook"

# Another edition of the embedded book, as data.corpus; as data.test the questions about what it changes, with its
# answers or with the book's own.
CHANGED, ORIGINAL_FACTS = "factbook_changed", "factbook_original_facts"

# Questions about three countries of the embedded book, which only passages read together answer.
TRIOS = "factbook_trios"

# The passages that the question files carry (DPR's, SQuAD's, HotpotQA's, ...), as data.corpus.
QUESTIONS = "questions"

# Questions made of the corpus alone: masked spans of its sentences (openbook.data.spans).
SPANS = "spans"

# What the keys of `data` take that is no file.
BUILT_IN = {
    "corpus": (EMBEDDED, CHANGED, QUESTIONS),
    "train": (EMBEDDED, TRIOS, SPANS),
    "validation": (EMBEDDED, TRIOS, SPANS),
    "test": (EMBEDDED, TRIOS, CHANGED, ORIGINAL_FACTS, SPANS),
}


@dataclass(frozen=True)
class SpansConfig:
    """Questions made of the corpus alone: a name, a date or a number of a sentence is masked and asked for."""

    share: float = unit(0.0, "share of masked spans among the training questions, beside those of data.train; below 1")
    per_passage: int = unit(4, "masked spans of one passage at most")
    most: int = unit(200_000, "masked spans of the whole corpus at most, drawn evenly")
    language: str = unit("en", "language of the corpus (ISO 639-1), which decides where sentences end")


@dataclass(frozen=True)
class SplitConfig:
    """How folders of text, Markdown and HTML files are cut into passages."""

    by: Literal["words", "sentences", "tokens"] = unit(
        "words",
        "what size and overlap count; tokens are the passage encoder's, sentences end as data.spans.language has it",
    )
    size: int = unit(100, "words, sentences or tokens of a passage at most; passages end with their section")
    overlap: int = unit(0, "of them, repeated at the beginning of the next passage; below data.split.size")


@dataclass(frozen=True)
class FactbookConfig:
    passage_words: int = unit(50, "maximum words per passage")
    field_words: int = unit(24, "words kept of each field of the book")
    field_parts: int = unit(3, "sub-fields kept of each field; 0 keeps all")
    sections: str = unit("", "sections of the book, comma-separated; empty: Geography to Military and Security")
    whole: bool = unit(
        False,
        "use the whole book in passages of passage_words; field_words, field_parts and sections are then ignored",
    )
    varied: bool = unit(
        False, "ask training questions in 14 phrasings instead of 7, with 8 paraphrases each; the test's stay the same"
    )


@dataclass(frozen=True)
class DataConfig:
    corpus: str = unit(
        EMBEDDED,
        "passages: a file in any format of docs/data.md, a folder of text, Markdown and HTML files, or hf:NAME; "
        "'factbook' is the embedded book, 'factbook_changed' an edition with other facts about the test split's "
        "countries; 'questions': the passages that the question files carry",
    )
    train: str = unit(
        EMBEDDED,
        "questions: a file in any format of docs/data.md, a BEIR folder, or hf:NAME[@CONFIG][:SPLIT]; "
        "'factbook_trios': of the embedded book those that only passages read together answer; 'spans': masked spans "
        "of the corpus; of both, validation and test have their own",
    )
    validation: str = unit(EMBEDDED, "file of questions evaluated during training; empty: none")
    test: str = unit(
        EMBEDDED,
        "file of questions for the metrics in summary.json; empty: none; 'factbook_changed' or "
        "'factbook_original_facts': the facts that the other edition changes, with its answers or the book's",
    )
    factbook: FactbookConfig = field(default_factory=FactbookConfig)
    spans: SpansConfig = field(default_factory=SpansConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    duplicates: Literal["keep", "drop", "drop_near"] = unit(
        "keep",
        "passages with title and text of an earlier one, but for case, spaces and Unicode form: keep; drop: left out, "
        "ids in questions become the earlier one's; drop_near: and those of its title with 0.8 of 5-word runs shared",
    )
    columns: str = unit(
        "",
        "columns (or keys) of files in other formats, OURS:THEIRS,...; ours: question, answers, positive_ids, "
        "negative_ids, relation, phrasing; text, title; id. For example question:query,answers:golds",
    )
    cache: str = unit(".cache/openbook", "cache folder: texts, token ids, warmed-up small readers, passage vectors")
    max_question_tokens: int = unit(64, "tokens of a question")
    long_questions: Literal["error", "cut", "drop"] = unit(
        "error", "questions of more than max_question_tokens: refused, cut at their end, or left out; with their count"
    )
    max_passage_tokens: int = unit(
        0,
        "tokens of a passage as the passage encoder reads it, special tokens included; 0: as 99 % of the passages need",
    )
    max_context_tokens: int = unit(
        0,
        "tokens of question + passage as the generator reads them; passages are truncated, questions never; 0: as 99 % "
        "of the passages need beside a question",
    )
    max_target_tokens: int = unit(24, "tokens of an answer, end-of-sequence included")
    strict_targets: bool = unit(
        False,
        "true: answers over max_target_tokens are an error; false: they are truncated, with one warning and "
        "their count",
    )
    workers: int = unit(0, "loader processes per rank; 0 tokenises in the training process")

    build_processes: int = unit(0, "processes that tokenise a corpus of many passages, once; 0: one for each core")
    verify: bool = unit(
        False,
        "true: hash data files and the cache's arrays anew; false: only those whose size or times have changed since "
        "they were hashed",
    )

    @property
    def is_embedded(self) -> bool:
        """Whether the corpus is an edition of the embedded book, and no file of the user's own."""
        return self.corpus in (EMBEDDED, CHANGED)
