"""The reader's warm-up: the generator alone learns to read the corpus's text. Short, cached, and disclosed.

A reader that cannot read yet has no opinion which passage helped, so it would teach the retriever nothing. It reads
the passage that a training question names as positive, and a reader of all passages every one that it names beside
others that it must tell them from; where none is named, the best of BM25's that holds an answer (weak supervision);
and masked spans of the corpus (openbook.data.spans), which need no question at all.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from openbook.data.corpus import Corpus
from openbook.data.inputs import decoder_inputs, targets
from openbook.data.readers.checked_lines import file_fingerprint
from openbook.inference.rag_token import greedy
from openbook.metrics.matching import exact_match, f1
from openbook.models.all_passages.reading import Asked, FusedContexts, read_all
from openbook.models.small_reader.detokenize import detokenize
from openbook.models.small_reader.model import MiniLMReader
from openbook.training.gold_passages import Gold, GoldPassages, Windows, batches
from openbook.training.optimizer import learning_rate_schedule
from openbook.utils.atomic import replacing_folder, write_json
from openbook.utils.console import progress, say
from openbook.utils.files.signed import sign, sound
from openbook.utils.turns import in_turn

# The reader's parts that MiniLM does not have, by the names their parameters' names begin or end with.
NEW_PARTS = (
    "copy_query",
    "copy_key",
    "copy_bonus",
    "start_weight",
    "own_words",
    "bias",
    "run_bonus",
    "question_match",
    "elsewhere",
)

# The first steps, which read a window around the answer: for half the time, and a young reader finds what it looks for
# sooner among fewer tokens. The others read whole passages, which is what there will be.
WINDOWED = 0.7

VERSION = 8  # raise it whenever the same settings give another reader


@dataclass(frozen=True)
class WarmupOptions:
    """Everything that decides the warmed-up reader, besides its data: steps, questions per step, peak learning rate
    of MiniLM's layers (the new parts get twice as much), tokens of a context and of an answer, share of masked spans
    among the questions, what becomes of questions over a limit of tokens (None: nothing, as where a longer one was
    refused before), whether a question is read with several passages at once, and the width of the windows of passages
    that the first steps read (None: whole passages)."""

    steps: int
    batch_size: int
    lr: float
    seed: int
    max_context_tokens: int
    max_target_tokens: int
    spans: float = 0.0
    long_questions: tuple[Literal["cut", "drop"], int] | None = None
    together: bool = False
    window: int | None = None


def warm_up(
    folder: str,
    options: WarmupOptions,
    corpus: Corpus,
    questions: Path,
    held_out: Path | None,
    tokenizer: object,
    cache: Path,
    device: torch.device,
    autocast: torch.dtype | None,
    spans: Path | None = None,
) -> Path:
    """The folder of the reader warmed up from MiniLM's `folder`; made at the first call, found at the next.

    questions: of the training split. spans: masked spans of the corpus, of which options.spans says how many are mixed
    in. held_out: questions with positive_ids to measure it on. The folder also holds warmup.json: seconds, loss, and
    exact match and F1 on the gold passages of held-out questions.
    """
    files = [path for path in (questions, spans if options.spans else None) if path]
    known = {key: value for key, value in asdict(options).items() if value is not None}  # as before there was the last
    inputs = json.dumps([VERSION, known, corpus.fingerprint, *(file_fingerprint(one, cache) for one in files)])
    target = cache / f"reader-{hashlib.sha256(inputs.encode()).hexdigest()[:12]}"
    with in_turn(cache, target.name):  # of several ranks on a node the first makes it
        if not sound(target, "the warmed-up reader"):
            reader = MiniLMReader.from_minilm(folder, seed=options.seed).to(device)
            reader.read_all(options.together)
            gold = GoldPassages(corpus, tokenizer, options.max_context_tokens, options.long_questions, options.together)
            asked = gold.read(questions, weak=True) if options.spans < 1 else []
            read = _mixed(asked, gold.read(spans) if spans else [], options)
            measured = _train(reader, gold, read, options, device, autocast)
            asked = gold.read(held_out) if held_out is not None else []
            if asked and held_out is not None:
                measured |= _measure(reader, gold, asked, options, device, autocast)
                measured |= {"held_out": file_fingerprint(held_out, cache)}
            with replacing_folder(target, sound) as new:
                reader.save_pretrained(new)
                write_json(new / "warmup.json", measured)
                sign(new)
    facts = json.loads((target / "warmup.json").read_text(encoding="utf-8"))
    say(
        f"small reader warmed up for {options.steps} steps in {facts['seconds']:.0f} s: "
        + (
            f"reads {facts['gold_exact_match']:.3f} of {facts['n_questions']} held-out answers from gold passages, "
            f"F1 {facts['gold_f1']:.3f}"
            if held_out is not None and facts.get("held_out") == file_fingerprint(held_out, cache)
            else f"loss per token {facts['loss']:.3f}"
        )
    )
    return target


def _mixed(gold: list[Gold], spans: list[Gold], options: WarmupOptions) -> list[Gold]:
    """What is read once: questions and spans in the options' proportion, each repeated as often as it takes."""
    if not (spans and options.spans):
        return gold
    total = options.steps * options.batch_size
    n_spans = round(options.spans * total)
    random = np.random.default_rng(options.seed)
    parts = ((spans, n_spans), (gold, total - n_spans))
    return [some[place] for some, n in parts for place in _orders(len(some), n, random)]


