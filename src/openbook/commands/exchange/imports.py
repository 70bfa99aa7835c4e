"""`import`: a run folder of transformers' RAG, and safetensors of any model folder with pickled weights."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from openbook.config.load import load_experiment
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.exchange.adapters import is_adapter_folder, read_adapter_config
from openbook.exchange.pickled import converted, is_pickled
from openbook.exchange.rag import objective_of, read_config, read_rag, read_tokenizers, template_of
from openbook.exchange.settings import read_settings
from openbook.models.encoders import load_encoder
from openbook.models.pretrained import check_model_folder, loading, model_facts
from openbook.models.seq2seq import load_generator
from openbook.setup.encoders import dimensions_differ, sides
from openbook.tracking.checkpoint_io import WholeCheckpoints
from openbook.tracking.run_folder import SHARED, RunFolder
from openbook.utils.atomic import new_folder, replacing_folder, write_json
from openbook.utils.console import say, say_result
from openbook.utils.outside import check_hub, is_hub_name

KEY, MODELS = "import", "models"
IMPORTED = "imported"  # the status of such a run, which has no optimizer's state to resume from
# Where an export has the passage encoder, of which a RAG knows only the embeddings.
PASSAGE_ENCODERS = ("passage_encoder", "dpr/passage_encoder")
# Architectures that write; of all others the encoder is taken.
_WRITES = ("ForConditionalGeneration", "ForCausalLM", "LMHeadModel", "MTModel")


def import_folder(source: str, target: str | Path, overrides: Sequence[str] = (), *, passage_encoder: str = "") -> Path:
    """Import a folder (or hub name); returns what was written.

    transformers' RAG becomes a run folder: its weights as a checkpoint, its question encoder, generator and the passage
    encoder as folders in it, and a config.yaml that reads contexts as its RagRetriever writes them, with overrides on
    top. Any other model, sentence-transformers', DPR's or peft's folder becomes the same folder with its weights as
    safetensors. Raises OpenBookError where weights are missing, or have no place.
    """
    folder = local(source)
    if model_facts(str(folder)).get("model_type") == "rag":
        return _import_rag(source, folder, Path(target), overrides, passage_encoder)
    if overrides or passage_encoder:
        raise OpenBookError(
            "settings for what is no run",
            where=KEY,
            got=passage_encoder or overrides[0],
            expected=f"none: {source} is no RAG and becomes a model folder",
        )
    with replacing_folder(new_folder(target, "import to"), complete=lambda _: False) as new:
        _copy(folder, new)
        _check_loads(new)
    say_result(f"imported {source} as the model folder {target}")
    return Path(target)


def local(name: str) -> Path:
    """A folder as it is; of a hub name the folder that it is downloaded to, without code."""
    if not is_hub_name(name):
        if not Path(name).is_dir():
            raise OpenBookError("no such folder", where=KEY, got=name, expected="a model folder, or a hub name")
        return Path(name)
    from huggingface_hub import snapshot_download

    check_hub(name, KEY)
    with loading("files", name, KEY):
        return Path(snapshot_download(name, ignore_patterns=["*.py", "*.h5", "*.msgpack", "*.onnx", "*.ot"]))


def _copy(folder: Path, target: Path) -> None:
    left = converted(folder, target)
    if left:
        say(f"left behind, neither tensors nor settings: {', '.join(left)}")


def _check_loads(folder: Path) -> None:
    """Whatever it is, it can be started from: all weights of its architecture are there."""
    if is_adapter_folder(str(folder)):
        read_adapter_config(str(folder), KEY)
        return
    check_model_folder(str(folder), KEY)
    kinds = model_facts(str(folder)).get("architectures") or [""]
    if kinds[0].endswith(_WRITES):
        load_generator(str(folder), 0.0, 0)
    else:
        load_encoder(str(folder), None, None, 0.0)


def _import_rag(source: str, folder: Path, target: Path, overrides: Sequence[str], passage_encoder: str) -> Path:
    passages = _passage_encoder(folder, passage_encoder)
    place = new_folder(target, "import to")
    config = _config(folder, target / MODELS, overrides)  # what is wrong with overrides shows before weights are read
    try:
        with replacing_folder(place, complete=lambda _: False) as new:
            run = RunFolder(new)
            run.create(config)
            _write_models(folder, passages, new / MODELS)
            weights = _weights(_config(folder, new / MODELS, overrides, quiet=True))
            content = {"state_dict": weights, "global_step": 0, "callbacks": {}}
            WholeCheckpoints().save_checkpoint(content, run.last)
            facts = {"experiment": config.experiment, "status": IMPORTED, "steps": 0, "seed": config.seed}
            write_json(run.summary, facts | {"imported_from": Path(source).name, "n_docs": config.retriever.n_docs})
    finally:
        os.environ.pop(SHARED, None)
    say_result(
        f"imported {source} as {target}: {len(weights)} tensors, every one placed\n  objective {config.objective}, "
        f"n_docs {config.retriever.n_docs}, contexts {config.generator.prompt!r} of at most "
        f"{config.data.max_context_tokens} tokens, of which passages are cut and never questions, as RagRetriever cuts"
    )
    return target


def _passage_encoder(folder: Path, named: str) -> Path:
    """The folder of the passage encoder, which a RAG's folder does not hold."""
    if named:
        return local(named)
    found = next((folder / one for one in PASSAGE_ENCODERS if (folder / one / "config.json").is_file()), None)
    if found is None:
        raise OpenBookError(
            "a RAG has no passage encoder, without which a corpus cannot be encoded",
            where="--passage-encoder",
            got="nothing",
            expected="the encoder that its index was made with",
            action="For facebook/rag-token-nq and rag-sequence-nq: facebook/dpr-ctx_encoder-single-nq-base.",
        )
    return found


