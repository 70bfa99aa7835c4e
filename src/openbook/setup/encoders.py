"""How the encoders read: what their folders state, and what the configuration says otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from openbook.config.checks import has_index
from openbook.config.retrieval import RetrieverConfig
from openbook.config.schema import Config
from openbook.data.encoder_inputs import EncoderFormat
from openbook.data.question_lengths import Reader, check_prefix
from openbook.errors import OpenBookError, raise_all
from openbook.models.encoder_folder import PASSAGE_PROMPTS, POOLINGS, EncoderFolder, read_folder
from openbook.models.encoders import TextEncoder, load_encoder
from openbook.models.lora import add_adapters
from openbook.models.passes.activation_checkpointing import checkpoint_layers
from openbook.models.probe import freeze_unreached, probe_encoder
from openbook.utils.console import say

AUTO = "auto"


@dataclass(frozen=True)
class Side:
    """One encoder: its key, what its folder states, and how it is read."""

    key: str
    name: str
    folder: EncoderFolder
    pooling: str
    normalize: bool
    prefix: str
    dim: int  # the first numbers of an embedding that are used, 0 for all
    as_before: bool = False  # without the folder's Dense, truncate_dim and lower case

    @property
    def final_dim(self) -> int | None:
        """Of an embedding; None where it shows only when the model is loaded."""
        return self.dim or self.folder.dim

    def __str__(self) -> str:
        of_folder = (self.pooling, self.normalize) == (self.folder.pooling, self.folder.normalize)
        if self.folder.states:
            source = f"as its folder states ({self.folder.kind})" if of_folder else "otherwise than its folder states"
        else:
            source = f"its folder states nothing ({self.folder.kind})"
        made = f"{self.pooling} of the token states, " + ("of length 1" if self.normalize else "of any length")
        cut = f", the first {self.dim} numbers" if self.dim else ""
        dense = f", {len(self.folder.dense)} Dense" if self.folder.dense else ""
        return f"{self.key} = {self.name}: {made}{dense}{cut}, prefix {self.prefix!r}; {source}" + (
            ", without its Dense, truncate_dim and do_lower_case, as in older runs" if self.as_before else ""
        )


def sides(config: Config) -> tuple[Side, Side]:
    """Question and passage encoder. One OpenBookError where a key contradicts a folder, which is refused unless
    retriever.override_folder says that it may, or where something cannot be computed here."""
    settings = config.retriever
    problems: list[OpenBookError] = []
    made = []
    for which, prompts in (("question", ("query",)), ("passage", PASSAGE_PROMPTS)):
        key = f"retriever.{which}_encoder"
        name = settings.question_encoder if settings.tied else getattr(settings, f"{which}_encoder")
        folder = read_folder(name, key)
        # Together these are what a run has that began before they were keys; such runs left the rest of a folder out.
        before = settings.passage_layout == "separated" and settings.override_folder and not folder.trained_layout
        if before:
            folder = replace(folder, dense=(), truncate=0, dim=None if folder.dense else folder.dim)
        prefix, asked = getattr(settings, f"{which}_prefix"), flag(settings.normalize)
        side = Side(
            key,
            name,
            replace(folder, dim=settings.projection) if settings.projection else folder,
            folder.pooling if settings.pooling == AUTO else settings.pooling,
            folder.normalize if asked is None else asked,
            folder.prompt(prompts) if prefix == AUTO else prefix,
            settings.dim or (0 if settings.projection else folder.truncate),
            before,
        )
        problems += _problems(settings, side)
        made.append(side)
    raise_all(list({str(problem): problem for problem in problems}.values()))  # one folder on both sides has each once
    return made[0], made[1]


def _problems(settings: RetrieverConfig, side: Side) -> Iterator[OpenBookError]:
    folder, known = side.folder, set(POOLINGS.values())
    for setting in ("pooling", "normalize"):
        stated, used = (str(getattr(one, setting)).lower() for one in (folder, side))
        if stated != used and folder.states and not settings.override_folder:
            readable = setting == "normalize" or stated in known
            yield OpenBookError(
                f"the encoder was trained with another {setting}, which its folder states",
                where=f"retriever.{setting}",
                got=used,
                expected=f"{stated}, as in {side.name}",
                action=(f"Set retriever.{setting}={stated}, or" if readable else "Such a pooling cannot be read;")
                + " retriever.override_folder=true reads it your way.",
            )
    if side.pooling not in known:
        yield OpenBookError(
            "the encoder's pooling cannot be computed here",
            where=side.key,
            got=f"{side.pooling}, as {side.name} states",
            expected=f"one of {', '.join(sorted(known))}",
        )
    if folder.dim and side.dim > folder.dim:
        yield _too_many_numbers(side.dim, folder.dim)


def _too_many_numbers(asked: int, width: int) -> OpenBookError:
    return OpenBookError(
        "more numbers than an embedding has", where="retriever.dim", got=asked, expected=f"at most {width}"
    )


def flag(normalize: str) -> bool | None:
    """retriever.normalize; None for auto."""
    return None if normalize == AUTO else normalize == "true"


def follow_folders(config: Config, tell: bool = False) -> Config:
    """The configuration with what it leaves to the encoders' folders filled in, with `tell` all of it said. What the
    two state differently stays `auto`, and is read again from each. Raises OpenBookError as `sides` does."""
    settings = config.retriever
    if not has_index(config):  # no encoder reads anything
        plain = {"question_prefix": "", "passage_prefix": "", "passage_layout": "separated"}
        return _filled(config, {key: value for key, value in plain.items() if getattr(settings, key) == AUTO})
    question, passage = both = sides(config)
    layout = passage.folder.layout if settings.passage_layout == AUTO else settings.passage_layout
    filled: dict[str, Any] = {"passage_layout": layout}
    filled |= {"question_prefix": question.prefix, "passage_prefix": passage.prefix}
    if question.pooling == passage.pooling:
        filled["pooling"] = question.pooling
    if question.normalize == passage.normalize:
        filled["normalize"] = str(question.normalize).lower()
    if question.dim == passage.dim:
        filled["dim"] = question.dim
    if tell:
        lines = ["encoders:", *map(str, both), f"title and text for retriever.passage_encoder: {layout}"]
        say("\n  ".join([*lines, *_notes(config, both)]))
    return _filled(config, filled)


def _filled(config: Config, values: dict[str, Any]) -> Config:
    return replace(config, retriever=replace(config.retriever, **values))


def _notes(config: Config, both: tuple[Side, Side]) -> Iterator[str]:
    """What the folders state and is not followed."""
    limits = ("max_question_tokens", "max_passage_tokens")
    for side, names, limit in zip(both, (("query",), PASSAGE_PROMPTS), limits, strict=True):
        prompts = side.folder.prompts or {}
        stated = side.folder.prompt(names)
        if stated and side.prefix != stated:
            yield f"{side.key}: its folder states the prompt {stated!r}, which is not used"
        elif prompts and not side.prefix and not {"query", *PASSAGE_PROMPTS} & set(prompts):
            which = side.key.removesuffix("_encoder") + "_prefix"
            yield f"{side.key}: its folder has prompts of other names ({', '.join(prompts)}); {which}=TEXT uses one"
        most, asked = side.folder.max_tokens, getattr(config.data, limit)
        if most and asked > most:
            yield f"data.{limit} is {asked}, more than the {most} tokens that {side.name} states"


def scores_are_cosines(config: Config) -> bool:
    """Whether both encoders' embeddings are of length 1."""
    return config.retriever.kind == "dense" and (not has_index(config) or all(side.normalize for side in sides(config)))


