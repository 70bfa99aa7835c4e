"""A run's trained models as folders that transformers, sentence-transformers, DPR and peft read."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import DPRContextEncoder, DPRQuestionEncoder

from openbook.config.models import GeneratorConfig
from openbook.data.encoder_inputs import EncoderFormat
from openbook.errors import OpenBookError
from openbook.exchange.adapters import save_adapters
from openbook.exchange.dpr import as_dpr, why_not_dpr
from openbook.models.decoder_only.model import DecoderOnlyGenerator
from openbook.models.encoders import save_encoder
from openbook.models.lora import has_adapters
from openbook.retrieval.dense import DenseRetriever


@dataclass
class Written:
    """root: the folder. folders: {name: what reads it}. left_out: {name: why it could not be written}."""

    root: Path
    folders: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def attempt(self, name: str, reads: str) -> Iterator[Path]:
        """The folder `name` for what the block writes; what cannot be written is left out with its reason."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        except OpenBookError as problem:
            shutil.rmtree(folder)
            with suppress(OSError):  # it holds other folders
                folder.parent.rmdir()
            self.left_out[name] = str(problem)
        else:
            self.folders[name] = reads


def encoder_sides(retriever: DenseRetriever, parts: Any) -> list[tuple[str, Any, Any]]:
    """(name, encoder, tokenizer) of question and passage encoder."""
    return [
        ("question_encoder", retriever.question_encoder, parts.question_tokenizer),
        ("passage_encoder", retriever.passage_encoder, parts.passage_tokenizer),
    ]


def write_encoder(encoder: Any, tokenizer: Any, folder: Path, question: EncoderFormat, passage: EncoderFormat) -> None:
    """A folder of sentence-transformers with both prefixes as its prompts."""
    save_encoder(encoder, tokenizer, folder, {"query": question.prefix, "document": passage.prefix}, passage.layout)


def write_dpr(encoder: Any, tokenizer: Any, folder: Path, *, asks: bool) -> None:
    """A folder of DPRQuestionEncoder or DPRContextEncoder. OpenBookError for an encoder that is none."""
    if why := why_not_dpr(encoder):
        raise OpenBookError("the encoder is no DPR", got=why)
    as_dpr(encoder, DPRQuestionEncoder if asks else DPRContextEncoder).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_generator(generator: Any, tokenizer: Any, folder: Path) -> None:
    """A plain folder, adapters merged; of the small reader one that only this library reads."""
    generator.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_generator_adapters(generator: Any, tokenizer: Any, settings: GeneratorConfig, folder: Path) -> None:
    """A folder of peft's over generator.model. OpenBookError for a generator without adapters."""
    if not has_adapters(getattr(generator, "model", generator)):
        raise OpenBookError("the generator has no adapters", where="generator.lora.rank", got=settings.lora.rank)
    task = "CAUSAL_LM" if isinstance(generator, DecoderOnlyGenerator) else "SEQ_2_SEQ_LM"
    save_adapters(generator.model, settings.lora, settings.model, folder, task)
    tokenizer.save_pretrained(folder)
