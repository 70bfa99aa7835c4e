"""The small system that faults are planted into: tiny models with random weights, 37 passages; and its processes."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import torch
from transformers import BartForConditionalGeneration, BertConfig, BertModel, BertTokenizerFast

from benchmarks.common import processes
from openbook.__main__ import main
from tests.small_system import SmallSystem
from tests.tiny_models import bart_config

LETTERS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau".split()
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the capital of is what a river flows through ? .".split() + LETTERS


@cache
def small_system(folder: Path) -> SmallSystem:
    """Made in the folder at the first call."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    torch.manual_seed(1)
    size = {"vocab_size": len(WORDS), "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    encoder = BertModel(BertConfig(**size, intermediate_size=40, max_position_embeddings=128, initializer_range=0.3))
    made = bart_config(len(WORDS), layers=(1, 1), pad=0, bos=2, eos=3, max_position_embeddings=128, init_std=0.3)
    for model, name in ((encoder, "encoder"), (BartForConditionalGeneration(made), "generator")):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    data = folder / "data"
    data.mkdir(exist_ok=True)
    rows = {"passages": [], "train": [], "validation": [], "test": []}
    for number in range(37):
        country, city, river = (LETTERS[number * step % len(LETTERS)] for step in (1, 3, 7))
        name = f"{country} {LETTERS[number // 2]}"
        text = f"the capital of {name} is {city} . a river {river} flows through {name} ."
        rows["passages"].append({"id": f"p{number}", "title": name, "text": text})
        split = "train" if number < 23 else "validation" if number < 30 else "test"
        asked = {"id": f"q{number}", "question": f"what is the capital of {name} ?", "answers": [city]}
        rows[split].append(asked | {"positive_ids": [f"p{number}"], "relation": "capital", "phrasing": "trained"})
    for name, lines in rows.items():
        (data / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return SmallSystem(folder / "encoder", folder / "generator", data)


def start_ranks(n: int, words: Sequence[str], planted: str = "", per_node: int = 0) -> list[subprocess.Popen[str]]:
    """An `openbook` command in n gloo processes, as a cluster starts them. planted: Python that runs first in each,
    with `rank` as its number. per_node: ranks on each node (all of them this machine), as trainer.devices says."""
    script = f"import os, sys\nrank = int(os.environ['RANK'])\n{planted}\n"
    script += f"from openbook.__main__ import main\nsys.exit(main({list(words)!r}))\n"
    return processes.start_ranks(script, n, per_node)


def spoken(words: list[str]) -> tuple[int, str]:
    """Exit code and output of a command in this process."""
    os.environ["OPENBOOK_RUN_DIR"] = ""
    said = io.StringIO()
    logger, told = logging.getLogger("openbook"), logging.StreamHandler(said)
    logger.addHandler(told)  # whatever else listens to it
    try:
        with redirect_stdout(said), redirect_stderr(said):
            return main(words), said.getvalue()
    except Exception as error:  # what a user would see as a traceback
        return 1, f"{said.getvalue()}\nTraceback: {error!r}"
    finally:
        logger.removeHandler(told)
