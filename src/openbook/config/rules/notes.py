"""What is said of a configuration that is allowed and may not be meant."""

from openbook.config.schema import Config


def notes_of(config: Config) -> list[str]:
    """What a run of this configuration cannot learn, and may be meant that way."""
    retriever, own = config.retriever, config.objective in ("closed_book", "dpr")
    notes = []
    if config.generator.weights == "bf16" and not config.generator.lora.rank and config.objective != "dpr":
        notes.append(
            "generator.weights=bf16: there is no fp32 copy of what is trained, so a step that moves a weight by less "
            "than 1/512 of it does nothing; generator.weights=fp32 keeps every step, at twice the memory"
        )
    if config.generator.sharded and config.trainer.world_size == 1:
        notes.append("generator.sharded=true: one rank holds everything; trainer.devices=N parts it over N")
    marginal = not own and retriever.teacher != "both"  # alone teaches the encoders
    if retriever.n_docs == 1 and retriever.kind == "dense" and retriever.trains and marginal:
        notes.append(
            "retriever.n_docs=1: p(z|x) of a single passage is 1 whatever its score, so the encoders learn nothing; "
            "read more passages, or freeze them (retriever.train_question_encoder=false, train_passage_encoder=false)"
        )
    return notes
