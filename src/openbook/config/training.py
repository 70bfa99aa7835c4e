"""Settings of training: optimizer, trainer, warm-up and DPR."""

from dataclasses import dataclass
from typing import Literal

from openbook.config.unit import unit


@dataclass(frozen=True)
class DprConfig:
    """Retriever warm-up (objective: dpr): gold passages against other passages, without a generator."""

    loss: Literal["one", "ordered"] = unit(
        "one",
        "one: -log p(z|x) of one gold passage; ordered: of all positive_ids as they follow one another, times their "
        "question's reward (objectives/ordered.py)",
    )
    reward_baseline: float = unit(
        0.0, "taken from every reward with dpr.loss=ordered; what a choice is worth in the mean"
    )
    bm25_negatives: int = unit(1, "hard negatives per question from BM25's best passages without an answer")
    index_negatives: int = unit(
        0,
        "hard negatives per question mined from the live index, from the first refresh after the start on",
    )
    depth: int = unit(50, "candidates from BM25 or the index among which hard negatives are chosen")
    mask_false_negatives: bool = unit(
        True,
        "passages of the batch that contain an answer to a question are not used as its negatives",
    )


# The value of warmup.passages, … that stands for the run's own; for embedded data it is the embedded book.
AUTO = "auto"


@dataclass(frozen=True)
class WarmupConfig:
    """The reader's warm-up: the generator alone learns to read, from passages that are known or likely to hold the
    answer and from masked spans of the corpus, before joint training."""

    steps: int = unit(-1, "optimizer steps; 0: no warm-up; -1: from the data and the generator")
    batch_size: int = unit(32, "questions per step")
    lr: float = unit(5.0e-4, "peak learning rate of MiniLM's layers; the small reader's new parts use twice as much")
    spans: float = unit(
        -1.0, "share of the warm-up's questions that are masked spans of its passages (data.spans); -1: from the data"
    )
    window: int = unit(
        64,
        "tokens of a passage, around its answer if it holds it, that are read in the first 70 % of the steps; 0: whole "
        "passages",
    )
    passages: str = unit(AUTO, "passages for the warm-up; auto: data.corpus, for embedded data always the book")
    questions: str = unit(
        AUTO,
        "questions with positive_ids among those passages, or with answers that BM25 finds in them; auto: data.train",
    )
    held_out: str = unit(
        AUTO, "questions on which the warmed-up small reader is evaluated; auto: data.validation; empty: none"
    )


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = unit(
        "adamw",
        "AdamW; 8bit: its two moments in 8 bits, by bitsandbytes; paged: moved to RAM where a GPU's memory is short",
    )
    lr: float = unit(0.0, "peak learning rate of every part without its own; 0: from the data")
    lr_question_encoder: float = unit(0.0, "peak learning rate; 0: optim.lr")
    lr_passage_encoder: float = unit(0.0, "peak learning rate; 0: optim.lr")
    lr_generator: float = unit(0.0, "peak learning rate; 0: from the generator where optim.lr is, else optim.lr")
    weight_decay: float = unit(0.01, "AdamW's, not applied to biases and normalisation")
    warmup_steps: int = unit(10, "optimizer steps of linear warm-up to the peak")
    final_lr: float = unit(0.1, "share of the peak learning rate at the last step; linear decay")
    clip: float = unit(1.0, "maximum gradient norm; 0: no clipping")


@dataclass(frozen=True)
class TrainerConfig:
    max_steps: int = unit(0, "optimizer steps; 0: from the data")
    max_epochs: float = unit(0.0, "passes over the training questions, instead of trainer.max_steps; 0: that counts")
    batch_size: int = unit(16, "questions per rank and forward pass")
    global_batch_size: int = unit(
        0,
        "questions of all ranks in one forward pass, where ranks x trainer.batch_size is more: 8 on 3 ranks of 3; "
        "0: ranks x trainer.batch_size",
    )
    accumulate: int = unit(1, "forward passes per optimizer step")
    reduction: Literal["question", "token"] = unit(
        "question",
        "the loss is a mean over questions or target tokens of all ranks",
    )
    devices: int = unit(1, "ranks on this node")
    nodes: int = unit(1, "nodes")
    timeout: int = unit(
        1800, "seconds that a rank waits for the others before the run ends; longer than an uneven refresh may take"
    )
    accelerator: Literal["auto", "cpu", "gpu"] = unit("auto", "where models train; auto uses a GPU if there is one")
    precision: Literal["auto", "fp32", "bf16"] = unit(
        "auto",
        "autocast dtype; auto uses bf16 where the hardware supports it",
    )
    tokens_per_pass: int = unit(
        0,
        "tokens of one forward pass of an encoder, padding included; 0: 4,096 on a CPU (its cache), 65,536 on a GPU",
    )
    card_gib: float = unit(
        0.0, "memory of one GPU that the run is planned for, GiB; 0: the GPU that it runs on, 24, 40 and 80 in the plan"
    )
    checkpointing: bool = unit(
        False,
        "activation checkpointing in generator and encoders: the same gradients up to rounding, less memory, "
        "about a third more time",
    )
    validate_every: int = unit(0, "optimizer steps between validations; 0: as between refreshes")
    monitor: str = unit(
        "auto",
        "validation metric whose highest value best.ckpt keeps; several joined by + are added; auto: f1+mrr, of what "
        "the run has of the two; empty: none",
    )
    patience: int = unit(0, "validations in a row without a new best after which training ends; 0: never")
    checkpoint_every: int = unit(0, "optimizer steps between checkpoints; 0: as between refreshes")
    keep_checkpoints: int = unit(
        2, "last checkpoints kept, beside the best: where one is damaged, the one before it serves"
    )
    log_every: int = unit(1, "optimizer steps between rows of metrics.csv")
    tensorboard: bool = unit(False, "the same curves for TensorBoard, in tensorboard/ of the run folder")

    @property
    def world_size(self) -> int:
        """Ranks on all nodes."""
        return self.devices * self.nodes

    @property
    def questions_per_pass(self) -> int:
        """Of all ranks: what the sum of a step is taken over, whatever the number of ranks."""
        return self.global_batch_size or self.batch_size * self.world_size
