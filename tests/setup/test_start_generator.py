"""Starting from a run's generator, from adapters, from folders: the weights are those; what cannot be is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openbook.commands.evaluate import load_trained
from openbook.commands.train import train
from openbook.config.models import GeneratorConfig, LoraConfig
from openbook.config.schema import Config
from openbook.errors import OpenBookError
from openbook.exchange.adapters import save_adapters
from openbook.models.encoders import load_encoder
from openbook.models.lora import add_adapters
from openbook.models.seq2seq import load_generator
from openbook.setup.prepare import prepare
from openbook.setup.start_from import resolve_start, start_encoders
from openbook.setup.start_generator import resolve_generator, start_generator
from openbook.tracking.checkpoint_io import WholeCheckpoints, read_checkpoint
from openbook.tracking.run_folder import RunFolder
from tests.small_system import SmallSystem

TEMPLATE = "{title} : {passage} , {question}"
LORA = ["generator.lora.rank=2", "generator.lora.targets=q_proj"]


def nudged(module: Any, names: str = "") -> Any:
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if names in name:
                value += 0.1 * torch.randn(value.shape, generator=draw)
    return module


def generator_of(config: Config) -> Any:
    return load_generator(config.generator.model, 0.0, config.seed, config.generator)


def made_run(system: SmallSystem, folder: Path, *more: str) -> tuple[Path, Any]:
    """A run folder with a checkpoint, and the generator that it holds."""
    config = system.config(folder, f"generator.prompt={TEMPLATE}", "generator.question=decoded", *more)
    generator = nudged(generator_of(config), ".lora_" if config.generator.lora.rank else "")
    run, state = RunFolder(folder), {f"generator.{name}": value for name, value in generator.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBOOK_RUN_DIR", "")
        run.create(config)
    WholeCheckpoints().save_checkpoint({"state_dict": state, "global_step": 3, "callbacks": {}}, run.last)
    return folder, generator


@torch.no_grad()
def logits(generator: Any) -> Tensor:
    ids = torch.randint(5, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    return generator.model.eval()(input_ids=ids, decoder_input_ids=ids[:, :3]).logits


def test_a_run_gives_weights_model_and_reading(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, theirs = made_run(small_system, tmp_path / "source")
    asked = small_system.config(tmp_path / "run", f"generator.start_from={source}", "generator.model=minilm")
    config = resolve_generator(asked)
    assert (config.generator.prompt, config.generator.question) == (TEMPLATE, "decoded")
    assert (config.generator.model, config.warmup.steps) == (str(small_system.generator), 0)
    assert "generator.prompt = " in capsys.readouterr().out
    assert resolve_generator(config) == config
    mine = generator_of(config)
    assert not torch.equal(logits(mine), logits(theirs))
    start_generator(config, mine)
    assert torch.equal(logits(mine), logits(theirs))
    own = small_system.config(tmp_path / "run", f"generator.start_from={source}", "generator.question=written")
    assert resolve_generator(own).generator.question == "written"
    assert "warning: generator.question is 'written', and was 'decoded'" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], LORA])
def test_adapters_of_a_run_are_merged_or_taken(more: list[str], small_system: SmallSystem, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    source, theirs = made_run(small_system, tmp_path / "source", *LORA)
    config = resolve_generator(small_system.config(tmp_path / "run", f"generator.start_from={source}", *more))
    mine = generator_of(config)
    start_generator(config, mine)
    torch.testing.assert_close(logits(mine), logits(theirs), atol=1e-5, rtol=1e-5)
    assert all(value.requires_grad for value in mine.parameters()) == (not more)


def test_a_folder_of_adapters_names_its_model(small_system: SmallSystem, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    settings = GeneratorConfig(model=str(small_system.generator), lora=LoraConfig(rank=2, targets="q_proj"))
    theirs = nudged(load_generator(settings.model, 0.0, 0, settings), ".lora_")
    save_adapters(theirs.model, settings.lora, settings.model, tmp_path / "peft", "SEQ_2_SEQ_LM")
    words = [f"generator.start_from={tmp_path / 'peft'}", "generator.model=minilm"]
    config = resolve_generator(small_system.config(tmp_path / "run", *words))
    assert config.generator.model == settings.model
    mine = generator_of(config)
    start_generator(config, mine)
    torch.testing.assert_close(logits(mine), logits(theirs), atol=1e-5, rtol=1e-5)


def test_a_base_of_another_machine_is_the_model_that_is_named(
    small_system: SmallSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    lora, folder = LoraConfig(rank=2, targets="q_proj"), tmp_path / "peft"
    theirs = load_generator(str(small_system.generator), 0.0, 0, GeneratorConfig(lora=lora))
    save_adapters(theirs.model, lora, "/content/drive/bart", folder, "SEQ_2_SEQ_LM")
    config = resolve_generator(small_system.config(tmp_path / "run", f"generator.start_from={folder}"))
    assert config.generator.model == str(small_system.generator)
    start = resolve_start(small_system.config(tmp_path / "run", f"retriever.start_from={folder}"))
    assert start.retriever.passage_encoder == str(small_system.encoder)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("were trained over /content/drive/bart, which is not here:") == 2


@pytest.mark.filterwarnings("ignore")
def test_encoders_of_a_run_are_taken_and_its_adapters_merged(small_system: SmallSystem, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = ["retriever.lora.rank=2", "retriever.lora.targets=query", "optim.lr=0.05", "trainer.max_steps=2"]
    short = ["data.validation=", "data.test=", "generator.model=minilm", "warmup.steps=0"]
    source = RunFolder(train(small_system.config(tmp_path / "source", *lora, *short)))
    theirs: Any = load_trained(source, source.load_config([], training=False))[0]
    unnamed = ["retriever.question_encoder=minilm", "retriever.passage_encoder=minilm"]
    start = f"retriever.start_from={source.path}"
    config = resolve_start(small_system.config(tmp_path / "run", *short, *unnamed, start))
    assert config.retriever.question_encoder == str(small_system.encoder)
    mine: Any = prepare(config).module()
    rows = torch.arange(5)
    before = mine.retriever.eval().passages.encode(rows)
    start_encoders(config, mine.retriever)
    after, wanted = mine.retriever.passages.encode(rows), theirs.retriever.eval().passages.encode(rows)
    assert (before - wanted).abs().max() > 1e-3
    torch.testing.assert_close(after, wanted, atol=1e-5, rtol=1e-4)
    plain = made_run(small_system, tmp_path / "plain")[0]
    with pytest.raises(OpenBookError, match=r"cannot lie on weights .*openbook export .*plain OUT`, and retriever\.st"):
        resolve_start(small_system.config(tmp_path / "run", f"retriever.start_from={plain}", *lora[:1]))


def test_what_cannot_be_started_from(small_system: SmallSystem, tmp_path: Path) -> None:
    source, _ = made_run(small_system, tmp_path / "source")
    start = f"generator.start_from={source}"
    with pytest.raises(OpenBookError, match=r"new adapters cannot lie on weights.*openbook export .*source OUT"):
        resolve_generator(small_system.config(tmp_path / "run", start, *LORA))
    config = resolve_generator(small_system.config(tmp_path / "run", start))
    with pytest.raises(OpenBookError, match=r"the generator to start from has another shape .*Set generator\.model to"):
        start_generator(config, torch.nn.Linear(2, 2))
    with pytest.raises(OpenBookError, match=r"no generator is loaded .*\(generator\.start_from\)"):
        small_system.config(tmp_path / "run", start, "objective=dpr", "dpr.bm25_negatives=0", "warmup.steps=0")
    with pytest.raises(OpenBookError, match=r"there is no run to start from \(generator\.start_from\): got 'nothing'"):
        resolve_generator(small_system.config(tmp_path / "run", "generator.start_from=nothing"))
    folder = small_system.config(tmp_path / "run", f"generator.start_from={small_system.encoder}")
    with pytest.raises(OpenBookError, match=r"two models to start from \(generator\.model\)"):
        resolve_generator(folder)


def test_folders_are_the_models_themselves(small_system: SmallSystem, tmp_path: Path) -> None:
    generator = small_system.config(
        tmp_path / "run", f"generator.start_from={small_system.generator}", "generator.model=minilm"
    )
    settled = resolve_generator(generator).generator
    assert (settled.model, settled.start_from) == (str(small_system.generator), "")
    both = ["retriever.question_encoder=minilm", "retriever.passage_encoder=minilm"]
    one = resolve_start(small_system.config(tmp_path / "run", f"retriever.start_from={small_system.encoder}", *both))
    assert {one.retriever.question_encoder, one.retriever.passage_encoder} == {str(small_system.encoder)}
    assert one.retriever.start_from == ""
    for side in ("question_encoder", "passage_encoder"):
        (tmp_path / "export" / side).mkdir(parents=True)
        (tmp_path / "export" / side / "config.json").write_text("{}")
    two = resolve_start(small_system.config(tmp_path / "run", f"retriever.start_from={tmp_path / 'export'}", *both))
    assert two.retriever.passage_encoder == str(tmp_path / "export/passage_encoder")
    with pytest.raises(OpenBookError, match=r"two encoders to start from \(retriever\.question_encoder\)"):
        resolve_start(small_system.config(tmp_path / "run", f"retriever.start_from={tmp_path / 'export'}"))


@pytest.mark.filterwarnings("ignore")
def test_training_starts_from_both(small_system: SmallSystem, tmp_path: Path) -> None:
    """At a learning rate of nearly nothing, what is trained is what was started from."""
    pytest.importorskip("peft")
    source, theirs = made_run(small_system, tmp_path / "source")
    encoder, lora = load_encoder(str(small_system.encoder), None, None, 0.0), LoraConfig(rank=2, targets="query")
    add_adapters(encoder.model, lora, "retriever.lora", 0)
    save_adapters(nudged(encoder.model, ".lora_"), lora, str(small_system.encoder), tmp_path / "peft", None)
    rates = [f"optim.lr_{part}=1e-9" for part in ("generator", "question_encoder", "passage_encoder")]
    starts = [f"generator.start_from={source}", f"retriever.start_from={tmp_path / 'peft'}"]
    more = ["trainer.max_steps=1", "data.validation=", "data.test=", "optim.weight_decay=0"]
    run = RunFolder(train(small_system.config(tmp_path / "run", *rates, *starts, *more)))
    state = read_checkpoint(run.last)["state_dict"]
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(state[f"generator.{name}"], value, atol=1e-6, rtol=0)
    name = "model.encoder.layer.0.attention.self.query.weight"
    before = load_encoder(str(small_system.encoder), None, None, 0.0).state_dict()[name]
    moved = state[f"retriever.passage_encoder.{name}"] - before
    assert moved.abs().max() > 1e-3
    torch.testing.assert_close(state[f"retriever.question_encoder.{name}"], state[f"retriever.passage_encoder.{name}"])
    assert any("The generator started from" in one for one in run.read_summary()["disclosures"])
    assert replace(run.load_config([], training=False).generator, prompt="").start_from == str(source)
