"""The JSON schema accepts what the loader accepts and refuses what it refuses. The validator here is written from the
specification (draft 7) for the few words that the schema uses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from openbook.__main__ import main
from openbook.commands.show import json_schema
from openbook.config.load import load_experiment
from openbook.config.schema import described_keys
from openbook.errors import OpenBookError

WORDS = {"$schema", "title", "description", "default", "type", "enum", "anyOf", "pattern"}
TYPES: dict[str, Any] = {"string": str, "boolean": bool, "object": dict, "null": type(None), "number": (int, float)}


def wrong(value: Any, schema: dict[str, Any], at: str = "") -> list[str]:
    """Where the value is not as the schema says."""
    assert schema.keys() <= WORDS | {"properties", "additionalProperties"}, "a word that is not checked here"
    if "anyOf" in schema:
        found = [wrong(value, choice, at) for choice in schema["anyOf"]]
        return [] if [] in found else max(found, key=lambda problems: len(problems[0]))
    if "enum" in schema and not any(type(value) is type(one) and value == one for one in schema["enum"]):
        return [at]
    names = schema.get("type", [])
    if names and not any(is_a(value, name) for name in ([names] if isinstance(names, str) else names)):
        return [at]
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return [at]
    if not isinstance(value, dict):
        return []
    problems = []
    for key, one in value.items():
        if key in schema["properties"]:
            problems += wrong(one, schema["properties"][key], f"{at}{key}.")
        elif schema["additionalProperties"] is False:
            problems.append(f"{at}{key}.")
    return problems


def is_a(value: Any, name: str) -> bool:
    if name == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, TYPES[name]) and not (name == "number" and isinstance(value, bool))


@pytest.mark.parametrize("path", sorted(Path("experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_experiments_are_valid(path: Path) -> None:
    assert wrong(yaml.safe_load(path.read_text(encoding="utf-8")), json_schema()) == []


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("seed: 1\noptim: {lr: 1e-4}\nrun: {name: 0123}\n", ""),
        ("embedded:\n", ""),
        ("optim: {learning_rate: 1.0e-4}\n", "optim.learning_rate."),
        ("optim: {lr: fast}\n", "optim.lr."),
        ("seed: 1.5\n", "seed."),
        ("seed: true\n", "seed."),
        ("objective: rag_tokens\n", "objective."),
        ("embedded: {data: {corpse: x}}\n", "embedded.data.corpse."),
        ("data: {factbook: {sections: Government, field_words: many}}\n", "data.factbook.field_words."),
        ("evaluate: {utility: perhaps}\n", "evaluate.utility."),
    ],
)
def test_schema_and_loader_agree(text: str, at: str, tmp_path: Path) -> None:
    found = wrong(yaml.safe_load(text), json_schema())
    assert (at in found) == bool(at) == bool(found)
    path = tmp_path / "mine.yaml"
    path.write_text("extends: rag_token\n" + text, encoding="utf-8")
    if at and not text.startswith("embedded: {"):  # the loader names it by another way there
        with pytest.raises(OpenBookError, match=re.escape(at.rstrip("."))):
            load_experiment(str(path))
    elif "embedded:\n" not in text and not at:
        assert load_experiment(str(path)).run.name in ("", "0123")


def test_every_setting_is_described() -> None:
    for key, default, unit in described_keys():
        found: Any = json_schema()
        for part in key.split("."):
            found = found["properties"][part]
        assert (found["default"], found["description"]) == (default, unit)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "--json-schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(json_schema()))
