"""What a run needs from outside this machine, found out in a second and without importing what is slow to import."""

import importlib.util
import socket
from pathlib import Path
from urllib.parse import urlsplit

from openbook.errors import OpenBookError


def is_hub_name(name: str) -> bool:
    """Whether a model's name can only be one on the hub: a single slash, and no such folder."""
    one_slash = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return one_slash and not Path(name).exists() and not Path(name).parent.exists()


def check_hub(name: str, key: str) -> None:
    """A hub name needs the hub, unless it was downloaded before: transformers would try for a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    address = urlsplit(constants.ENDPOINT)
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=2).close()
    except OSError as error:
        raise OpenBookError(
            "the model is neither a folder nor downloaded, and the hub cannot be reached",
            where=key,
            got=f"{name!r}; {error.strerror or error}",
            expected="a folder with config.json, or a name on the hub and a connection to it",
            action=f"Download it where there is one, or set {key}=FOLDER.",
        ) from error


def check_installed(key: str, package: str, what: str) -> None:
    """Whether a package is there that only some settings need. what: to be installed by pip."""
    if importlib.util.find_spec(package) is None:
        raise OpenBookError(
            f"{package} is not installed",
            where=key,
            expected=f"{package}, which this setting needs",
            action=f"Run `pip install '{what}'`.",
        )


def wandb_mode(mode: str) -> str:
    """offline, online or disabled: auto is offline where wandb is installed."""
    if mode != "auto":
        return mode
    return "disabled" if importlib.util.find_spec("wandb") is None else "offline"


def check_wandb(mode: str) -> None:
    """Whether wandb is there if it is asked for, and a key for a run that sends its curves; nothing is sent to find
    out."""
    if mode in ("offline", "online"):
        check_installed("wandb.mode", "wandb", "openbook[wandb]")
    if mode != "online":
        return
    import wandb

    try:
        known, said = wandb.login(prompt=False, verify=False), "no key"
    except (wandb.Error, ValueError) as error:
        known, said = False, str(error).split("\n", 1)[0]
    if not known:
        raise OpenBookError(
            "wandb has no login on this machine",
            where="wandb.mode",
            got=f"online, and {said}",
            expected="a key",
            action="Run `wandb login`, set WANDB_API_KEY, or set wandb.mode=offline and `wandb sync` later.",
        )
