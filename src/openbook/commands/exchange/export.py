"""`export`: what a run has trained as folders of transformers, sentence-transformers, DPR, peft and FAISS."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from openbook.commands.evaluate import load_trained
from openbook.config.schema import Config
from openbook.data.collate import PlannedExamples
from openbook.data.inputs import decoded
from openbook.data.prompts import with_line_ends
from openbook.errors import OpenBookError
from openbook.exchange.card import Facts, model_card
from openbook.exchange.index_files import has_datasets, write_dataset, write_index
from openbook.exchange.models import (
    Written,
    encoder_sides,
    write_dpr,
    write_encoder,
    write_generator,
    write_generator_adapters,
)
from openbook.exchange.push import push, reserve
from openbook.exchange.rag import CLASSES, RagParts, differing_contexts, read_config, why_no_rag, write_rag
from openbook.exchange.settings import write_settings
from openbook.inference.evidence import best_passages
from openbook.retrieval.dense import DenseRetriever
from openbook.setup.prepare import Prepared
from openbook.tracking.added_passages import answering_overrides, newest
from openbook.tracking.run_folder import RunFolder, read_json
from openbook.training.rag_module import RagModule
from openbook.utils.atomic import new_folder, replacing_folder, write_text
from openbook.utils.console import say, say_result

COMPARED = 64  # questions whose contexts are compared with those of RagRetriever


def export(
    run: str | Path, folder: str | Path, *, adapters: bool = False, name: str = "", public: bool = False
) -> Path:
    """Write a run's models, its index and a model card into a new folder; returns it.

    What the run's models are not (a RAG of transformers, DPR's encoders) is left out, which is said with its reason
    here and in the card. adapters: of a generator with LoRA the adapters alone, instead of merged weights. name:
    OWNER/NAME of a hub's repository that the folder is pushed to, private unless public. Raises OpenBookError for a run
    without a checkpoint, and for a folder with something in it.
    """
    source, target = RunFolder.existing(str(run)), new_folder(folder, "export to")
    config = source.load_config(answering_overrides(source.path), training=False)
    if adapters and not config.generator.lora.rank:
        raise OpenBookError("the run has no adapters", where="--adapters", got="generator.lora.rank 0")
    if name:
        reserve(name, public)
    module, prepared, refresh, *_ = load_trained(source, config)
    config = prepared.config
    module.eval().to(torch.device("cuda" if prepared.on == "gpu" else "cpu"))
    if refresh is not None:
        refresh.manager.ensure(cast(DenseRetriever, module.retriever), 0)
    with replacing_folder(target, complete=lambda _: False) as new:
        written, notes = Written(new), list[str]()
        rows = _write_retriever(module.retriever, prepared, written)
        _write_generator(module, config, prepared, written, adapters)
        if isinstance(module, RagModule) and rows is not None and not adapters:
            notes = _write_rag(module, prepared, written, rows)
        if newest(source.path):
            notes.append("passages were added after training (`openbook index add`): the metrics are of fewer")
        write_settings(config, new)
        facts = Facts(
            f"{config.experiment}, {source.path.name}",
            source.read_summary(),
            read_json(source.path / "environment.json"),
            prepared.parts.corpus,
            written,
            notes,
        )
        write_text(new / "README.md", model_card(config, facts))
    for what, reads in written.folders.items():
        say(f"{what:>18}  {reads}")
    for what, why in written.left_out.items():
        say(f"{what:>18}  left out: {why}")
    for note in notes:
        say(f"note: {note}")
    say_result(f"exported to {target}")
    if name:
        say_result(push(target, name, f"{config.experiment}, step {facts.summary.get('steps')}"))
    return target


def _write_retriever(retriever: Any, prepared: Prepared, written: Written) -> np.ndarray | None:
    """Both encoders and the index; the row of each of its numbers, None for a run without an index."""
    if not isinstance(retriever, DenseRetriever):
        written.left_out["encoders and index"] = "the run has none"
        return None
    parts = prepared.parts
    for name, encoder, tokenizer in encoder_sides(retriever, parts):
        with written.attempt(name, "an encoder, for sentence-transformers") as folder:
            write_encoder(encoder, tokenizer, folder, parts.question_format, parts.passage_format)
        kind = "DPRQuestionEncoder" if name == "question_encoder" else "DPRContextEncoder"
        with written.attempt(f"dpr/{name}", f"the same for transformers' {kind}") as folder:
            write_dpr(encoder, tokenizer, folder, asks=name == "question_encoder")
    assert retriever.snapshot is not None
    rows = None
    reads = f"FAISS's index ({retriever.snapshot.factory}) of {len(parts.corpus):,} passages, with their ids and texts"
    with written.attempt("index", reads) as folder:
        rows = write_index(retriever.snapshot.index, parts.corpus, folder)
    return rows


def _write_generator(module: Any, config: Config, prepared: Prepared, written: Written, adapters: bool) -> None:
    if not isinstance(module, RagModule):
        written.left_out["generator"] = "the run has none: its objective is dpr"
        return
    generator, tokenizer = module.generator, prepared.parts.generator_tokenizer
    if adapters:
        with written.attempt("generator_adapters", "adapters over generator.model, for peft") as folder:
            write_generator_adapters(generator, tokenizer, config.generator, folder)
        return
    own = hasattr(generator, "model")
    with written.attempt("generator", "for transformers" if own else "the small reader, for openbook alone") as folder:
        write_generator(generator, tokenizer, folder)


def _write_rag(module: RagModule, prepared: Prepared, written: Written, rows: np.ndarray) -> list[str]:
    """transformers' RAG and the passages for its RagRetriever, where they compute what the run computes; what a user
    of it has to know."""
    config, parts, retriever = prepared.config, prepared.parts, module.retriever
    assert isinstance(retriever, DenseRetriever) and retriever.snapshot is not None
    rag = RagParts(
        question_encoder=retriever.question_encoder,
        generator=module.generator,
        question_tokenizer=parts.question_tokenizer,
        generator_tokenizer=parts.generator_tokenizer,
        likelihood=module.answering.likelihood,
        template=with_line_ends(config.generator.prompt),
        question_prefix=parts.question_format.prefix,
        temperature=retriever.temperature,
        n_docs=module.answering.n_docs,
        max_context=config.data.max_context_tokens,
        max_answer=module.answering.decode.max_tokens,
    )
    if why := why_no_rag(rag):
        written.left_out["rag"] = "; ".join(why)
        return []
    write_rag(rag, written.root)
    written.folders["rag"] = f"the files beside this page, for transformers' {CLASSES[rag.likelihood].__name__}"
    exact = retriever.index_is_exact()
    if has_datasets():
        index, encode = retriever.snapshot.index, retriever.passages.encode

        @torch.inference_mode()
        def embeddings(some: np.ndarray) -> np.ndarray:
            return index.vectors(some) if exact else encode(torch.from_numpy(some)).float().cpu().numpy()

        with written.attempt("dataset", "title, text and embedding of the passages, for RagRetriever") as folder:
            write_dataset(embeddings, rows, parts.corpus, folder)
    else:
        written.left_out["dataset"] = "RagRetriever's passages need `datasets`: pip install 'openbook[hub]'"
    return _notes(module, prepared, written, exact)


def _notes(module: RagModule, prepared: Prepared, written: Written, exact: bool) -> list[str]:
    config, decode = prepared.config, module.answering.decode
    notes = [_compared(module, prepared, read_config(written.root))]
    if config.retriever.temperature != 1:
        notes.append(f"doc_scores are divided by {config.retriever.temperature:g} in the RAG's question encoder")
    if not exact:
        notes.append("the index finds approximately, or is of older weights; the data set's embeddings are of these")
    searches = {"num_beams": decode.beams, "length_penalty": decode.length_penalty, "min_length": decode.min_tokens}
    notes.append(f"the run decodes with {', '.join(f'{key}={value:g}' for key, value in searches.items())}")
    return notes


def _compared(module: RagModule, prepared: Prepared, rag: Any) -> str:
    """How many contexts of the run's questions RagRetriever writes otherwise."""
    files, parts, answering = prepared.questions.questions, prepared.parts, module.answering
    if "test" not in files:
        return "without test questions, contexts were not compared with those of RagRetriever"
    chosen = PlannedExamples(files["test"], COMPARED)
    examples = [chosen.example(number) for number in range(len(chosen))]
    batch = prepared.questions.batch_of(examples).to(next(module.parameters()).device)
    top, _ = best_passages(batch, module.retriever, answering.n_docs, module.retriever.index_is_exact())
    top = top[:, : answering.n_docs]
    ids, mask = answering.contexts(batch.context_questions, top)
    written = parts.question_format.question_ids(parts.question_tokenizer, [one.question for one in examples])
    asked, rows = decoded(parts.question_tokenizer, written), top.flatten().tolist()
    there = [number for number, row in enumerate(rows) if row >= 0]
    texts = [(parts.corpus.passage(rows[number]), asked[number // top.shape[1]]) for number in there]
    contexts = [ids[number][mask[number]].tolist() for number in there]
    n = differing_contexts(rag, parts.generator_tokenizer, texts, contexts)
    if not n:
        return f"RagRetriever writes the contexts of {len(chosen):,} test questions as the run reads them"
    why = "" if prepared.config.generator.question == "decoded" else ", generator.question=decoded"
    return (
        f"RagRetriever writes {n:,} of {len(contexts):,} contexts of test questions otherwise than the run reads them: "
        f"it decodes questions from the encoder's tokens{why}, cuts the end of a context over "
        f"{rag.max_combined_length} tokens, joins double spaces and takes quotes off titles"
    )
