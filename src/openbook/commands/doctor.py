"""`doctor`: whether an experiment can run here, line by line, before anything is trained.

ok, warning (it will run, but look) or fails (what to do). Later lines need what earlier ones found: a configuration
that cannot be read has no data, and data that cannot be read no models.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from openbook.commands.libraries import load_libraries
from openbook.config.checks import has_index
from openbook.config.load import load_experiment
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.utils.console import console
from openbook.utils.host_memory import available_memory, disk_free, human

Status = Literal["ok", "warning", "fails"]
COLOURS = {"ok": "green", "warning": "yellow", "fails": "red"}
# Less free disk than so many bytes is worth a word, whatever the plan says: the logs of a run and its last checkpoint.
LITTLE = 1 << 30


class Finding(NamedTuple):
    """One line: what was looked at, how it stands, what was found and what to do."""

    what: str
    status: Status
    found: str
    do: str = ""


def doctor(experiment: str, overrides: Sequence[str], as_json: bool) -> int:
    """Print every finding; 0 where nothing fails, else 2. No training, no run folder; caches of data are written."""
    findings: list[Finding] = []

    def note(what: str, look: Callable[[], Finding | Sequence[Finding]]) -> bool:
        """Whether it can go on."""
        try:
            found = look()
        except OpenBookError as error:
            found = Finding(what, "fails", str(error))
        new = [found] if isinstance(found, Finding) else list(found)
        findings.extend(new)
        if not as_json:
            for one in new:
                _show(one)
        return all(one.status != "fails" for one in new)

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        config: Config | None = None

        def read() -> Finding:
            nonlocal config
            config = load_experiment(experiment, overrides)
            return Finding("configuration", "ok", f"{config.experiment}: {config.shows or config.objective}")

        note("environment", packages)
        if note("configuration", read) and config is not None:
            _of_experiment(config, note)
    if as_json:
        print(json.dumps([one._asdict() for one in findings], indent=1))
    worst = {one.status for one in findings}
    if not as_json:
        counts = ", ".join(f"{sum(one.status == status for one in findings)} {status}" for status in COLOURS)
        console.print(counts, markup=False)
    return 2 if "fails" in worst else 0


def _of_experiment(config: Config, note: Callable[[str, Callable[[], Any]], bool]) -> None:
    going = note("devices", lambda: devices(config))
    note("space", lambda: space(config))
    note("wandb", lambda: curves(config))
    note("network", lambda: ports(config))
    if not going:
        return
    load_libraries()
    from openbook.setup.prepare import prepare

    prepared: Any = None
    module: Any = None

    def data() -> Finding:
        nonlocal prepared
        prepared = prepare(config)
        sizes = ", ".join(f"{len(file):,} {split}" for split, file in prepared.questions.questions.items())
        return Finding("data", "ok", f"{prepared.parts.corpus.n_passages:,} passages; questions: {sizes}")

    def models() -> Finding:
        nonlocal module
        module = prepared.module(planning=True)
        weights = sum(value.numel() for value in module.parameters())
        trained = sum(value.numel() for value in module.parameters() if value.requires_grad)
        probed = "" if config.objective == "dpr" else "; a small batch gives the model's own logits"
        return Finding("models", "ok", f"{weights / 1e6:.1f} million weights, {trained / 1e6:.1f} trained{probed}")

    def plan() -> Finding:
        found = prepared.plan(module, prepared.refresh())
        fits = f"{human(found['ram_at_swap'])} RAM at the swap, {human(found['disk'])} disk"
        return Finding("plan", "ok", f"{fits}, a step {found['step_seconds']:.2g} s")

    if note("data", data) and note("models", models) and has_index(prepared.config):
        note("plan", plan)


def packages() -> list[Finding]:
    """Versions; packages that do not go together."""
    import torch

    names = ("torch", "lightning", "transformers", "numpy")
    said = ", ".join(f"{name} {version(name)}" for name in names)
    found = [Finding("environment", "ok", f"Python {sys.version.split()[0]}, {said}")]
    both = [name for name in ("faiss-cpu", "faiss-gpu") if _installed(name)]
    if len(both) == 2:
        action = "Uninstall both, then install one: they write the same files."
        found.append(Finding("faiss", "fails", "faiss-cpu and faiss-gpu are both installed", action))
    elif not both and importlib.util.find_spec("faiss") is None:
        found.append(Finding("faiss", "fails", "not installed", "pip install 'openbook[cpu]' or 'openbook[gpu]'."))
    else:
        which = both[0] if both else "faiss, of another name"
        found.append(Finding("faiss", "ok", f"{which} {version(both[0]) if both else ''}".strip()))
        if torch.cuda.is_available() and both == ["faiss-cpu"]:
            action = "`make setup FAISS=gpu` searches IVF and PQ there; Flat and SQfp16 are searched by torch anyway."
            found.append(Finding("faiss", "warning", "there is a GPU, and FAISS is the one for CPUs", action))
    if importlib.util.find_spec("jax") is not None:
        found.append(Finding("jax", "ok", "installed beside torch; it is kept off the GPU while openbook runs"))
    return found


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def devices(config: Config) -> list[Finding]:
    """What the experiment would compute on, and how many there are."""
    import torch

    from openbook.utils.hardware import accelerator, n_cores

    on = accelerator(config.trainer.accelerator)
    wanted, nodes = config.trainer.devices, config.trainer.nodes
    ranks = f"{wanted} of them" + (f" on each of {nodes} nodes" if nodes > 1 else "")
    if on == "cpu":
        memory = available_memory()
        cores = f"CPU, {n_cores()} cores, {human(memory) if memory else 'unknown memory'} free; {ranks} as ranks"
        if wanted > n_cores():
            return [Finding("devices", "fails", cores, f"Set trainer.devices to at most {n_cores()}.")]
        if importlib.util.find_spec("triton") and Path("/proc/driver/nvidia").exists():
            action = "Install a torch built for CUDA, or look at `nvidia-smi`."
            return [Finding("devices", "warning", f"{cores}; there is a GPU that torch does not see", action)]
        return [Finding("devices", "ok", cores)]
    cards = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    free = [torch.cuda.mem_get_info(number)[0] for number in range(len(cards))]
    listed = ", ".join(f"{card} with {human(left)} free" for card, left in zip(cards, free, strict=True))
    found = f"{listed}; {ranks}; bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}"
    if wanted > len(cards):
        return [Finding("devices", "fails", found, f"Set trainer.devices to at most {len(cards)}.")]
    return [Finding("devices", "ok", found)]


def space(config: Config) -> list[Finding]:
    """Free disk where runs and caches are written, and whether they can be written to."""
    found = []
    for what, folder in (("space for runs", config.run.dir or "runs"), ("space for caches", config.data.cache)):
        place = Path(folder).resolve()
        while not place.exists():
            place = place.parent
        free = disk_free(place)
        if not os.access(place, os.W_OK):
            found.append(Finding(what, "fails", f"{folder} cannot be written to", "Choose another folder."))
        elif free is not None and free < LITTLE:
            found.append(Finding(what, "warning", f"{human(free)} free in {folder}", "Make room, or choose another."))
        else:
            found.append(Finding(what, "ok", f"{human(free) if free is not None else 'unknown'} free in {folder}"))
    return found


def curves(config: Config) -> Finding:
    """Where curves go, and whether there is a key for it."""
    from openbook.utils.outside import check_wandb, wandb_mode

    check_wandb(config.wandb.mode)
    mode = wandb_mode(config.wandb.mode)
    kept = {"offline": "kept in the run folder until `wandb sync`", "online": "sent; there is a key"}
    return Finding("wandb", "ok", f"{mode}: {kept.get(mode, 'metrics.csv alone')}")


def ports(config: Config) -> Finding:
    """Whether ranks of this machine can find each other."""
    if config.trainer.world_size == 1:
        return Finding("network", "ok", "one process needs none")
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "0"))
    try:
        name = socket.gethostbyname(address)
        with socket.socket() as tried:
            tried.bind(("" if "MASTER_ADDR" in os.environ else name, port))
    except OSError as error:
        said = f"{address}:{port or 'any port'}: {error.strerror or error}"
        return Finding("network", "fails", said, "Set MASTER_ADDR to the first node and MASTER_PORT to a free port.")
    return Finding("network", "ok", f"ranks meet at {address}, {f'port {port}' if port else 'any free port'}")


def _show(one: Finding) -> None:
    console.print(f"[{COLOURS[one.status]}]{one.status:<8}[/]", end="")
    console.print(f"{one.what}: {one.found}" + (f" {one.do}" if one.do else ""), markup=False)
