"""Folders and texts that know their sha256: flipped bits, missing files and lines are seen before anything is read."""

import hashlib
import json
from pathlib import Path

from openbook.errors import OpenBookError
from openbook.utils.console import say

NAME = "sha256.json"
HEAD = "# sha256 of what is below: "


def sign(folder: Path) -> None:
    """Write down the sha256 of every file of the folder, the last thing before it is put in place."""
    (folder / NAME).write_text(json.dumps(_digests(folder), indent=1) + "\n", encoding="utf-8")


def damage(folder: Path) -> str:
    """What is wrong with the files of a signed folder, the first of them; empty where they are as they were signed."""
    if folder.is_dir() and not (folder / NAME).exists():
        return f"it has no {NAME}"
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


def signed_text(text: str) -> str:
    """The text below a comment that knows its sha256."""
    return f"{HEAD}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def check_text(path: Path) -> None:
    """OpenBookError where a signed file is not as it was written. A file that is not signed, as older runs have it, is
    not checked."""
    head, _, text = path.read_bytes().partition(b"\n")
    if not head.startswith(HEAD.encode()):
        return
    if hashlib.sha256(text).hexdigest() != head.removeprefix(HEAD.encode()).decode(errors="replace"):
        raise OpenBookError(
            "the file is not as it was written: it was cut, damaged, or changed by hand",
            where=path,
            expected="the sha256 of its first line",
            action="Copy it back from where it is kept. Where you changed it and mean it, remove the first line.",
        )
