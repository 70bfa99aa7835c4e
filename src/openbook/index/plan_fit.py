"""Whether a plan fits this machine; where it does not, which settings would, computed."""

import math
from contextlib import suppress
from dataclasses import replace

from openbook.errors import OpenBookError
from openbook.index.faiss_factory import check_factory
from openbook.index.plan import Plan, family_facts
from openbook.utils.host_memory import human

MARGIN = 0.9  # the share of the free RAM and GPU memory that an index may plan with
_GPU_CODES = (48, 40, 32, 28, 24, 20, 16, 12, 8, 4, 3, 2, 1)  # of PQ: what FAISS searches in a GPU's shared memory


def check_fits(plan: Plan, ram: int | None, gpu: int | None, disk: int | None) -> None:
    """Raise one OpenBookError where the plan needs more than there is, with the settings that would fit, computed.

    ram, gpu, disk: bytes free once the models are loaded, None where unknown; of RAM and GPU memory MARGIN may be used.
    """
    free = {"RAM": ram and int(ram * MARGIN), "GPU memory": gpu and int(gpu * MARGIN), "disk": disk}
    room = {name: n_bytes for name, n_bytes in free.items() if n_bytes is not None}
    if not (short := _short(plan, room)):
        return
    advice = [_disk_advice(plan, room["disk"])] if "disk" in short else []
    if short.keys() - {"disk"}:
        advice.insert(0, _memory_advice(plan, {name: room[name] for name in room if name != "disk" or not advice}))
    limits = [human(room[name]) + ("" if name == "disk" else f" ({MARGIN:.0%} of what is free)") for name in short]
    raise OpenBookError(
        f"the index does not fit {' and '.join(short)}",
        where=f"index.factory={plan.factory}, refresh.mode={plan.mode}, {plan.n_passages:,} passages of dim {plan.dim}",
        got=" and ".join(f"{human(room[name] + lack)} of {name}" for name, lack in short.items()),
        expected=f"at most {' and '.join(limits)}",
        action=" ".join(advice),
    )


def _short(plan: Plan, room: dict[str, int]) -> dict[str, int]:
    """Bytes that are missing, by what they are missing of."""
    needs = {"RAM": plan.ranks_per_node * plan.ram_at_swap, "GPU memory": plan.gpu_at_swap, "disk": plan.disk}
    return {name: need - room[name] for name, need in needs.items() if need > room.get(name, need)}


def _memory_advice(plan: Plan, room: dict[str, int]) -> str:
    tried = _alternatives(plan, room)
    good = [
        f"{_changed(plan, other)} ({human(other.ranks_per_node * other.ram_at_swap)} of RAM"
        + (f", {human(other.gpu_at_swap)} on the GPU)" if other.device == "gpu" else ")")
        for other in tried
        if not _short(other, room)
    ]
    if good:
        return f"What would fit: {'; '.join(good[:3])}."
    nearest = min([plan, *tried], key=lambda other: sum(_short(other, room).values()))
    missing = " and ".join(f"{human(lack)} of {name}" for name, lack in _short(nearest, room).items())
    return f"No setting would fit: {_changed(plan, nearest) or 'this one'} comes nearest and lacks {missing}."


def _alternatives(plan: Plan, room: dict[str, int]) -> list[Plan]:
    """Other settings, those that change least first: no second index, smaller codes, more nodes. Of each kind one, its
    first that fits if one does."""
    # PQ's bytes: dim / 8 or half of it. Lists: about 4 sqrt(n); fewer learn from a smaller sample, and search slower.
    sizes = [m for m in range(plan.dim // 8, 0, -1) if plan.dim % m == 0 and (plan.device == "cpu" or m in _GPU_CODES)]
    sizes = sizes[:1] + [m for m in sizes if 2 * m <= sizes[0]][:1]
    lists = [2 ** round(math.log2(4 * math.sqrt(plan.n_shard))) >> halved for halved in range(5)]
    pairs = [(n, m) for m in sizes for n in lists if 39 * n <= plan.n_shard]
    worlds = range(plan.world_size, 1024 * plan.ranks_per_node, plan.ranks_per_node)[1:]
    kinds = (
        _modes(plan, plan.factory)[1:],
        _modes(plan, "SQfp16"),
        _modes(plan, "SQ8") if plan.device == "cpu" else [replace(plan, device="cpu")],
        [other for n, m in pairs for other in _modes(plan, f"IVF{n},PQ{m}")],
        [replace(plan, world_size=n_ranks) for n_ranks in worlds],
    )
    return [next((other for other in kind if not _short(other, room)), kind[-1]) for kind in kinds if kind]


def _modes(plan: Plan, factory: str) -> list[Plan]:
    """The plan with this factory: refreshed as now, and in the other way, where the family and the corpus allow it.
    None where another factory's codes are not smaller than now."""
    other = replace(plan, factory=factory, mode="amortized" if plan.in_place else "rolling")
    smaller = family_facts(factory, plan.dim)[0] < family_facts(plan.factory, plan.dim)[0] or factory == plan.factory
    both, found = [replace(plan, factory=factory), other], []
    for changed in both[: 1 + plan.trains] if smaller else []:
        with suppress(OpenBookError):
            check_factory(factory, plan.dim, plan.n_passages // plan.world_size, changed.in_place)
            found.append(changed)
    return found


def _disk_advice(plan: Plan, room: int) -> str:
    fewer = [replace(plan, keep_vectors=n) for n in range(plan.keep_vectors - 1, -1, -1)]
    fewer += [replace(plan, keep_vectors=0, mode="amortized")] if plan.in_place else []
    good = [f"{_changed(plan, other)} ({human(other.disk)})" for other in fewer if other.disk <= room][:1]
    return f"On disk: {' or '.join([*good, 'a larger one (data.cache, run.dir)'])}."


def _changed(plan: Plan, other: Plan) -> str:
    """The settings in which other differs, as one writes them on the command line."""
    keys = {"factory": "index", "mode": "refresh", "device": "index", "keep_vectors": "index"}
    words = [f"{keys[n]}.{n}={getattr(other, n)}" for n in keys if getattr(other, n) != getattr(plan, n)]
    if other.world_size != plan.world_size:
        words.append(f"trainer.nodes={other.world_size // other.ranks_per_node}")
    return " ".join(words)
