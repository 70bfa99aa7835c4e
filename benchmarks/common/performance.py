"""Put the figures of benchmarks/latest.json into docs/performance.md and docs/images/performance.png.

    python -m benchmarks.common.performance

The page's words are written by hand; what stands between its marks comes from here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.common.docs_page import between_marks
from benchmarks.training.cost import REFRESH_WORK, STEP_WORK, Refresh, Stack, Step
from openbook.utils.atomic import write_text

PAGE, PICTURE = Path("docs/performance.md"), Path("docs/images/performance.png")
OBJECTIVES = {"rag_token": "RAG-Token", "rag_sequence": "RAG-Sequence"}
AXES = {
    "n_docs": "passages per question",
    "batch": "questions",
    "passage_len": "tokens of a passage",
    "target_len": "tokens of a target",
    "n_passages": "passages of the corpus",
    "dim": "dim of all models",
}

H100_PEAK = 989e12
"""Operations per second, dense bf16, of an H100 SXM by NVIDIA's data sheet."""

H100_BANDWIDTH = 3.35e12
"""Bytes per second of its memory, likewise. AdamW reads and writes 28 per weight."""

PROJECTED = Step(
    n_passages=21_000_000 // 8,
    batch=8,
    n_docs=5,
    question_len=16,
    passage_len=130,
    target_len=16,
    encoder=Stack(12, 768, 12),
    generator=Stack(12, 1024, 16),
    vocab=50_265,
    tokens_per_pass=65536,
    absorbs=False,
)
"""One of 8 GPUs: DPR's encoders over 21 million passages of 100 words, BART-large, 8 questions."""


def step_table(found: dict[str, Any]) -> str:
    rows = ["| | transformers | openbook | times as fast (least, most) |", "|---|---|---|---|"]
    variants = {"as_used": "each as used", "same_precision": "both fp32", "same_padding": "both fp32, contexts at 300"}
    for size in ("", "small."):
        for objective, title in OBJECTIVES.items():
            key = f"step.{size}{objective}"
            for variant, words in variants.items():
                ours, theirs = found[f"{key}.seconds_{variant}"], found[f"{key}.transformers_seconds_{variant}"]
                ratio, least, most = (found[f"{key}.speedup_{variant}{end}"] for end in ("", ".least", ".most"))
                rows.append(
                    f"| {title}{', small' if size else ''}, {words} | {theirs:.3g} s | {ours:.3g} s | "
                    f"{ratio:.2f} ({least:.2f}, {most:.2f}) |"
                )
    return "\n".join(rows)


def memory_table(found: dict[str, Any]) -> str:
    rows = ["| beyond weights, gradients and optimizer | transformers | openbook | share |", "|---|---|---|---|"]
    cases = {
        "": "as used",
        "_checkpointed": "`trainer.checkpointing`, transformers without",
        "_128": "128 target tokens",
    }
    for objective, title in OBJECTIVES.items():
        for end, words in cases.items():
            key = f"step.{objective}"
            theirs = found[f"{key}.transformers_mib{'' if end == '_checkpointed' else end}"]
            rows.append(
                f"| {title}, {words} | {theirs:,.0f} MiB | {found[f'{key}.mib{end}']:,.0f} MiB | "
                f"{found[f'{key}.memory_ratio{end}']:.3f} |"
            )
    return "\n".join(rows)


def parts_table(found: dict[str, Any]) -> str:
    rows = ["| part, forward and backward | transformers | openbook |", "|---|---|---|"]
    for part in ("contexts", "encoder", "decoder", "head_and_loss", "optimizer"):
        theirs, ours = (found[f"step.rag_token.{word}.{part}"] for word in ("transformers_part", "part"))
        rows.append(f"| {part.replace('_', ' ')} | {1000 * theirs:,.4g} ms | {1000 * ours:,.4g} ms |")
    return "\n".join(rows)


def loss_table(found: dict[str, Any]) -> str:
    rows = [
        "| questions x passages x target tokens | the plain formula keeps at least | fused loss, all it takes |",
        "|---|---|---|",
    ]
    sweep = [key.removesuffix(".mib") for key in found if key.startswith("fused.sweep.") and key.endswith(".mib")]
    for key in sorted(sweep, key=lambda key: found[f"{key}.plain_at_least_mib"]):
        rows.append(
            f"| {key.rpartition('.')[2].replace('x', ' x ')} | {found[f'{key}.plain_at_least_mib']:,.0f} MiB | "
            f"{found[f'{key}.mib']:,.0f} MiB |"
        )
    return "\n".join(rows)


