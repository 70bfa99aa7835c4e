"""docs/troubleshooting.md: what it quotes is what the program says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [" ".join(text.split()) for text in re.findall(r'(?<!=)"([^"`]+)"', re.sub(r"`[^`]*`", "", PAGE))]
SYMPTOMS = ("collapsed", "NaN", "Out of memory", "Slow", "stale", "wandb", "Ranks that wait")


def literals(source: str) -> list[str]:
    """The texts of a file, each as the program joins it; what is filled in is a space."""
    texts = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(str(one.value) if isinstance(one, ast.Constant) else " " for one in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


SAID = [
    " ".join(text.split())
    for folder in ("src/openbook", "callbacks")
    for path in (ROOT / folder).rglob("*.py")
    for text in literals(path.read_text(encoding="utf-8"))
]


def test_every_symptom_has_its_place() -> None:
    assert all(symptom in PAGE for symptom in SYMPTOMS) and len(QUOTED) >= 25


@pytest.mark.parametrize("quoted", QUOTED)
def test_what_is_quoted_is_said(quoted: str) -> None:
    assert any(quoted in text for text in SAID)


def test_what_nobody_says_would_be_found() -> None:
    assert not any("the index is tired" in text for text in SAID)
