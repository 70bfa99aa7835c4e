"""How an exported run reads and writes, beside its models: openbook.json, from which an import takes it again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openbook.config.load import flat
from openbook.config.schema import Config, override_text
from openbook.errors import OpenBookError
from openbook.utils.atomic import write_json

FILE = "openbook.json"
# Keys (or sections, ending with a dot) without which the same models would read otherwise. None names a file.
SETTINGS = (
    *("data.max_question_tokens", "data.max_passage_tokens", "data.max_context_tokens", "data.max_target_tokens"),
    *("data.long_questions", "retriever.question_prefix", "retriever.passage_prefix", "retriever.passage_layout"),
    *("retriever.rerank", "generator.prompt", "generator.question", "generator.reads"),
    *("generator.source_language", "generator.target_language", "decode."),
    *("evaluate.n_docs", "evaluate.task", "evaluate.labels", "evaluate.regex_answers", "evaluate.identical_ids"),
)


def settings_of(config: Config) -> dict[str, Any]:
    """{key: value} of those settings."""
    return {key: value for key, value in flat(config).items() if key.startswith(SETTINGS)}


def write_settings(config: Config, folder: Path) -> None:
    write_json(folder / FILE, {"settings": settings_of(config)})


def read_settings(folder: Path) -> dict[str, str]:
    """{key: text} of an exported folder; {} where it is of another program. OpenBookError where it has other keys."""
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise OpenBookError("damaged JSON", where=path, got=error, action="Copy the file again.") from error
    others = [key for key in settings if not key.startswith(SETTINGS)] if isinstance(settings, Mapping) else ["a list"]
    if others:
        raise OpenBookError("settings that an export does not state", where=path, got=others[0])
    return {key: override_text(value) for key, value in settings.items()}
