"""Rules about models that cannot be trained, or not as they were asked to be."""

from openbook.config.combinations import Check, has_index
from openbook.config.models import MINILM
from openbook.config.schema import Config


def model_checks(config: Config) -> list[Check]:
    data, retriever, optim = config.data, config.retriever, config.optim
    question_trains = retriever.train_question_encoder
    return [
        Check(
            data.split.overlap >= data.split.size,
            "passages would repeat all of the one before",
            "data.split.overlap",
            f"less than data.split.size = {data.split.size}",
        ),
        Check(
            0 < data.max_context_tokens < data.max_question_tokens + 8,
            "contexts would hold no passage",
            "data.max_context_tokens",
            f"at least data.max_question_tokens + 8 = {data.max_question_tokens + 8}",
        ),
        Check(
            retriever.rerank < -1 or 0 < retriever.rerank < retriever.n_docs,
            "value out of range",
            "retriever.rerank",
            f"-1, 0, or at least retriever.n_docs = {retriever.n_docs}",
        ),
        Check(
            retriever.tied and question_trains != retriever.train_passage_encoder,
            "tied encoders train together or not at all",
            "retriever.train_passage_encoder",
            f"retriever.train_question_encoder's value, {question_trains}",
        ),
        Check(
            retriever.tied and retriever.question_encoder != retriever.passage_encoder,
            "tied encoders are one model",
            "retriever.passage_encoder",
            repr(retriever.question_encoder),
        ),
        Check(
            retriever.tied and optim.lr_question_encoder != optim.lr_passage_encoder,
            "tied encoders have one learning rate",
            "optim.lr_passage_encoder",
            optim.lr_question_encoder,
        ),
        Check(
            retriever.projection and not (has_index(config) and retriever.trains),
            "a new projection that nothing trains",
            "retriever.projection",
            "0 with frozen encoders",
        ),
        Check(
            retriever.projection and retriever.dim,
            "a projection has the dim that it is made with",
            "retriever.dim",
            "0 with retriever.projection",
        ),
        Check(
            retriever.tokens_per_backward and not (has_index(config) and retriever.train_passage_encoder),
            "no passage is encoded with a gradient, so there is none to compute in parts",
            "retriever.tokens_per_backward",
            "0 without a passage encoder that trains",
        ),
    ]


def adapter_checks(config: Config) -> list[Check]:
    generator, retriever = config.generator, config.retriever
    return [
        Check(
            generator.lora.rank and generator.model == MINILM,
            "the small reader has no adapters",
            "generator.lora.rank",
            "0, or a transformers model as generator.model",
        ),
        Check(
            generator.quantize != "none" and not generator.lora.rank,
            "quantised weights cannot be trained",
            "generator.quantize",
            "none without adapters",
            "Set generator.lora.rank=16.",
        ),
        Check(
            retriever.lora.rank and not (has_index(config) and retriever.trains),
            "no encoder is trained that could have adapters",
            "retriever.lora.rank",
            "0 without encoders that train",
        ),
    ]
