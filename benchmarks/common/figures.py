"""Figures by flat keys, merged into one JSON file; what is wanted of them; the command line all scripts share."""

from __future__ import annotations

import argparse
import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from openbook.tracking.environment import describe

Value = float | int | str

OUT = Path("benchmarks/index.json")

WANTED: dict[str, tuple[float, float]] = {
    "encode.speedup_naive": (3.5, math.inf),
    "refresh.amortized.worst_step_ratio": (0, 1.5),
    "refresh.amortized.total_ratio": (0.9, 1.1),
    "swap.memory_ratio": (0, 1.1),
    "swap.sqfp16.memory_ratio": (0, 1.1),
    "swap.amortized.memory_ratio": (0, 1.1),
    "rolling.memory_ratio": (0, 1.1),
    "rolling.sqfp16.memory_ratio": (0, 1.1),
    "million.peak_of_planned": (0, 1.0),
    "plan.worst_error": (0, 0.25),
    "cost_model.worst_error": (0, 0.2),
    "encode.fraction_of_peak": (0.45, math.inf),
    "stale.recovered_by_rerank": (0.9, math.inf),
    "hot.recall_kept_at_10_percent": (0.8, math.inf),
    "search.flat.speedup_faiss": (1.0, math.inf),
    "host.speedup": (30, math.inf),
    "host.speedup_with_search": (5, math.inf),
    "decode.rag_token_1.speedup": (1.9, math.inf),
    "decode.rag_token_4.speedup": (3.5, math.inf),
    "decode.rag_token_1.memory_ratio": (0, 1 / 6),
    "decode.rag_token_4.memory_ratio": (0, 1 / 6),
    "decode.rag_sequence_thorough.speedup": (2.5, math.inf),
    "safety.step.share": (0, 0.01),
    "safety.save.ratio": (0, 1.2),
    "serving.lost": (0, 0),
    "serving.mixed": (0, 0),
    "operators.step.share_of_a15bf0e": (0, 0.5),
    "operators.step.padded.share_of_a15bf0e": (0, 0.5),
    "gpu.step.base.speedup_own_length": (1.8, math.inf),
    "gpu.step.base.speedup_padded": (2.5, math.inf),
    "gpu.step.base.fraction_of_peak": (0.3, math.inf),
    "gpu.step.base.packed": (1, 1),
    "gpu.step.large.fraction_of_peak": (0.4, math.inf),
    "gpu.step.base.memory_ratio": (0, 0.5),
    "gpu.loss.fraction_of_peak": (0.4, math.inf),
    "gpu.loss.kernel": (1, 1),
    "gpu.loss.32x10x32.memory_ratio": (0, 0.25),
    "gpu.search.flat.over_floor_64": (0, 2.0),
    "gpu.search.sqfp16.over_floor_64": (0, 2.0),
    "gpu.search.flat.over_torch_512": (0, 1.0),
    "gpu.search.flat.over_torch_tf32_512": (0, 1.0),
    "gpu.search.sqfp16.over_torch_512": (0, 1.0),
    "gpu.encode.fraction_of_peak": (0.45, math.inf),
    "gpu.amortized.worst_step_ratio": (0, 1.3),
    "gpu.amortized.total_ratio": (0, 1.1),
    "data.tokenise.share_of_tokenizers": (0.8, math.inf),
    "data.million.seconds": (0, 120),
    "data.million.peak_mib": (0, 600),
    "data.million.disk_gb": (0, 1.6),
    "data.second_run.cpu_seconds": (0, 5),
    "data.questions.million.seconds": (0, 20),
    "data.questions.million.peak_mib": (0, 500),
} | {
    f"step.{objective}.{key}": wanted
    for objective in ("rag_token", "rag_sequence")
    for key, wanted in {
        "speedup_as_used": (4.0, math.inf),
        "speedup_same_precision": (1.6, math.inf),
        "speedup_same_padding": (1.1, math.inf),
        "memory_ratio": (0, 0.5),
        "memory_ratio_checkpointed": (0, 0.1),
        "memory_ratio_128": (0, 0.4),
    }.items()
}
"""The least and the most that a figure should be; those that are not named here are for information."""


def record(path: Path | str, figures: Mapping[str, Value]) -> None:
    """Merge figures and this machine's description into the JSON file, which is replaced as a whole.

    Keys that are not given stay. Floats keep 4 significant digits; one that is not finite is a ValueError: JSON has
    no word for it, and it is no measurement.
    """
    path = Path(path)
    broken = [key for key, value in figures.items() if isinstance(value, float) and not math.isfinite(value)]
    if broken:
        raise ValueError(f"not finite: {', '.join(broken)}")
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = {key: value for key, value in old.items() if not key.startswith("machine.")}
    merged = kept | {key: rounded(value) for key, value in figures.items()} | machine()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    new.write_text(json.dumps(merged, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(new, path)


def rounded(value: Value) -> Value:
    """Floats to 4 significant digits; the rest as it is."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def machine() -> dict[str, Value]:
    """What this machine is, by keys `machine.*`: no path and no host name among them."""
    found: dict[str, Value] = {}
    for key, value in describe().items():
        if isinstance(value, dict):
            found |= {f"machine.{key}.{name}": str(part) for name, part in value.items()}
        else:
            found[f"machine.{key}"] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return found


def table(figures: Mapping[str, Value]) -> list[str]:
    """One line for each figure: its key, its value, and what is wanted of it."""
    width = max(map(len, figures), default=0)
    return [f"{key:<{width}}  {_shown(value):>10}  {_verdict(key, value)}".rstrip() for key, value in figures.items()]


def options(description: str | None) -> argparse.ArgumentParser:
    """--out FILE and --quick; a script may add its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help=f"JSON file that the figures go to (default: {OUT})")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that it runs; not written without --out"
    )
    return parser


def finish(asked: Any, figures: Mapping[str, Value]) -> None:
    """Print the table, and write the figures where that was asked for."""
    print("\n".join(["", *table(figures)]))
    out = asked.out or (None if asked.quick else OUT)
    if out:
        record(out, figures)
        print(f"written to {out}")


def median(values: list[float]) -> float:
    """The middle one, of an even number the mean of the two in the middle."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def _shown(value: Value) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def _verdict(key: str, value: Value) -> str:
    if key not in WANTED or isinstance(value, str):
        return ""
    least, most = WANTED[key]
    wanted = f">= {least:g}" if most == math.inf else f"<= {most:g}" if least == 0 else f"{least:g} to {most:g}"
    return f"wanted {wanted}: {'yes' if least <= value <= most else 'NO'}"