def search_table(found: dict[str, Any]) -> str:
    sizes = sorted({int(key.split(".")[2]) for key in found if key.startswith("search.faiss.")})
    names = {
        "flat": "`Flat`",
        "faiss": "FAISS's flat index as it comes",
        "faiss_blas": "the same, always by BLAS",
        "sqfp16": "`SQfp16`",
        "ivf": "`IVF`",
        "hnsw": "`HNSW32`",
    }
    rows = ["| ms for 32 questions (recall) |" + "".join(f" {n:,} |" for n in sizes), "|---|" + "---|" * len(sizes)]
    for name, words in names.items():
        cells = []
        for n in sizes:
            key = f"search.{name}.{n}"
            there = f"{key}.seconds" in found
            cells.append(f" {1000 * found[f'{key}.seconds']:.1f} ({found[f'{key}.recall']:.3f}) |" if there else " |")
        rows.append(f"| {words} |" + "".join(cells))
    return "\n".join(rows)


def host_table(found: dict[str, Any]) -> str:
    rows = ["| questions | `RagRetriever` | openbook | times as fast | with the search |", "|---|---|---|---|---|"]
    for n in sorted({int(key.split(".")[1]) for key in found if key.startswith("host.") and key.count(".") == 3}):
        ours, theirs = (1000 * found[f"host.{n}.{side}.seconds"] for side in ("ours", "theirs"))
        rows.append(
            f"| {n} | {theirs:.1f} ms | {ours:.2f} ms | {found[f'host.{n}.speedup']:.0f} | "
            f"{found[f'host.{n}.speedup_with_search']:.1f} |"
        )
    return "\n".join(rows)


def constants_table(found: dict[str, Any]) -> str:
    rows = ["| seconds per unit of work | step | refresh |", "|---|---|---|"]
    for kind in dict.fromkeys(STEP_WORK + REFRESH_WORK):
        cells = [found.get(f"cost_model.{name}.seconds_per.{kind}") for name in ("step", "refresh")]
        rows.append(f"| {kind} |" + "".join(" |" if cell is None else f" {cell:.3g} |" for cell in cells))
    return "\n".join(rows)


def errors_table(found: dict[str, Any]) -> str:
    rows = ["| | fitted on | tried on | mean error | worst error |", "|---|---|---|---|---|"]
    for name in ("step", "refresh"):
        fit, grid, mean, worst = (
            found[f"cost_model.{name}.{what}"] for what in ("fitted", "tried", "mean_error", "worst_error")
        )
        rows.append(f"| {name} | {fit} sizes | {grid} others | {100 * mean:.1f} % | {100 * worst:.1f} % |")
    return "\n".join(rows)


def projection_table() -> str:
    """Operations counted as in the cost model; the share of the peak that is reached is assumed, so there are three."""
    step, refresh = PROJECTED, Refresh(PROJECTED.n_passages, PROJECTED.passage_len, PROJECTED.encoder)
    per_score = 4 * 64  # operations: two products over 64 numbers per head
    optimizer = 28 * step.trained / H100_BANDWIDTH
    rows = [
        "| share of the matmul peak (assumed) | a refresh | a step | steps per refresh, for 10 % of the time |",
        "|---|---|---|---|",
    ]
    for share in (0.2, 0.4, 0.6):
        refreshing, training = (
            (work[0] + per_score * work[1]) / (share * H100_PEAK) for work in (refresh.work(), step.work())
        )
        training += optimizer
        rows.append(
            f"| {share} | {refreshing:,.0f} s | {1000 * training:.0f} ms | "
            f"{round(9 * refreshing / training, -3):,.0f} |"
        )
    return "\n".join(rows)