def _orders(length: int, n: int, random: np.random.Generator) -> list[int]:
    """n places of a list of this length: whole orders of it, each shuffled, the last one cut."""
    orders = [random.permutation(length) for _ in range(ceil(n / max(length, 1)))]
    return np.concatenate([np.empty(0, dtype=np.int64), *orders])[:n].tolist()


def _train(
    reader: MiniLMReader,
    passages: GoldPassages,
    gold: list[Gold],
    options: WarmupOptions,
    device: torch.device,
    autocast: torch.dtype | None,
) -> dict[str, Any]:
    """Cross-entropy of the first answer given its gold passages, mean per target token."""
    started = time.perf_counter()
    learning = [(name, value) for name, value in reader.named_parameters() if value.requires_grad]
    new = {name for name, _ in learning if name.startswith(NEW_PARTS) or name.endswith("run_bonus")}
    groups = [
        {"params": [value for name, value in learning if (name in new) == is_new], "lr": lr}
        for is_new, lr in ((False, options.lr), (True, 2 * options.lr))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = learning_rate_schedule(optimizer, min(20, options.steps // 5), options.steps, 0.0)
    lengths = passages.contexts.tokens.length(np.array([row for one in gold for row in one.rows]))
    lengths = np.add.reduceat(lengths, np.cumsum([0, *(len(one.rows) for one in gold[:-1])]))
    loss = torch.zeros(())
    windowed = WINDOWED * options.steps if options.window else 0
    windows = Windows(options.window or 0, np.random.default_rng(options.seed))
    reader.train()
    with progress("warming up the reader", "steps", told=True) as done:
        for step, chosen in zip(range(options.steps), batches(lengths, options.batch_size, options.seed), strict=False):
            some = [gold[number] for number in chosen]
            labels = targets(passages.tokenizer, [one.answers[0] for one in some], options.max_target_tokens).to(device)
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                hidden = _hidden(reader, passages, some, labels, windows if step < windowed else None)
                logits = reader.logits(hidden[labels >= 0])
            loss = nn.functional.cross_entropy(logits.float(), labels[labels >= 0])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done(step + 1, options.steps)
    return {"seconds": time.perf_counter() - started, "loss": loss.item(), "steps": options.steps}


def _hidden(
    reader: MiniLMReader,
    passages: GoldPassages,
    gold: list[Gold],
    labels: Tensor,
    windows: Windows | None,
) -> Tensor:
    """Decoder states [len(gold), target_len, dim] of the labels, read from the questions' passages or from windows of
    them."""
    if reader.reads_all:
        asked = Asked([one.question for one in gold], labels)
        return read_all(reader, asked, passages.rows(gold), passages.contexts_of(gold, windows))
    together, ids, mask = _encoded(reader, passages, gold, labels.device, windows)
    inputs = decoder_inputs(labels, reader.decoder_start_token_id, reader.pad_token_id)
    return together.decode(inputs, together.encode(ids, mask), mask)[0]


def _encoded(
    reader: MiniLMReader,
    passages: GoldPassages,
    gold: list[Gold],
    device: torch.device,
    windows: Windows | None = None,
) -> tuple[FusedContexts, Tensor, Tensor]:
    """A reader that has encoded the questions' contexts, and the ids and mask of what it reads [len(gold), length]."""
    ids, mask = passages.inputs(gold, device, windows)
    memory = reader.encode(ids.flatten(0, 1), mask.flatten(0, 1))
    return FusedContexts(reader, memory, len(gold)), ids.flatten(1), mask.flatten(1)


def _measure(
    reader: MiniLMReader,
    passages: GoldPassages,
    gold: list[Gold],
    options: WarmupOptions,
    device: torch.device,
    autocast: torch.dtype | None,
) -> dict[str, float]:
    reader.eval()
    exact = overlap = 0.0
    for start in range(0, len(gold), 64):
        some = gold[start : start + 64]
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            together, ids, mask = _encoded(reader, passages, some, device)
            decoded = greedy(
                together, ids, mask, torch.zeros(len(some), 1, device=device), "closed_book", options.max_target_tokens
            )
        for one, tokens in zip(some, decoded.token_ids.tolist(), strict=True):
            tokens = tokens[: tokens.index(reader.eos_token_id)] if reader.eos_token_id in tokens else tokens
            text = detokenize(passages.tokenizer, tokens)
            exact += exact_match(text, one.answers)
            overlap += f1(text, one.answers)
    return {"gold_exact_match": exact / len(gold), "gold_f1": overlap / len(gold), "n_questions": len(gold)}
