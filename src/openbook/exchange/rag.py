"""transformers' RAG (RagTokenForGeneration, RagSequenceForGeneration): a run's models as its folder, and back.

    config.json, model.safetensors                      question encoder (DPR) and generator
    question_encoder_tokenizer/, generator_tokenizer/   as RagTokenizer reads them

Its RagRetriever writes a context as  prefix title title_sep text doc_sep question,  the question decoded from the
question encoder's tokens, and cuts what is too long at its end. doc_scores are plain inner products: a temperature goes
into the question encoder.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    DPRQuestionEncoder,
    RagConfig,
    RagSequenceForGeneration,
    RagTokenForGeneration,
    RagTokenizer,
)

from openbook.batch import Passage
from openbook.errors import OpenBookError
from openbook.exchange.dpr import as_dpr, why_not_dpr
from openbook.models.encoders import TextEncoder
from openbook.models.lora import merged
from openbook.models.pretrained import load_weights, loading
from openbook.models.seq2seq import Seq2SeqGenerator

CLASSES: Mapping[str, Any] = {"rag_token": RagTokenForGeneration, "rag_sequence": RagSequenceForGeneration}
TEMPLATE = "{title} / {passage} // {question}"
_PARTS = re.compile(r"(.*?)\{title\}(.*?)\{passage\}(.*?)\{question\}", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class RagParts:
    """What of a run becomes a RAG. likelihood: that decodes. template: generator.prompt. question_prefix: of
    the question encoder. max_context, max_answer: tokens, special tokens included."""

    question_encoder: TextEncoder
    generator: Any
    question_tokenizer: Any
    generator_tokenizer: Any
    likelihood: str
    template: str
    question_prefix: str
    temperature: float
    n_docs: int
    max_context: int
    max_answer: int


def why_no_rag(parts: RagParts) -> list[str]:
    """Why transformers' RAG cannot compute what the run computes, one sentence each; empty where it can."""
    if parts.likelihood == "all_passages":
        return ["the generator reads all passages at once, which transformers' RAG does not"]
    dpr = why_not_dpr(parts.question_encoder)
    why = [f"RAG asks questions with DPR's encoder, and of retriever.question_encoder {dpr}"] if dpr else []
    if not isinstance(parts.generator, Seq2SeqGenerator):
        why.append("its generator is a transformers encoder-decoder, and generator.model is none")
    elif _PARTS.fullmatch(parts.template) is None:
        why.append(
            "RagRetriever writes contexts as title, passage and question; a run with "
            f"generator.prompt={TEMPLATE!r} reads them so, this one has {parts.template!r}"
        )
    if parts.question_prefix:
        why.append(f"RagRetriever would show the generator retriever.question_prefix {parts.question_prefix!r}")
    return why


def write_rag(parts: RagParts, folder: Path) -> None:
    """The folder of a RAG that `why_no_rag` has nothing against, read back and compared."""
    found = _PARTS.fullmatch(parts.template)
    assert found is not None
    prefix, title_sep, doc_sep = found.groups()
    question = as_dpr(parts.question_encoder, DPRQuestionEncoder, 1 / parts.temperature)
    generator, model = parts.generator, merged(parts.generator.model)
    ids = {
        "bos_token_id": model.config.bos_token_id,
        "eos_token_id": generator.eos_token_id,
        "pad_token_id": generator.pad_token_id,
        "decoder_start_token_id": generator.decoder_start_token_id,
    }
    config = RagConfig.from_question_encoder_generator_configs(
        question.config,
        model.config,
        n_docs=parts.n_docs,
        max_combined_length=parts.max_context,
        retrieval_vector_size=parts.question_encoder.dim,
        title_sep=title_sep,
        doc_sep=doc_sep,
        index_name="custom",
        **ids,
    )
    config.generator.prefix = prefix or None
    for part in (config, config.question_encoder, config.generator):
        part._name_or_path = ""  # where they lay on this machine is nobody's business
    rag = CLASSES[parts.likelihood](config=config, question_encoder=question, generator=model)
    length = {"max_length": parts.max_answer + 1, "forced_bos_token_id": generator.first_token_id}
    if parts.likelihood == "rag_token":  # transformers' RAG-Sequence keeps none
        rag.generation_config.update(**ids, **length)
    rag.save_pretrained(folder)
    RagTokenizer(parts.question_tokenizer, parts.generator_tokenizer).save_pretrained(folder)
    again, now = read_rag(folder).state_dict(), rag.state_dict()
    differing = [name for name in now if name not in again or not again[name].equal(now[name].cpu())]
    if differing or again.keys() - now.keys():
        raise OpenBookError("the RAG was written and is not read back as it was", where=folder, got=differing[:1])


def read_config(folder: str | Path) -> Any:
    with loading("configuration of the RAG", str(folder), "import"):
        return RagConfig.from_pretrained(folder)


def read_tokenizers(folder: str | Path) -> tuple[Any, Any]:
    """The question encoder's and the generator's."""
    with loading("tokenizers of the RAG", str(folder), "import"):
        both = RagTokenizer.from_pretrained(folder)
    return both.question_encoder, both.generator


def read_rag(folder: str | Path) -> Any:
    """A RAG from its folder (safetensors only). OpenBookError where it is none, lacks weights, or has some that have no
    place in it."""
    config = read_config(folder)
    kind = objective_of(config, folder)
    return load_weights(CLASSES[kind], "RAG", str(folder), "import", config, ignored="pooler", strict=True)


def objective_of(config: Any, folder: str | Path) -> str:
    """rag_token or rag_sequence, by the architecture that config.json states."""
    names = {kind.__name__: objective for objective, kind in CLASSES.items()}
    found = [names[one] for one in config.architectures or () if one in names]
    if len(found) != 1:
        raise OpenBookError(
            "the RAG does not say how it marginalises",
            where=f"{folder}/config.json: architectures",
            got=config.architectures,
            expected=" or ".join(names),
        )
    return found[0]


def template_of(config: RagConfig) -> str:
    """generator.prompt by which a run reads what this RAG's RagRetriever writes."""
    prefix = getattr(config.generator, "prefix", None) or ""
    return f"{prefix}{{title}}{config.title_sep}{{passage}}{config.doc_sep}{{question}}"


def retriever_text(config: RagConfig, passage: Passage, question: str) -> str:
    """The context that RagRetriever writes; question: as decoded from its tokens."""
    prefix = getattr(config.generator, "prefix", None) or ""
    title = passage.title.removeprefix('"').removesuffix('"')
    return f"{prefix}{title}{config.title_sep}{passage.text}{config.doc_sep}{question}".replace("  ", " ")


def differing_contexts(
    config: RagConfig, tokenizer: Any, texts: Sequence[tuple[Passage, str]], contexts: Sequence[Sequence[int]]
) -> int:
    """How many of a run's contexts (token ids) RagRetriever writes otherwise. texts: passage and decoded question of
    each; tokenizer: the generator's."""
    written = [retriever_text(config, passage, question) for passage, question in texts]
    theirs = tokenizer(written, max_length=config.max_combined_length, truncation=True)["input_ids"] if written else []
    return sum(list(one) != list(other) for one, other in zip(theirs, contexts, strict=True))
