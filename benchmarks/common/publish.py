"""Put the decoding speed-ups of benchmarks/decode.json into docs/results.json and docs/results.md.

python -m benchmarks.common.publish
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.common.docs_page import publish

FIGURES, DOCS = Path("benchmarks/decode.json"), Path("docs")
CASES = {
    "rag_token_1": "RAG-Token, one question",
    "rag_token_4": "RAG-Token, four questions",
    "rag_sequence_thorough": "RAG-Sequence thorough, one question",
    "rag_sequence_thorough_4": "RAG-Sequence thorough, four questions",
}


def main() -> None:
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    there = {name: words for name, words in CASES.items() if f"decode.{name}.speedup" in figures}
    rows = ["| | openbook | transformers | times as fast | memory, share of theirs |", "|---|---|---|---|---|"]
    for name, words in there.items():
        ours, theirs, speedup, memory = (
            figures[f"decode.{name}.{key}"] for key in ("seconds", "transformers_seconds", "speedup", "memory_ratio")
        )
        rows.append(f"| {words} | {ours:.2f} s | {theirs:.2f} s | {speedup:.1f} | {memory:.3f} |")
    table = "\n".join(rows)
    speedups = {name: figures[f"decode.{name}.speedup"] for name in there}
    publish(DOCS, "decode", f"`make bench-decode`\n\n{table}", {"decode": speedups})


if __name__ == "__main__":
    main()
