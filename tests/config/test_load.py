"""Configuration: every problem at once, the nearest right key, the schema decides how a text is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from openbook.config.checks import problems_of
from openbook.config.load import list_experiments, load_experiment, load_resolved, to_yaml
from openbook.config.schema import Config, described_keys, keys_of
from openbook.errors import OpenBookError
from openbook.tracking.run_folder import RunFolder

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("shows: a base\nseed: 3\noptim:\n  lr_generator: 2e-4\n", encoding="utf-8")
    (tmp_path / "child.yaml").write_text("extends: base\nshows: a child\nseed: 5\n", encoding="utf-8")
    return tmp_path


def test_a_child_overrides_its_parent_and_overrides_override_both(folder: Path) -> None:
    config = load_experiment("child", ["optim.clip=0.5"], folder)
    assert (config.experiment, config.seed, config.optim.lr_generator, config.optim.clip) == ("child", 5, 2e-4, 0.5)
    assert load_experiment("child", ["seed=7"], folder).seed == 7


def test_the_schema_decides_how_an_override_is_read(folder: Path) -> None:
    config = load_experiment(
        "base", ["run.name=0123", "wandb.project=yes", "optim.lr_generator=1e-6", "retriever.tied=no"], folder
    )
    assert (config.run.name, config.wandb.project, config.optim.lr_generator, config.retriever.tied) == (
        "0123",
        "yes",
        1e-6,
        False,
    )


def test_all_problems_are_reported_at_once_with_the_nearest_key(folder: Path) -> None:
    wrong = ["trainer.max_step=3", "optm.clip=1", "trainer.precision=fp8", "trainer.max_steps=many", "nonsense"]
    with pytest.raises(OpenBookError) as caught:
        load_experiment("base", wrong, folder)
    text = str(caught.value)
    assert text.startswith("5 problems")
    for part in (
        "Did you mean trainer.max_steps?",
        "Did you mean optim.clip?",
        "one of auto, fp32, bf16",
        "'many', expected a whole number",
        "'nonsense', expected key=value",
    ):
        assert part in text


def test_ranges_and_combinations(folder: Path) -> None:
    wrong = [
        "retriever.n_docs=0",
        "optim.final_lr=2",
        "retriever.tied=true",
        "retriever.train_question_encoder=false",
        "data.train=mine.jsonl",
        "data.corpus=factbook",
    ]
    with pytest.raises(OpenBookError) as caught:
        load_experiment("base", wrong, folder)
    text = str(caught.value)
    for part in (
        "(retriever.n_docs): got 0, expected more than 0",
        "(optim.final_lr): got 2.0, expected a share",
        "tied encoders train together",
        "questions of your own over the embedded corpus",
        "(data.validation): got 'factbook'",
    ):
        assert part in text


def test_defaults_are_sound() -> None:
    assert problems_of(Config()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [1", "not readable as YAML"),
        ("- 1\n- 2\n", "not a mapping"),
        ("extends: broken\n", "in a circle"),
        ("sed: 1\n", "broken.yaml: sed.*Did you mean seed"),
    ],
)
def test_broken_files_are_named(folder: Path, content: str, said: str) -> None:
    (folder / "broken.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(OpenBookError, match=said):
        load_experiment("broken", (), folder)


def test_an_unknown_experiment_names_the_nearest(folder: Path) -> None:
    with pytest.raises(OpenBookError, match=r"one of base, child.*Did you mean child"):
        load_experiment("chidl", (), folder)


def test_a_resolved_configuration_reads_back_as_itself(folder: Path) -> None:
    config = load_experiment("child", ["run.dir=x"], folder)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_resolved(folder / "config.yaml") == config
    assert load_resolved(folder / "config.yaml", ["seed=11"]).seed == 11


def test_every_key_has_a_unit() -> None:
    described = {key: unit for key, _, unit in described_keys()}
    assert list(described) == list(keys_of())
    assert all(described.values())


@pytest.mark.parametrize("name", list_experiments(EXPERIMENTS))
def test_every_experiment_loads_and_fits_one_screen(name: str) -> None:
    config = load_experiment(name, (), EXPERIMENTS)
    assert config.experiment == name
    assert len(config.shows) > 20
    assert len((EXPERIMENTS / f"{name}.yaml").read_text().splitlines()) <= 40


def test_experiments_in_folders_are_named_by_their_place(tmp_path: Path) -> None:
    """What begins with _ is only extended. A file beside comes first, then one of the folder, then openbook's own."""
    (tmp_path / "mine/deep").mkdir(parents=True)
    (tmp_path / "_common.yaml").write_text("seed: 7\n")
    (tmp_path / "mine/_common.yaml").write_text("extends: rag_token\nseed: 8\n")
    (tmp_path / "mine/deep/one.yaml").write_text("extends: mine/_common\nshows: x\n")
    (tmp_path / "mine/two.yaml").write_text("extends: _common\n")
    (tmp_path / "mine/tiny.yaml").write_text("extends: tiny\n")  # never itself
    mine = {name for name in list_experiments(tmp_path) if name.startswith("mine")}
    assert mine == {"mine/deep/one", "mine/two", "mine/tiny"}
    one = load_experiment("mine/deep/one", (), tmp_path)
    assert (one.experiment, one.seed, one.retriever.train_word_embeddings) == ("mine/deep/one", 8, False)
    assert load_experiment("mine/two", (), tmp_path).seed == 8
    assert load_experiment("mine/tiny", (), tmp_path).trainer.max_steps == 4
    assert load_experiment(str(tmp_path / "mine/two.yaml"), (), tmp_path).experiment == "mine/two"
    assert load_experiment(str(tmp_path / "mine/two.yaml")).experiment == "two", "elsewhere a file has its own name"
    with pytest.raises(OpenBookError, match=r"Did you mean mine/deep/one\?"):
        load_experiment("mine/deep/on", (), tmp_path)


