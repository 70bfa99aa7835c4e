"""Folders that know the sha256 of their files: flipped bits and missing files are seen before anything is read."""

import hashlib
import json
from pathlib import Path

from openbook.utils.console import say

NAME = "sha256.json"


def sign(folder: Path) -> None:
    """Write down the sha256 of every file of the folder, the last thing before it is put in place."""
    (folder / NAME).write_text(json.dumps(_digests(folder), indent=1) + "\n", encoding="utf-8")


def damage(folder: Path) -> str:
    """What is wrong with the files of a signed folder, the first of them; empty where they are as they were signed."""
    try:
        signed = json.loads((folder / NAME).read_text(encoding="utf-8"))
        found = _digests(folder)
    except (OSError, ValueError) as error:
        return f"{NAME}: {error}"
    if not isinstance(signed, dict):
        return f"{NAME}: no object"
    wrong = next((name for name in sorted({*signed, *found}) if signed.get(name) != found.get(name)), None)
    if wrong is None:
        return ""
    return f"{wrong} is {'missing' if wrong not in found else 'not signed' if wrong not in signed else 'changed'}"


def sound(folder: Path, what: str = "") -> bool:
    """Whether the folder is there as it was signed; where `what` names it, damage is said: it will be made again."""
    found = damage(folder)
    if found and what and folder.exists():
        say(f"warning: {what} in {folder} is damaged ({found}): it is made again")
    return not found


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != NAME:
            with open(path, "rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
