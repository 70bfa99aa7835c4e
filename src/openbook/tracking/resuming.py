"""What a resumed run may change, and what must be as it was for its place in the stream to mean anything."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from openbook.config.load import flat
from openbook.config.schema import Config
from openbook.errors import OpenBookError, raise_all

# Keys (or sections, ending with a dot) that a resumed run may change; each takes effect from the next step on.
CHANGEABLE = (
    *("shows", "run.", "wandb.", "hot_swap.", "serve."),
    *("data.cache", "data.workers", "data.build_processes", "data.verify"),
    *("optim.", "refresh.", "decode.", "evaluate.", "index.device", "index.gpu_temp_memory", "index.keep_vectors"),
    *("retriever.on_collapse", "retriever.tokens_per_backward", "generator.label_smoothing"),
    *(
        "trainer.max_steps",
        "trainer.max_epochs",
        "trainer.validate_every",
        "trainer.checkpoint_every",
        "trainer.log_every",
        "trainer.tensorboard",
        "trainer.keep_checkpoints",
        "trainer.timeout",
    ),
    *("trainer.card_gib", "generator.sharded"),
    *("trainer.accelerator", "trainer.precision", "trainer.tokens_per_pass", "trainer.checkpointing"),
    *("trainer.monitor", "trainer.patience"),
)
# Keys that decide what a test finds, whatever was trained.
MEASURED = (
    *("decode.", "evaluate.task", "evaluate.labels", "evaluate.regex_answers", "evaluate.n_docs"),
    *("evaluate.identical_ids", "evaluate.test_questions"),
)
KEPT = ("optim.name",)  # of a section that may change otherwise: its state means nothing to another
# Ranks times questions per rank is what trains: 2 ranks of 8 questions go on as one of 16.
PER_STEP = ("trainer.batch_size", "trainer.global_batch_size", "trainer.devices", "trainer.nodes")


def among(key: str, names: Iterable[str]) -> bool:
    """Whether a key is one of these, or in one of the sections among them, which end with a dot."""
    return any(key == other or (other.endswith(".") and key.startswith(other)) for other in names)


def keeping_the_batch(then: Config, overrides: Sequence[str]) -> list[str]:
    """The overrides, and where they change the number of ranks alone, those by which a pass still reads the questions
    that it did: each rank its share, rounded up, and where that is too many, trainer.global_batch_size."""
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    ranks = [given.get(f"trainer.{key}", str(getattr(then.trainer, key))) for key in ("devices", "nodes")]
    if not all(text.isdigit() and int(text) > 0 for text in ranks) or given.keys() & set(PER_STEP[:2]):
        return list(overrides)
    world, questions = int(ranks[0]) * int(ranks[1]), then.trainer.questions_per_pass
    if world == then.trainer.world_size:
        return list(overrides)
    share = -(-questions // world)
    together = 0 if share * world == questions else questions
    return [*overrides, f"trainer.batch_size={share}", f"trainer.global_batch_size={together}"]


def changed_keys(then: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """{key: (value then, value now)} of the keys that differ."""
    before, after = flat(then), flat(now)
    return {key: (before[key], value) for key, value in after.items() if before[key] != value}


def measured_otherwise(then: Config, now: Config) -> str:
    """By what a test found other numbers than it would now, for people; empty where they can be compared."""
    changed = changed_keys(then, now).items()
    return ", ".join(f"{key}={before!r}, now {value!r}" for key, (before, value) in changed if among(key, MEASURED))


def check_keys(then: Config, now: Config, recorded: Mapping[str, str]) -> dict[str, tuple[Any, Any]]:
    """The changed keys, if a resumed run may change them; one OpenBookError that names every other one.

    recorded: {split: sha256} of the run's files. A recorded file may have moved: `check_data` compares its content.
    """
    changed = changed_keys(then, now)
    same_batch = then.trainer.questions_per_pass == now.trainer.questions_per_pass
    raise_all(
        [
            OpenBookError(
                "a resumed run goes on with what it was started with",
                where=key,
                got=repr(value),
                expected=repr(before),
                action=_advice(key),
            )
            for key, (before, value) in changed.items()
            if (key in KEPT or not among(key, CHANGEABLE))
            and not (key in PER_STEP and same_batch)
            and not (key.startswith("data.") and key.removeprefix("data.") in recorded)
        ]
    )
    return changed


def check_data(recorded: Mapping[str, str], now: Mapping[str, str]) -> None:
    """OpenBookError for each file that is no longer what the run was started with. Both: {split: sha256}; what the run
    did not record is not compared."""
    raise_all(
        [
            OpenBookError(
                "the file is not the one the run was started with: the run's place in it means nothing any more",
                where=f"data.{split}",
                got=f"sha256 {now.get(split, 'of no file')[:12]}",
                expected=f"sha256 {fingerprint[:12]}",
                action="Put the file back as it was, or start a new run.",
            )
            for split, fingerprint in recorded.items()
            if now.get(split) != fingerprint
        ]
    )


def _advice(key: str) -> str:
    if key == "data.test":
        return "`make evaluate RUN=...` answers other questions with a trained run."
    return "Leave it as it was, or start a new run; retriever.start_from=RUN starts from this run's encoders."