def draw(found: dict[str, Any], path: Path) -> None:
    """Seconds of a step along every axis, measured and predicted; memory of the loss against the plain formula's."""
    figure = Figure(figsize=(13, 7), dpi=100, layout="constrained")
    for place, (axis, words) in enumerate(AXES.items(), 1):
        start, end = f"cost_model.step.{axis}.", ".seconds"
        at = sorted(int(key[len(start) : -len(end)]) for key in found if key.startswith(start) and key.endswith(end))
        axes: Any = figure.add_subplot(2, 4, place)
        axes.plot(at, [found[f"{start}{n}.seconds"] for n in at], "o-", color="#2f6fd0", label="measured")
        axes.plot(at, [found[f"{start}{n}.predicted"] for n in at], "x--", color="#d97706", label="cost model")
        axes.set_title(f"seconds of a step: {words}", loc="left", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(color="#d8dee4", linewidth=0.7)
        axes.legend(frameon=False, fontsize=8)
    sweep = [key.removesuffix(".mib") for key in found if key.startswith("fused.sweep.") and key.endswith(".mib")]
    sweep.sort(key=lambda key: found[f"{key}.plain_at_least_mib"])
    axes = figure.add_subplot(2, 4, 7)
    plain = [found[f"{key}.plain_at_least_mib"] for key in sweep]
    axes.loglog(plain, plain, "--", color="#b42318", label="plain formula, at least")
    axes.loglog(plain, [found[f"{key}.mib"] for key in sweep], "o-", color="#2f6fd0", label="fused loss")
    axes.set_title("MiB of the loss over logits' MiB", loc="left", fontsize=9)
    axes.grid(color="#d8dee4", linewidth=0.7)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)


def machine_line(found: dict[str, Any]) -> str:
    said = {name: found.get(f"machine.{name}", "") for name in ("cpu", "cores", "threads", "gpus", "versions.torch")}
    return (
        f"{said['cpu']}, {said['threads']} thread(s) on {said['cores']} core(s)"
        f"{', ' + said['gpus'] if said['gpus'] else ', no GPU'}; torch {said['versions.torch']}; training in "
        f"{found['step.dtype']}."
    )


def sentences(found: dict[str, Any]) -> str:
    """Figures that need no table."""
    cached, checkpointed = (found[f"passage_gradient.{name}.time_ratio"] for name in ("cached", "checkpointed"))
    mib = {name: found[f"passage_gradient.{name}.peak_mib"] for name in ("plain", "cached", "checkpointed")}
    return "\n".join(
        [
            f"- A corpus is encoded at {found['encode.fraction_of_peak']:.2f} of the matmul peak "
            f"({found['encode.peak_gflops']:,.0f} GFLOP/s in {found['encode.dtype']}) in operations of real tokens, "
            f"{found['encode.speedup_naive']:.1f} times as fast as the naive loop.",
            f"- 64 retrieved passages with gradient take {mib['plain']:,.0f} MiB; with "
            f"`retriever.tokens_per_backward=1024` {mib['cached']:,.0f}, in {cached:.2f} times the time; with "
            f"`trainer.checkpointing=true` {mib['checkpointed']:,.0f}, in {checkpointed:.2f} times.",
            f"- The loss alone, fused over plain with only the labels gathered: {found['fused.32.speedup']:.2f} times "
            f"as fast in fp32 and {found['fused.32.bf16.speedup']:.2f} in bf16 at 32 target tokens, in "
            f"{found['fused.32.mib']:,.0f} against {found['fused.32.plain_mib']:,.0f} MiB.",
            f"- Two ranks instead of one, the same questions per rank: "
            f"{found['ranks.efficiency.2']:.2f} of the speed per rank.",
        ]
    )


def refresh_line(found: dict[str, Any]) -> str:
    return (
        f"`rag_token` on the embedded default: a step takes {found['plan.step_seconds.measured']:.2f} s, a blocking "
        f"refresh {found['plan.refresh_seconds.measured']:.0f} s, which every 20 steps is "
        f"{100 * found['plan.share.measured']:.0f} % of the time; before the run the plan said "
        f"{found['plan.step_seconds.predicted']:.2f} s, {found['plan.refresh_seconds.predicted']:.0f} s and "
        f"{100 * found['plan.share.predicted']:.0f} %."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", type=Path, default=Path("benchmarks/latest.json"))
    given = parser.parse_args()
    found = json.loads(given.figures.read_text(encoding="utf-8"))
    tables = {
        "machine": machine_line(found),
        "step": step_table(found),
        "memory": memory_table(found),
        "parts": parts_table(found),
        "loss": loss_table(found),
        "search": search_table(found),
        "host": host_table(found),
        "encoding": sentences(found),
        "refresh": refresh_line(found),
        "constants": constants_table(found),
        "errors": errors_table(found),
        "projection": projection_table(),
    }
    for name, text in tables.items():
        write_text(PAGE, between_marks(PAGE, text, name))
    draw(found, PICTURE)


if __name__ == "__main__":
    main()
