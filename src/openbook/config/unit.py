"""A setting's unit, kept beside its default: what `openbook keys` shows."""

from dataclasses import field
from typing import TypeVar

Value = TypeVar("Value")


def unit(default: Value, text: str) -> Value:
    """A dataclass field with this default; text: what its value means and in which unit."""
    return field(default=default, metadata={"unit": text})