def encoder_dim(config: Config) -> int | None:
    """The embedding dimension from the passage encoder's folder; None where it is only known once loaded."""
    return sides(config)[1].final_dim


def load_encoders(config: Config, tokenizers: Sequence[Any], formats: Sequence[EncoderFormat]) -> list[TextEncoder]:
    """Question and passage encoder, only one where they are tied, tried on what they will read. tokenizers, formats:
    of questions and of passages."""
    settings, data, both = config.retriever, config.data, sides(config)
    room = data.max_passage_tokens - formats[1].n_special
    check_prefix(Reader(tokenizers[1], formats[1].prefix), room, "retriever.passage_prefix", "data.max_passage_tokens")
    encoders = [
        load_encoder(
            side.name,
            side.pooling,
            side.normalize,
            settings.dropout,
            dim=side.dim,
            projection=settings.projection,
            seed=config.seed,
            pads_left=style.pads_left,
            dense=not side.as_before,
        )
        for side, style in zip(both[: 1 if settings.tied else 2], formats, strict=False)
    ]
    for encoder in encoders:  # of folders that do not say, it shows only now
        if encoder.dim > encoder.width:
            raise _too_many_numbers(encoder.dim, encoder.width)
    for at, encoder in enumerate(encoders):
        if (settings.train_question_encoder, settings.train_passage_encoder)[at]:
            add_adapters(encoder.model, settings.lora, "retriever.lora", config.seed + at)
    if encoders[0].dim != encoders[-1].dim:  # of folders that do not say, it shows only now
        raise dimensions_differ(encoders[0].dim, encoders[-1].dim)
    longest = {
        "data.max_question_tokens": data.max_question_tokens + formats[0].n_around,
        "data.max_passage_tokens": data.max_passage_tokens,
    }
    for at, (side, limit) in enumerate(zip(both, longest, strict=True)):
        encoder = encoders[-at]
        probe_encoder(encoder, tokenizers[at], formats[at], side.key, limit=limit, longest=longest[limit])
        if config.trainer.world_size > 1:
            freeze_unreached(encoder, side.key)
    for encoder in encoders:
        if not settings.train_word_embeddings:
            encoder.freeze_word_embeddings()
        if config.trainer.checkpointing:
            checkpoint_layers(encoder)
    return encoders


def dimensions_differ(question: int, passage: int) -> OpenBookError:
    return OpenBookError(
        "question and passage encoder give embeddings of different dim",
        where="retriever.passage_encoder",
        got=passage,
        expected=question,
        action=f"retriever.projection={min(question, passage)} trains a linear layer on each into one space.",
    )
