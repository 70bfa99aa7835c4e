"""Rules about models that cannot be trained, or not as they were asked to be, and about the answers they write."""

from openbook.config.models import MINILM
from openbook.config.rules.combinations import Check, has_index, labels_of
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
    generator, retriever, optim = config.generator, config.retriever, config.optim
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
            generator.weights == "bf16" and generator.model == MINILM,
            "the small reader is small, and its weights are fp32",
            "generator.weights",
            "fp32, or a transformers model as generator.model",
        ),
        Check(
            generator.weights == "bf16" and config.trainer.precision == "fp32",
            "weights in bf16 that would be multiplied in bf16 all the same",
            "trainer.precision",
            "bf16 with generator.weights=bf16",
        ),
        Check(
            generator.sharded and (generator.model == MINILM or config.objective == "dpr"),
            "no transformers model whose layers could be in parts",
            "generator.sharded",
            "false, or a transformers model as generator.model",
        ),
        Check(
            generator.sharded and generator.quantize != "none",
            "quantised weights cannot be in parts",
            "generator.sharded",
            "false with generator.quantize",
        ),
        Check(
            generator.sharded and generator.reads == "all",
            "a reader of all passages runs its layers more often on some ranks than on others",
            "generator.sharded",
            "false with generator.reads=all",
        ),
        Check(
            generator.sharded and optim.name != "adamw",
            "bitsandbytes' optimizers do not know of weights in parts",
            "optim.name",
            "adamw with generator.sharded",
            "Parted over the ranks, AdamW's moments take 8 bytes / ranks for each weight.",
        ),
        Check(
            retriever.lora.rank and not (has_index(config) and retriever.trains),
            "no encoder is trained that could have adapters",
            "retriever.lora.rank",
            "0 without encoders that train",
        ),
    ]


def answer_checks(config: Config) -> list[Check]:
    decode, evaluate = config.decode, config.evaluate
    most = decode.max_tokens or config.data.max_target_tokens
    sequence, greedy = config.objective == "rag_sequence", decode.rag_sequence == "greedy"
    return [
        Check(
            decode.min_tokens > most,
            "answers of no possible length",
            "decode.min_tokens",
            f"at most {most}, the most tokens of an answer",
        ),
        Check(
            decode.sample and decode.beams > 1,
            "a drawn answer is not searched for",
            "decode.beams",
            "1 with decode.sample=true",
        ),
        Check(
            decode.sample and decode.n_best > 1,
            "one answer is drawn for a question",
            "decode.n_best",
            "1 with decode.sample=true",
        ),
        Check(
            decode.temperature != 1 and not decode.sample,
            "a temperature that a search ignores",
            "decode.temperature",
            "1, or decode.sample=true",
        ),
        Check(
            decode.top_p != 1 and not decode.sample,
            "a nucleus that a search ignores",
            "decode.top_p",
            "1, or decode.sample=true",
        ),
        Check(
            decode.n_best > decode.beams
            and not decode.sample
            and not (sequence and not greedy),  # else the candidates of all passages
            "more answers than beams",
            "decode.n_best",
            f"at most decode.beams = {decode.beams}",
            "Raise decode.beams.",
        ),
        Check(
            sequence and greedy and decode.beams > 1,
            "a greedy search has one beam",
            "decode.beams",
            "1, or decode.rag_sequence=thorough or fast",
        ),
        Check(
            evaluate.task == "labels" and len(labels_of(evaluate.labels)) < 2,
            "no labels to choose from",
            "evaluate.labels",
            "two labels or more, comma-separated",
        ),
        Check(
            len({label.casefold() for label in labels_of(evaluate.labels)}) < len(labels_of(evaluate.labels)),
            "two labels are the same but for their case",
            "evaluate.labels",
            "distinct labels",
        ),
        Check(
            evaluate.task != "labels" and evaluate.labels,
            "labels that this task ignores",
            "evaluate.labels",
            "nothing, or evaluate.task=labels",
        ),
    ]
