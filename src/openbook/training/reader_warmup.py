"""The reader's warm-up: the generator alone, on gold passages of training questions. Short, cached, and disclosed.

A reader that cannot read yet has no opinion which passage helped, so it would teach the retriever nothing. Joint
training, which follows, sees no gold passage.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from openbook.batch import to_device
from openbook.data.corpus import Corpus
from openbook.data.inputs import decoder_inputs, special_ids, targets
from openbook.data.question_file import QuestionFile
from openbook.errors import OpenBookError
from openbook.inference.rag_token import greedy
from openbook.metrics.matching import exact_match
from openbook.models.contexts import ContextBuilder
from openbook.models.small_reader.detokenize import detokenize
from openbook.models.small_reader.model import MiniLMReader
from openbook.training.optimizer import learning_rate_schedule
from openbook.utils.atomic import replacing_folder, write_json
from openbook.utils.console import progress, say
from openbook.utils.turns import in_turn

# The reader's parts that MiniLM does not have, by the names their parameters' names begin or end with.
NEW_PARTS = ("copy_query", "copy_key", "copy_bonus", "start_weight", "own_words", "bias", "run_bonus", "question_match")

VERSION = 4  # raise it whenever the same settings give another reader


@dataclass(frozen=True)
class WarmupOptions:
    """Everything that decides the warmed-up reader, besides its data: steps, questions per step, peak learning rate
    of MiniLM's layers (the new parts get twice as much), tokens of a context and of an answer."""

    steps: int
    batch_size: int
    lr: float
    seed: int
    max_context_tokens: int
    max_target_tokens: int


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
) -> Path:
    """The folder of the reader warmed up from MiniLM's `folder`; made at the first call, found at the next.

    questions: examples with positive_ids in the corpus; others are left out. held_out: questions to measure it on.
    The folder also holds warmup.json: seconds, loss, and exact match on the gold passages of held-out questions.
    """
    inputs = json.dumps(
        [VERSION, asdict(options), corpus.fingerprint, hashlib.sha256(questions.read_bytes()).hexdigest()]
    )
    target = cache / f"reader-{hashlib.sha256(inputs.encode()).hexdigest()[:12]}"
    with in_turn(cache, target.name):  # of several ranks on a node the first makes it
        if not (target / "warmup.json").is_file():
            reader = MiniLMReader.from_minilm(folder, seed=options.seed).to(device)
            gold = _GoldPassages(corpus, tokenizer, options)
            measured = _train(reader, gold, gold.read(questions), options, device, autocast)
            if held_out is not None:
                measured |= _measure(reader, gold, gold.read(held_out), options, device, autocast)
            with replacing_folder(target) as new:
                reader.save_pretrained(new)
                write_json(new / "warmup.json", measured)
    facts = json.loads((target / "warmup.json").read_text(encoding="utf-8"))
    say(
        f"small reader warmed up for {options.steps} steps in {facts['seconds']:.0f} s: "
        + (
            f"reads {facts['gold_exact_match']:.3f} of {facts['n_questions']} held-out answers from gold passages"
            if "gold_exact_match" in facts
            else f"loss per token {facts['loss']:.3f}"
        )
    )
    return target


@dataclass(frozen=True)
class _Gold:
    question: tuple[int, ...]
    row: int
    answers: tuple[str, ...]


class _GoldPassages:
    """Questions with the row of a passage known to answer them."""

    def __init__(self, corpus: Corpus, tokenizer: object, options: WarmupOptions):
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.contexts = ContextBuilder(corpus.tokens("generator"), special_ids(tokenizer), options.max_context_tokens)  # type: ignore[arg-type]

    def read(self, path: Path) -> list[_Gold]:
        """Every example of the file that names a passage of the corpus."""
        examples = [
            (example, self.corpus.row_of(example.positive_ids[0]))
            for example in QuestionFile(path)
            if example.positive_ids
        ]
        if not any(row is not None for _, row in examples):
            raise OpenBookError(
                "the warm-up finds no gold passage",
                where=path,
                expected="questions with positive_ids among the passages",
                action="Set warmup.steps=0 to do without a warm-up.",
            )
        ids = self.tokenizer([e.question for e, _ in examples], add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        return [
            _Gold(tuple(question), row, example.answers)
            for question, (example, row) in zip(ids, examples, strict=True)
            if row is not None
        ]

    def inputs(self, gold: list[_Gold], device: torch.device) -> tuple[Tensor, Tensor]:
        ids, mask = self.contexts([one.question for one in gold], torch.tensor([[one.row] for one in gold]))
        return to_device(ids, device), to_device(mask, device)


def _train(
    reader: MiniLMReader,
    passages: _GoldPassages,
    gold: list[_Gold],
    options: WarmupOptions,
    device: torch.device,
    autocast: torch.dtype | None,
) -> dict[str, float]:
    """Cross-entropy of the first answer given its gold passage, mean per target token."""
    started = time.perf_counter()
    new = {name for name, _ in reader.named_parameters() if name.startswith(NEW_PARTS) or name.endswith("run_bonus")}
    groups = [
        {"params": [value for name, value in reader.named_parameters() if (name in new) == is_new], "lr": lr}
        for is_new, lr in ((False, options.lr), (True, 2 * options.lr))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = learning_rate_schedule(optimizer, min(20, options.steps // 5), options.steps, 0.0)
    lengths = passages.contexts.tokens.length(np.array([one.row for one in gold]))
    loss = torch.zeros(())
    reader.train()
    with progress("warming up the reader", "steps") as done:
        for step, chosen in zip(
            range(options.steps), _batches(lengths, options.batch_size, options.seed), strict=False
        ):
            some = [gold[number] for number in chosen]
            labels = targets(passages.tokenizer, [one.answers[0] for one in some], options.max_target_tokens).to(device)  # type: ignore[arg-type]
            ids, mask = passages.inputs(some, device)
            inputs = decoder_inputs(labels, reader.decoder_start_token_id, reader.pad_token_id)
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                hidden, _ = reader.decode(inputs, reader.encode(ids, mask), mask)
                logits = reader.logits(hidden[labels >= 0])
            loss = nn.functional.cross_entropy(logits.float(), labels[labels >= 0])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done(step + 1, options.steps)
    return {"seconds": time.perf_counter() - started, "loss": loss.item(), "steps": options.steps}


def _batches(lengths: np.ndarray, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless epochs of positions; the batches of a pool of 16 hold contexts of like length, in shuffled order."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(lengths))
        for start in range(0, len(order), 16 * batch_size):
            pool = order[start : start + 16 * batch_size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            cuts = np.array_split(pool, max(1, len(pool) // batch_size))
            yield from (cuts[number] for number in random.permutation(len(cuts)))


def _measure(
    reader: MiniLMReader,
    passages: _GoldPassages,
    gold: list[_Gold],
    options: WarmupOptions,
    device: torch.device,
    autocast: torch.dtype | None,
) -> dict[str, float]:
    reader.eval()
    found = 0.0
    for start in range(0, len(gold), 64):
        some = gold[start : start + 64]
        ids, mask = passages.inputs(some, device)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            decoded = greedy(
                reader, ids, mask, torch.zeros(len(some), 1, device=device), "closed_book", options.max_target_tokens
            )
        for one, tokens in zip(some, decoded.token_ids.tolist(), strict=True):
            tokens = tokens[: tokens.index(reader.eos_token_id)] if reader.eos_token_id in tokens else tokens
            found += exact_match(detokenize(passages.tokenizer, tokens), one.answers)
    return {"gold_exact_match": found / len(gold), "n_questions": len(gold)}
