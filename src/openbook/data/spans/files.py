"""Questions made of the corpus alone, as files: masked spans of its sentences (masking.py), split by passage."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from openbook.data.question_file import QuestionFile
from openbook.data.readers.checked_lines import file_fingerprint, id_hash
from openbook.data.readers.fields import json_of
from openbook.data.readers.formats import read_passages
from openbook.data.spans.masking import SpanOptions, spans_of_passage
from openbook.errors import OpenBookError
from openbook.utils.atomic import replacing, replacing_folder
from openbook.utils.console import say

VERSION = 1  # raise it whenever the same options give other bytes

SPLITS = ("train", "validation", "test")
_HELD_BACK = 20  # of so many passages one is for validation, and one for the test


class SpanFiles(NamedTuple):
    """Question files by split, and how many questions of each kind they hold together."""

    paths: dict[str, Path]
    kinds: dict[str, int]


class Limit(NamedTuple):
    """Which questions are short enough: a function of a list of them, and what it is known by."""

    fits: Callable[[list[str]], list[bool]]
    name: str


ANY = Limit(lambda texts: [True] * len(texts), "")


class NoSpansError(OpenBookError):
    """No sentence of the corpus holds a span."""


def build_spans(
    passages: Path,
    options: SpanOptions,
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
    limit: Limit = ANY,
) -> SpanFiles:
    """Files of questions about the corpus, in `cache` from the second call on. A passage's questions are all in one
    split. NoSpansError where no sentence of the corpus holds one."""
    key = json.dumps([VERSION, file_fingerprint(passages, cache), asdict(options), limit.name])
    folder = Path(cache) / f"spans-{id_hash(key):016x}"
    if not (folder / "counts.json").is_file():
        drawn = _draw(passages, options, progress or (lambda *_: None))
        fit = [fits for some in _batched(drawn, 4096) for fits in limit.fits([str(row["question"]) for row in some])]
        rows = [row for row, fits in zip(drawn, fit, strict=True) if fits]
        if len(rows) < len(drawn):
            say(f"{len(drawn) - len(rows):,} of {len(drawn):,} masked spans are left out: their questions are too long")
        if not rows:
            raise NoSpansError(
                "no masked span can be made of the corpus",
                where="data.train" if options.most else "data.spans",
                got=f"no sentence with a name, a date or a number in {passages}",
                expected="running text; names are found by their capitals",
                action="Set data.spans.language, or train on questions of your own: with warmup.spans=0 and "
                "data.spans.share=0 they do without masked spans.",
            )
        with replacing_folder(folder, complete=lambda made: (made / "counts.json").is_file()) as new:
            for split in SPLITS:
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows if _split_of(row) == split]
                # A corpus of a few passages may have none to hold back: then they are asked about what is trained on.
                lines = lines or [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
                (new / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
            counts = Counter(str(row["relation"]) for row in rows)
            (new / "counts.json").write_text(json.dumps(dict(sorted(counts.items()))), encoding="utf-8")
    kinds = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    told = (f"{n:,} {kind}{'s' if n > 1 else ''}" for kind, n in kinds.items())
    say(f"masked spans of the corpus as questions: {', '.join(told)}")
    return SpanFiles({split: folder / f"{split}.jsonl" for split in SPLITS}, kinds)


def mixed(questions: Path, spans: Path, share: float, cache: Path) -> Path:
    """The file of all questions and as many masked spans as make up this share of it (below 1), in `cache`; where the
    corpus gives fewer, all of them, which is said."""
    key = json.dumps([VERSION, file_fingerprint(questions, cache), file_fingerprint(spans, cache), share])
    target = Path(cache) / f"mixed-{id_hash(key):016x}.jsonl"
    asked, masked = QuestionFile(questions), QuestionFile(spans)
    wanted = round(share / (1 - share) * len(asked))
    if wanted > len(masked):
        say(f"data.spans.share={share:g} would take {wanted:,} masked spans: the corpus gives {len(masked):,}")
    chosen = [masked[place] for place in range(min(wanted, len(masked)))]  # the file is in the order of a hash
    if not target.is_file():
        with replacing(target) as new, open(new, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(json_of(one), ensure_ascii=False) + "\n" for one in (*asked, *chosen))
    return target


def _batched(rows: list[dict[str, object]], size: int) -> Iterator[list[dict[str, object]]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _draw(passages: Path, options: SpanOptions, progress: Callable[[int, int], None]) -> list[dict[str, object]]:
    """At most `most` questions of all passages, in the order of a hash: those whose hash is lowest."""
    lowest: list[tuple[int, int, dict[str, object]]] = []
    place = 0
    for n, passage in enumerate(read_passages(passages), 1):
        for row in spans_of_passage(passage, options):
            place += 1
            entry = (-id_hash(str(row["id"])), place, row)
            if len(lowest) < options.most:
                heapq.heappush(lowest, entry)
            else:
                heapq.heappushpop(lowest, entry)
        if n % 1000 == 0:
            progress(n, 0)
    return [row for _, _, row in sorted(lowest, reverse=True)]


def _split_of(row: dict[str, object]) -> str:
    number = id_hash(str(row["positive_ids"])) % _HELD_BACK
    return {0: "validation", 1: "test"}.get(number, "train")
