"""Files, folders and data sets of the user's own, in whatever format, as files of this project's."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

from openbook.config.data import BUILT_IN, QUESTIONS
from openbook.config.schema import Config
from openbook.data.corpus_build import tokenizer_fingerprint
from openbook.data.readers.columns import PASSAGE, QUESTION, parse_columns
from openbook.data.readers.convert import REPORT, Converted, convert_passages, convert_questions, merged_passages
from openbook.data.readers.detect import DOCUMENTS, exists, is_native
from openbook.data.readers.duplicates import without_duplicates
from openbook.data.readers.passages.documents_named import with_passages_of_documents
from openbook.data.readers.passages.splitter import Splitter
from openbook.data.readers.questions.ranking import first_split
from openbook.data.readers.questions.regex_targets import with_targets
from openbook.errors import OpenBookError, UnknownFormatError
from openbook.models.encoders import load_tokenizer
from openbook.utils.console import progress, say, say_result
from openbook.utils.turns import in_turn

KINDS = ("questions", "passages")


def own_questions(config: Config, key: str, name: str) -> Path:
    """The questions of a name as a file of this project's; the name's own file where it is one already."""
    columns = parse_columns(config.data.columns)
    if is_native(Path(name), QUESTION, columns):
        return Path(name)
    found = _questions(config, key, name).questions
    if found is None:
        raise OpenBookError("no questions are in it", where=f"data.{key}", got=name)
    return found


def _questions(config: Config, key: str, name: str) -> Converted:
    folder = config.data.cache
    work = f"{key}={name} of {config.data.corpus} for {config.objective}: {config.data.columns}"
    with progress(f"reading {name}", "questions") as done, in_turn(folder, "converted", work):
        made = convert_questions(
            name,
            Path(folder),
            split=key,
            columns=parse_columns(config.data.columns),
            answered=config.objective != "dpr",
            carried=config.data.corpus == QUESTIONS,
            progress=done,
        )
    _say_once(f"data.{key}: {name}, {made.told}")
    return made


@cache  # a run asks for its files several times
def _say_once(told: str) -> None:
    say(told)


def own_passages(config: Config, name: str) -> Path:
    """The passages of a name, likewise; those that the questions carry for the name that stands for them."""
    if name == QUESTIONS:
        return _carried(config)
    columns = parse_columns(config.data.columns)
    if is_native(Path(name), PASSAGE, columns):
        return Path(name)
    folder, work = config.data.cache, f"{name} by {config.data.split}: {columns}"
    with progress(f"reading {name}", "passages") as done, in_turn(folder, "converted", work):
        made = convert_passages(name, Path(folder), columns=columns, splitter=splitter_of(config), progress=done)
    if not made.passages:
        raise OpenBookError("no passages are in it", where=name, got=made.told, action="Set data.corpus=FILE.")
    _say_once(f"data.corpus: {name}, {made.told}")
    return made.passages


def was_cut(passages: Path) -> bool:
    """Whether a file of passages is one that the splitter has cut from documents."""
    try:
        report = json.loads(passages.with_name(REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # a user's own file may be called so too
        return False
    return isinstance(report, dict) and report.get("format") == DOCUMENTS


def with_documents(config: Config, split: str, questions: Path, passages: Path) -> Path:
    """The questions of a split with the passages of the documents that they name; how many there are is said."""
    train, regex = split == "train", config.evaluate.regex_answers
    with in_turn(config.data.cache, "documents"):
        path, found = with_passages_of_documents(
            questions, passages, Path(config.data.cache), narrow=train, regex=regex
        )
    if found.named:
        which = "those with an answer" if train else "all"
        some = f"; {found.without:,} questions have none with an answer, and learn from all" if found.without else ""
        _say_once(
            f"data.{split}: {found.named:,} ids name {found.documents:,} documents: {which} of their passages count, "
            f"{found.passages:,} ids{some}"
        )
    return path


def with_texts(config: Config, questions: Path, passages: Path) -> Path:
    """The training questions with texts to learn where answers are regular expressions; what was found is said."""
    with in_turn(config.data.cache, "targets"):
        path, found = with_targets(questions, passages, Path(config.data.cache))
    n = found.matched + found.plain
    if path != questions and not n:
        raise OpenBookError(
            "no regular expression matches a positive passage, so there is no answer to learn",
            where="data.train",
            got=f"{found.left_out:,} questions",
            expected="positive ids of passages that the answers match",
        )
    if path != questions:
        _say_once(
            f"data.train: answers are regular expressions; learned is what they match most often in positive passages "
            f"({found.matched:,} questions), else answers that are no patterns ({found.plain:,}); {found.left_out:,} "
            "questions with neither are left out"
        )
    return path


def unique_passages(config: Config, passages: Path) -> tuple[Path, dict[str, str]]:
    """The passages without duplicates (data.duplicates), and {id of a dropped one: id of the one kept for it}."""
    folder, near = config.data.cache, config.data.duplicates == "drop_near"
    with progress("looking for duplicates", "passages") as done, in_turn(folder, "unique"):
        made = without_duplicates(passages, Path(folder), near, done)
    dropped = json.loads((made / "dropped.json").read_text(encoding="utf-8"))
    _say_once(
        f"data.corpus: {len(dropped):,} passages that say what an earlier one says are left out "
        f"(data.duplicates={config.data.duplicates})"
    )
    return (made / "passages.jsonl", dropped) if dropped else (passages, dropped)


def splitter_of(config: Config) -> Splitter:
    """How documents are cut; tokens are those of the passage encoder."""
    split, language = config.data.split, config.data.spans.language
    if split.by != "tokens":
        return Splitter(split.by, split.size, split.overlap, language)
    loaded = load_tokenizer(config.retriever.passage_encoder)

    def offsets(text: str) -> list[tuple[int, int]]:
        made = loaded(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
        return list(made["offset_mapping"])

    return Splitter(split.by, split.size, split.overlap, language, tokenizer_fingerprint(loaded), offsets)


def write_converted(source: str, target: Path, config: Config, only: str = "") -> list[Path]:
    """Write what is in `source` into a folder, as questions.jsonl and passages.jsonl; returns the files. only:
    "questions" or "passages", where a file may be read as either. Questions without an answer are kept, and of a folder
    with several splits those of its test. OpenBookError for input in no format, and for files that are there already.
    """
    if only not in ("", *KINDS):
        raise OpenBookError("no kind of data", where="--only", got=only, expected=" or ".join(KINDS))
    if not exists(source):
        expected = "a file, a folder, or hf:NAME for a data set of the hub"
        raise OpenBookError("there is nothing to convert", where=source, expected=expected)
    if taken := [target / f"{kind}.jsonl" for kind in KINDS if (target / f"{kind}.jsonl").exists()]:
        raise OpenBookError("the file is there already", where=taken[0], action="Name another folder.")
    cache = target / ".openbook"
    try:
        made = _both(source, config, cache, only)
        found = {path.name: path for one in made for path in (one.questions, one.passages) if path}
        written = [path.replace(target / name) for name, path in found.items()]
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    for one in made:
        say(one.told)
    say_result("written: " + ", ".join(map(str, written)))
    return written


def _both(source: str, config: Config, cache: Path, only: str) -> list[Converted]:
    """Questions with the passages that they carry, else questions and passages; what is in no format of the one kind is
    of the other."""
    columns, made, unknown = parse_columns(config.data.columns), list[Converted](), list[OpenBookError]()
    splitter = splitter_of(config)
    with progress(f"reading {source}", "records") as done:
        if only != "passages":
            try:
                split = first_split(Path(source))
                made += [convert_questions(source, cache, split=split, columns=columns, answered=False, progress=done)]
            except UnknownFormatError as problem:
                unknown.append(problem)
        if only != "questions" and not (made and made[0].passages):
            try:
                made += [convert_passages(source, cache, columns=columns, splitter=splitter, progress=done)]
            except UnknownFormatError as problem:
                unknown.append(problem)
    if not made:
        raise unknown[-1]
    if len(made) == 2 and Path(source).is_file():
        raise OpenBookError(
            "the file may be one of questions or of passages",
            where=source,
            got=f"{made[0].report['format']}, or {made[1].report['format']}",
            action="Say which: --only questions or --only passages.",
        )
    return made


def _carried(config: Config) -> Path:
    """The passages that the records of all splits' questions carry, each once."""
    data, columns = config.data, parse_columns(config.data.columns)
    names = {key: getattr(data, key) for key in ("train", "validation", "test")}
    asked = {key: name for key, name in names.items() if name and name not in BUILT_IN[key]}
    paths: dict[Path, str] = {}
    for key, name in asked.items():
        if not is_native(Path(name), QUESTION, columns) and (path := _questions(config, key, name).passages):
            paths.setdefault(path, name)
    if not paths:
        raise OpenBookError(
            "no corpus is named, and the questions carry no passages",
            where="data.corpus",
            got=", ".join(asked.values()),
            expected="a file or folder of passages",
            action="Set data.corpus=FILE too.",
        )
    if len(paths) == 1:
        return next(iter(paths))
    with in_turn(data.cache, "converted"):
        made = merged_passages(paths, Path(data.cache))
    assert made.passages is not None
    return made.passages
