"""Settings of the generator."""

from dataclasses import dataclass

from openbook.config.unit import unit

# The value of encoder and generator folders that stands for the packaged MiniLM weights.
MINILM = "minilm"


@dataclass(frozen=True)
class GeneratorConfig:
    model: str = unit(
        MINILM,
        "folder of a transformers sequence-to-sequence model; 'minilm' is the small reader made of MiniLM layers",
    )
    dropout: float = unit(0.0, "dropout probability of a transformers model during training; the small reader has none")
    label_smoothing: float = unit(0.0, "share of each target's probability that is spread over the vocabulary")
