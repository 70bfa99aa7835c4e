"""A folder to a hub, through huggingface_hub and whatever login it has (HF_ENDPOINT names another hub)."""

import os
from pathlib import Path

from openbook.errors import OpenBookError
from openbook.utils.console import say


def reserve(name: str, public: bool = False) -> None:
    """Make sure of a repository for models of this name, before anything expensive: a new one is private unless public.
    OpenBookError where the hub cannot be reached or does not let us."""
    from huggingface_hub import HfApi

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise OpenBookError("HF_HUB_OFFLINE is set: nothing can be pushed", where="--push", action="Unset it.")
    try:
        HfApi().create_repo(name, private=not public, exist_ok=True, repo_type="model")
        seen = not public and not HfApi().model_info(name).private  # one that is there stays as it is
    except Exception as error:  # of many kinds: no network, no login, a name that is not ours
        raise _refused(name, error) from error
    if seen:
        raise OpenBookError(
            "the repository is public, and would show the models and the corpus to everybody",
            where=f"--push {name}",
            expected="a private repository",
            action="--public says that they may be seen; or name another repository.",
        )


def push(folder: Path, name: str, message: str) -> str:
    """Upload the folder as one commit; returns its address. Files that the repository has beside it stay."""
    from huggingface_hub import HfApi

    say(f"pushing {folder} to {name}")
    try:
        return str(HfApi().upload_folder(folder_path=str(folder), repo_id=name, commit_message=message).commit_url)
    except Exception as error:
        raise _refused(name, error) from error


def _refused(name: str, error: Exception) -> OpenBookError:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return OpenBookError(
        "the hub does not take it",
        where=f"--push {name}",
        got=f"{type(error).__name__}: {said[:200]}",
        expected="OWNER/NAME of a repository that you may write to",
        action="`hf auth login` logs in; without --push everything stays here.",
    )