def _write_models(folder: Path, passages: Path, target: Path) -> None:
    """The three models as folders, all of safetensors."""
    target.mkdir()
    with TemporaryDirectory(dir=target) as safe:
        if is_pickled(folder) and not (folder / "model.safetensors").is_file():
            _copy(folder, Path(safe))
            folder = Path(safe)
        rag = read_rag(folder)
        kind = rag.config.question_encoder.model_type
        if kind != "dpr":
            raise OpenBookError("the RAG's question encoder is none of DPR's", where=folder, got=kind, expected="dpr")
        tokenizers = read_tokenizers(folder)
        for name, model, tokenizer in (
            ("question_encoder", rag.question_encoder, tokenizers[0]),
            ("generator", rag.generator, tokenizers[1]),
        ):
            model.save_pretrained(target / name)
            tokenizer.save_pretrained(target / name)
    _copy(passages, target / "passage_encoder")
    for name in ("question_encoder", "passage_encoder", "generator"):
        check_model_folder(str(target / name), KEY)


def _config(folder: Path, models: Path, overrides: Sequence[str], quiet: bool = False) -> Config:
    """Defaults, what the RAG's config.json says, what an export says beside it, the user's own. models: their folder,
    which need not be there yet."""
    said = read_config(folder)
    for name in ("exclude_bos_score", "label_smoothing"):
        if getattr(said, name, None) and not quiet:
            say(f"warning: the RAG's {name} = {getattr(said, name)} is not taken over: it changes the loss only")
    settings = {
        "objective": objective_of(said, folder),
        "retriever.question_encoder": str(models / "question_encoder"),
        "retriever.passage_encoder": str(models / "passage_encoder"),
        "retriever.n_docs": said.n_docs,
        "retriever.temperature": 1,
        "generator.model": str(models / "generator"),
        "generator.prompt": template_of(said),
        "generator.question": "decoded",
        "data.max_context_tokens": said.max_combined_length,
        "warmup.steps": 0,
        "refresh.every": "0",
        "evaluate.checkpoint": "last",
        **read_settings(folder),
    }
    if any(one.startswith("data.corpus=") for one in overrides):  # the embedded questions are of another corpus
        settings |= {"data.train": "", "data.validation": "", "data.test": ""}
    with TemporaryDirectory() as temporary:
        experiment = Path(temporary) / f"{IMPORTED}.yaml"
        experiment.write_text("shows: a RAG of transformers\n", encoding="utf-8")
        lines = [f"{key}={value}" for key, value in settings.items()]
        return load_experiment(str(experiment), [*lines, *overrides], training=False)


def _weights(config: Config) -> dict[str, Tensor]:
    """The checkpoint's: those of the encoders and the generator as a run loads them."""
    question, passage = (
        load_encoder(side.name, side.pooling, side.normalize, 0.0, dim=side.dim, seed=config.seed)
        for side in sides(config)
    )
    if question.dim != passage.dim:
        raise dimensions_differ(question.dim, passage.dim)
    generator: Any = load_generator(config.generator.model, 0.0, config.seed, config.generator)
    parts = {"retriever.question_encoder": question, "retriever.passage_encoder": passage, "generator": generator}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
