"""What a user may get wrong, in settings, files, models and commands: one sentence that names it, exit code 2, within
ten seconds, no traceback and no run folder."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from unittest import mock

import torch

from benchmarks.faults.small import small_system, spoken

NAME = "bad input"
QUICK, FULL = 10, 81
SECONDS = 10.0
GOOD = {"id": "q", "question": "what is the capital of alpha ?", "answers": ["beta"]}
PASSAGE = {"id": "p", "title": "t", "text": "the capital of alpha is beta"}

# key=value -> what must be said of it.
SETTINGS = {
    "trainer.maxsteps=3": "Did you mean trainer.max_steps?",
    "trainer.max_steps": "expected key=value",
    "seed=many": "expected a whole number",
    "seed=1e20": "expected a whole number",
    "seed=4294967296": "less than 4,294,967,296",
    "seed=-1": "0 or more",
    "trainer.max_steps=-5": "0 or more",
    "trainer.max_steps=99999999999999999999": "at most 1,099,511,627,776",
    "optim.lr=nan": "(optim.lr)",
    "optim.lr=inf": "(optim.lr)",
    "retriever.temperature=inf": "(retriever.temperature)",
    "retriever.temperature=-1": "(retriever.temperature)",
    "decode.top_p=0": "above 0, at most 1",
    "data.workers=9999": "(data.workers)",
    "trainer.devices=99": "more devices than there are",
    "trainer.devices=0": "more than 0",
    "trainer.batch_size=0": "more than 0",
    "trainer.precision=fp8": "one of auto, fp32, bf16",
    "retriever.n_docs=0": "more than 0",
    "retriever.n_docs=1000": "at most 37, the number of passages",
    "refresh.every=often": "(refresh.every)",
    "refresh.mode=sometimes": "one of blocking, amortized, rolling, hot",
    "index.factory=Flatt": "not a FAISS factory string",
    "index.factory=IVF64,Flat": "too small for the index family",
    "decode.beams=0": "more than 0",
    "data.max_context_tokens=100000": "longer than the model reads",
    "generator.dropout=2": "a share from 0 to 1",
    "objective=ragtoken": "one of rag_token",
    "data.max_question_tokens=4": "longer than the limit",
    "wandb.project=${oc.env:HOME}": "fetched from elsewhere",
    "experiment=/abs": "not a name (experiment)",
    "data.columns=question": "(data.columns)",
    "retriever.start_from=nowhere": "nowhere",
    "evaluate.task=labels": "(evaluate.labels)",
}
NAMES = {"/abs": "absolute", "../../up": "upwards", "a\0b": "NUL", "n" * 300: "too long"}
NO_GPU = {"trainer.accelerator=gpu": "there is none", "index.device=gpu": "there is no GPU"}

# (file's key, its name, its content) -> what must be said.
FILES: dict[str, tuple[str, str, bytes, str]] = {}


def _file(what: str, key: str, name: str, content: bytes | list[object], said: str) -> None:
    lines = content if isinstance(content, bytes) else "".join(f"{json.dumps(one)}\n" for one in content).encode()
    FILES[what] = (key, name, lines, said)


_file("a line that is no JSON", "train", "x.jsonl", json.dumps(GOOD).encode() + b'\n{"question": "br\n', "x.jsonl:2")
_file("no answers", "train", "x.jsonl", [GOOD, {"question": "none ?"}], "x.jsonl:2")
_file("empty answers", "train", "x.jsonl", [GOOD, GOOD | {"answers": []}], "x.jsonl:2")
_file("answers that are a number", "train", "x.jsonl", [GOOD, GOOD | {"answers": 7}], "x.jsonl:2")
_file("an empty file of questions", "train", "x.jsonl", [], "empty")
_file("questions in Latin-1", "train", "x.jsonl", json.dumps(GOOD).encode() + b'\n{"question": "caf\xe9"}\n', "UTF-8")
_file("questions in UTF-16", "train", "x.jsonl", json.dumps(GOOD).encode("utf-16"), "UTF-16")
_file("an empty question", "train", "x.jsonl", [GOOD, GOOD | {"question": " "}], "x.jsonl:2")
_file("a cut .gz", "train", "x.jsonl.gz", gzip.compress(json.dumps([GOOD] * 500).encode())[:60], "x.jsonl.gz")
_file("a false .parquet", "train", "x.parquet", b"no parquet at all", "x.parquet")
_file("positive ids of another corpus", "train", "x.jsonl", [GOOD | {"positive_ids": ["z"]}], "positive ids")
_file("an empty corpus", "corpus", "x.jsonl", [], "empty")
_file("a passage's id twice", "corpus", "x.jsonl", [PASSAGE, PASSAGE], "x.jsonl")
_file("a passage without text", "corpus", "x.jsonl", [PASSAGE, {"id": "q", "title": "t"}], "x.jsonl:2")
_file("a passage that is a list", "corpus", "x.jsonl", [PASSAGE, [1, 2]], "x.jsonl")
_file("a corpus with NUL", "corpus", "x.jsonl", [PASSAGE, PASSAGE | {"id": "q", "text": "a\0b"}], "x.jsonl:2")
_file("an answer that is no pattern", "test", "x.jsonl", [GOOD | {"answers": ["(beta"]}], "not a regular expression")
_file("a pattern without end", "test", "x.jsonl", [GOOD | {"answers": ["(a|aa)+$"]}], "takes too long")

EXPERIMENTS: dict[str, tuple[bytes, str]] = {
    "no YAML": (b"optim: {lr: 1\n", "not readable as YAML"),
    "a key twice": (b"seed: 1\nseed: 2\n", "duplicate key"),
    "a list": (b"- seed\n", "not a mapping"),
    "a file in Latin-1": (b"shows: caf\xe9\n", "not readable as YAML"),
    "a file that extends itself": (b"extends: x\n", "in a circle"),
    "a file that extends nothing": (b"extends: nothing_at_all\n", "no such experiment"),
    "a run folder elsewhere": (b"run: {dir: /tmp/elsewhere}\n", "outside of runs/"),
}
COMMANDS: dict[str, tuple[list[str], str]] = {
    "an unknown experiment": (["train", "rag_tokn"], "Did you mean rag_token?"),
    "no experiment": (["train"], "`train` needs an experiment"),
    "no run to resume": (["resume", "runs/nothing"], "not a run folder"),
    "no run to evaluate": (["evaluate", "runs/nothing"], "runs/nothing"),
    "no run to report": (["report", "runs/nothing"], "runs/nothing"),
    "no run to answer": (["answers", "runs/nothing"], "runs/nothing"),
    "no seeds": (["compare", "tiny", "--seeds", "x"], "SEEDS"),
}
MODELS = """no folder, no config.json, a config.json that is no JSON, cut weights, pickled weights, code of its own,
no tokenizer""".replace("\n", " ").split(", ")


def tries(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    order: list[tuple[str, Callable[[Path], None]]] = []
    order += [(f"file: {what}", partial(_with_file, what=what)) for what in FILES]
    order += [(f"model: {what}", partial(_with_model, what=what)) for what in MODELS]
    order += [("model: an encoder as generator", _encoder_as_generator), ("model: no hub", _hub_name)]
    settings = SETTINGS | ({} if torch.cuda.is_available() else NO_GPU)
    order += [(f"setting: {one}", partial(_with_words, words=[one], said=said)) for one, said in settings.items()]
    order += [(f"name: {how}", partial(_with_name, name=name)) for name, how in NAMES.items()]
    order += [(f"experiment: {what}", partial(_with_experiment, what=what)) for what in EXPERIMENTS]
    order += [(f"command: {what}", partial(_command, what=what)) for what in COMMANDS]
    order += [("setting: no key for wandb", _no_key), ("setting: the cache is a file", _cache_is_a_file)]
    step = max(1, len(order) // count)  # a quick part has some of each kind
    chosen = [one for first in range(step) for one in order[first::step]]
    for number, (what, attempt) in enumerate(islice(chosen, count)):
        yield what, partial(attempt, folder / str(number))


def refused(words: list[str], said: str, run: Path, loads: bool = False) -> None:
    """loads: it shows only when the model is loaded, which is when the run folder has been made."""
    started = time.monotonic()
    code, text = spoken(words)
    took = time.monotonic() - started
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "Traceback" not in text, (code, text[-2000:])
    assert said in text[text.index("error: ") :], text[text.index("error: ") :][:2000]
    assert took < SECONDS, took
    assert loads or not run.exists(), "a run folder is left"


def _with_words(folder: Path, words: list[str], said: str, loads: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    words = small_system(folder.parent / "system").words(folder / "run", *words)
    refused(["train", *words], said, folder / "run", loads)


def _with_name(folder: Path, name: str) -> None:
    _with_words(folder, ["run.dir=", f"run.name={name}"], "a run name must not be a path (run.name)")


def _with_file(folder: Path, what: str) -> None:
    key, name, content, said = FILES[what]
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    words = [f"data.{key}={folder / name}"]
    if "pattern" in what:
        words.append("evaluate.regex_answers=true")
    _with_words(folder, words, said)


def _with_model(folder: Path, what: str) -> None:
    system, model = small_system(folder.parent / "system"), folder / "model"
    if what != "no folder":
        shutil.copytree(system.generator, model)
    weights, config = model / "model.safetensors", model / "config.json"
    match what:
        case "no config.json":
            config.unlink()
        case "a config.json that is no JSON":
            config.write_text("{")
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "pickled weights":
            weights.rename(model / "pytorch_model.bin")
        case "code of its own":
            config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}))
        case "no tokenizer":
            for path in model.glob("*token*"):
                path.unlink()
            (model / "vocab.txt").unlink(missing_ok=True)
    said = "config.json" if what == "a config.json that is no JSON" else "generator.model"
    _with_words(folder, [f"generator.model={model}"], said, loads=what == "cut weights")


def _encoder_as_generator(folder: Path) -> None:
    encoder = small_system(folder.parent / "system").encoder
    _with_words(folder, [f"generator.model={encoder}"], "generator.model", loads=True)


def _hub_name(folder: Path) -> None:
    _with_words(folder, ["generator.model=someone/some-model"], "hub cannot be reached (generator.model)")


def _with_experiment(folder: Path, what: str) -> None:
    content, said = EXPERIMENTS[what]
    folder.mkdir(parents=True)
    (folder / "x.yaml").write_bytes(content)
    refused(["train", str(folder / "x.yaml")], said, folder / "run")


def _command(folder: Path, what: str) -> None:
    refused(*COMMANDS[what], folder / "run")


def _no_key(folder: Path) -> None:
    folder.mkdir(parents=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("WANDB_API_KEY", "WANDB_MODE", "NETRC")}
    with mock.patch.dict(os.environ, kept | {"HOME": str(folder)}, clear=True):
        _with_words(folder, ["wandb.mode=online"], "wandb has no login on this machine")


def _cache_is_a_file(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "cache").write_text("")
    _with_words(folder, [], "a file stands where a folder is needed")