def test_the_experiments_that_were_promised() -> None:
    promised = {"rag_token", "rag_sequence", "closed_book", "frozen_retriever", "stale_index", "factbook_full", "tiny"}
    assert promised <= set(list_experiments(EXPERIMENTS))


def test_nothing_in_a_configuration_needs_torch() -> None:
    """Plain values only, so that a checkpoint that holds them loads with weights_only."""
    assert not any(isinstance(value, torch.Tensor) for _, value, _ in described_keys())


@pytest.mark.parametrize("text", ["???", "${nope}", "a ${data.train} b", "0123", "1e3", "null", "${"])
def test_text_is_text(text: str, tmp_path: Path) -> None:
    """In an override, in an experiment's file, and in the file that a run keeps."""
    (tmp_path / "one.yaml").write_text(f"shows: '{text}'\nrun:\n  name: {json.dumps(text)}\n", encoding="utf-8")
    for config in (
        load_experiment(str(tmp_path / "one.yaml")),
        load_experiment("tiny", [f"shows={text}", f"run.name={text}"]),
    ):
        assert (config.shows, config.run.name) == (text, text)
        (tmp_path / "kept.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert load_resolved(tmp_path / "kept.yaml") == config


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "key ${ oc.decode:x}", "${env:WANDB_API_KEY,none}", "${a.b:c}"])
def test_nothing_is_fetched_from_elsewhere(text: str, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(f"wandb:\n  project: {json.dumps(text)}\n", encoding="utf-8")
    for words in ([str(tmp_path / "one.yaml")], ["tiny", [f"wandb.project={text}"]]):
        with pytest.raises(OpenBookError, match=r"fetched from elsewhere.*\(wandb\.project\).*its own environment"):
            load_experiment(*words)  # type: ignore[arg-type]


@pytest.mark.parametrize("folder", ["/etc/somewhere", "../beside", "runs/../../out", "elsewhere"])
def test_a_file_does_not_choose_a_folder_outside_of_runs(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(f"run:\n  dir: {folder}\n", encoding="utf-8")
    with pytest.raises(OpenBookError, match=r"a run folder outside of runs/ \(one\.yaml: run\.dir\)"):
        load_experiment(str(path))
    assert load_experiment(str(path), ["run.dir="]).run.dir == ""
    config = load_experiment(str(path), [f"run.dir={folder}"])  # asked for
    (tmp_path / "kept.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_resolved(tmp_path / "kept.yaml") == config
    path.write_text("run:\n  dir: runs/here/one\n", encoding="utf-8")
    assert load_experiment(str(path)).run.dir == "runs/here/one"


@pytest.mark.parametrize("name", ["/abs", "../../x", "a/../../b", "nul\0", "line\nbreak", "n" * 300])
def test_a_name_stays_in_runs(name: str) -> None:
    with pytest.raises(OpenBookError, match=r"not a name \(experiment\)"):
        load_experiment("tiny", [f"experiment={name}"])
    with pytest.raises(OpenBookError, match=r"a run name must not be a path \(run\.name\)"):
        RunFolder.choose(load_experiment("tiny", [f"run.name={name}"]))


def test_numbers_in_a_file_are_read_by_the_schema(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("run: {name: 0123}\nseed: 0123\noptim: {lr: 1e-5}\n", encoding="utf-8")
    config = load_experiment(str(tmp_path / "one.yaml"))
    assert (config.run.name, config.seed, config.optim.lr) == ("0123", 123, 1e-5)


@pytest.mark.parametrize(
    "override",
    [
        *("optim.lr=inf", "optim.lr=nan", "optim.clip=inf", "decode.length_penalty=nan", "decode.length_penalty=-inf"),
        *("seed=4294967296", "retriever.temperature=1e-40", "retriever.temperature=1e30", "trainer.max_steps=???"),
        *("optim.lr=${nope}", "trainer.max_steps=99999999999999999999"),
    ],
)
def test_numbers_are_finite_and_in_range(override: str) -> None:
    with pytest.raises(OpenBookError, match=override.partition("=")[0]):
        load_experiment("tiny", [override])


def test_without_a_corpus_the_questions_carry_it(folder: Path) -> None:
    files = ["data.train=mine.json", "data.validation=", "data.test="]
    assert load_experiment("base", files, folder).data.corpus == "questions"
    assert load_experiment("base", [*files, "data.corpus=p.jsonl"], folder).data.corpus == "p.jsonl"
    assert load_experiment("base", [*files, "objective=closed_book"], folder).data.corpus == "factbook"
    assert load_experiment("base", ["data.train=spans"], folder).data.corpus == "factbook"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["decode.temperature=0.7"], r"a temperature that a search ignores \(decode\.temperature\)"),
        (["decode.top_p=0.9"], r"a nucleus that a search ignores \(decode\.top_p\)"),
        (["decode.top_p=0", "decode.sample=true"], r"value out of range \(decode\.top_p\)"),
        (["decode.temperature=0", "decode.sample=true"], r"value out of range \(decode\.temperature\)"),
        (["decode.no_repeat_ngram=-1"], r"value out of range \(decode\.no_repeat_ngram\)"),
        (["decode.beams=2", "decode.sample=true"], r"a drawn answer is not searched for \(decode\.beams\)"),
        (["decode.n_best=2", "decode.sample=true"], r"one answer is drawn for a question \(decode\.n_best\)"),
    ],
)
def test_drawn_answers_and_searches_have_settings_of_their_own(overrides: list[str], said: str) -> None:
    with pytest.raises(OpenBookError, match=said):
        load_experiment("tiny", overrides)
    load_experiment("tiny", ["decode.sample=true", "decode.temperature=0.7", "decode.top_p=0.9"])


def test_a_run_from_before_languages_goes_on_without(tmp_path: Path) -> None:
    lines = to_yaml(load_experiment("tiny")).splitlines()
    older = [line for line in lines if "_language:" not in line]
    assert len(lines) - len(older) == 2
    (tmp_path / "config.yaml").write_text("\n".join(older), encoding="utf-8")
    generator = load_resolved(tmp_path / "config.yaml").generator
    assert (generator.source_language, generator.target_language) == ("as_is", "as_is")
