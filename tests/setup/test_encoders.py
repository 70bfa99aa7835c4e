"""What an encoder's folder states is followed and said; what contradicts it is refused unless it is forced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import DistilBertConfig, DistilBertModel

from openbook.config.load import load_resolved, to_yaml
from openbook.config.schema import Config
from openbook.data.inputs import special_ids
from openbook.errors import OpenBookError
from openbook.models.encoder_folder import read_folder
from openbook.models.encoders import load_encoder, load_tokenizer
from openbook.setup import models as setup_models
from openbook.setup.encoders import encoder_dim, follow_folders, sides
from openbook.setup.inputs import data as setup_data
from openbook.setup.preflight import check
from openbook.setup.prepare import prepare
from openbook.setup.start_from import resolve_start
from openbook.tracking.checkpoint_io import WholeCheckpoints
from tests.encoder_families import FAMILIES, INSTRUCTION, texts_of
from tests.small_system import SmallSystem

pytestmark = pytest.mark.filterwarnings("ignore")
FAMILY = {family.name: family for family in FAMILIES}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> dict[str, Path]:
    texts = texts_of(small_data)
    names = ("BERT, cls", "T5, Dense", "Qwen3", "DPR", "DPR, projection")
    return {name: FAMILY[name].made(tmp_path_factory.mktemp("made"), texts) for name in names}


def both(folder: Path, *words: str) -> list[str]:
    return [f"retriever.question_encoder={folder}", f"retriever.passage_encoder={folder}", *words]


def modules(folder: Path, target: Path, change: dict[str, Any], file: str = "1_Pooling/config.json") -> Path:
    """A copy whose file says something else."""
    shutil.copytree(folder, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(content | change if isinstance(content, dict) else change["all"]))
    return target


def test_the_folder_is_followed_and_said(
    small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_system.config(tmp_path / "run", *both(folders["Qwen3"]), "data.max_passage_tokens=100")
    followed = follow_folders(config, tell=True).retriever
    assert (followed.pooling, followed.normalize, followed.passage_layout) == ("last", "true", "joined")
    assert (followed.question_prefix, followed.passage_prefix) == (INSTRUCTION, "")
    said = " ".join(capsys.readouterr().out.split())
    assert "last of the token states, of length 1, prefix 'Instruct: find the passage that answers\\nQuery:'" in said
    assert "as its folder states (sentence-transformers)" in said
    assert "data.max_passage_tokens is 100, more than the 96 tokens that" in said


def test_two_folders_that_differ_are_each_followed(
    small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Question encoder BERT with cls, passage encoder Qwen3 with the last token: what they share is written down."""
    keys = [f"retriever.question_encoder={folders['BERT, cls']}", f"retriever.passage_encoder={folders['Qwen3']}"]
    prepared = prepare(small_system.config(tmp_path / "run", *keys))
    settings = prepared.config.retriever
    assert (settings.pooling, settings.normalize) == ("auto", "true")
    retriever = prepared.module().retriever
    encoders = (retriever.question_encoder, retriever.passage_encoder)  # type: ignore[attr-defined]
    assert [(one.pooling, one.normalize, one.pads_left) for one in encoders] == [
        ("cls", True, False),
        ("last", True, True),
    ]
    assert {type(one.model).__name__ for one in encoders} == {"BertModel", "Qwen3Model"}


def test_a_key_that_contradicts_the_folder_is_refused_unless_forced(
    small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def config(*words: str) -> Config:
        return small_system.config(tmp_path / "run", *both(folders["BERT, cls"], *words))

    with pytest.raises(OpenBookError, match=r"another pooling.*\(retriever\.pooling\): got mean, expected cls, as in"):
        check(config("retriever.pooling=mean"))
    with pytest.raises(
        OpenBookError, match=r"another normalize.*got false, expected true.*retriever.override_folder=true"
    ):
        check(config("retriever.normalize=false"))
    check(config("retriever.pooling=cls", "retriever.normalize=true"))
    forced = config("retriever.pooling=mean", "retriever.normalize=false", "retriever.override_folder=true")
    check(forced)
    assert [(side.pooling, side.normalize) for side in sides(forced)] == [("mean", False)] * 2
    follow_folders(forced, tell=True)
    assert "otherwise than its folder states" in " ".join(capsys.readouterr().out.split())
    dpr = small_system.config(tmp_path / "run", *both(folders["DPR"], "retriever.normalize=true"))
    with pytest.raises(OpenBookError, match=r"another normalize.*got true, expected false"):
        check(dpr)


def test_a_prompt_that_is_not_used_is_said(
    small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = both(folders["BERT, cls"], "retriever.question_prefix=", "retriever.passage_prefix=passage: ")
    config = follow_folders(small_system.config(tmp_path / "run", *words), tell=True)
    assert (config.retriever.question_prefix, config.retriever.passage_prefix) == ("", "passage: ")
    assert "states the prompt 'represent this sentence for searching : ', which is not used" in " ".join(
        capsys.readouterr().out.split()
    )
    settings = {"prompts": {"clustering": "cluster: "}}
    other = modules(folders["BERT, cls"], tmp_path / "other", settings, "config_sentence_transformers.json")
    follow_folders(small_system.config(tmp_path / "run", *both(other)), tell=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "its folder has prompts of other names (clustering); retriever.question_prefix=TEXT uses one" in said


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (
            "max",
            r"pooling cannot be computed here \(retriever.question_encoder\): got max, as .* expected one of cls, last",
        ),
        ("weightedmean", "got weightedmean"),
        (["cls", "mean"], "got cls and mean"),
    ],
)
def test_a_pooling_that_is_not_known_here(
    small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path, mode: object, text: str
) -> None:
    other = modules(folders["BERT, cls"], tmp_path / "other", {"pooling_mode": mode})
    with pytest.raises(OpenBookError, match=text):
        check(small_system.config(tmp_path / "run", *both(other)))
    with pytest.raises(
        OpenBookError, match=r"Such a pooling cannot be read; retriever.override_folder=true reads it your"
    ):
        check(small_system.config(tmp_path / "run", *both(other, "retriever.pooling=cls")))
    check(
        small_system.config(tmp_path / "run", *both(other, "retriever.pooling=cls", "retriever.override_folder=true"))
    )


def test_older_files_of_sentence_transformers(folders: dict[str, Path], tmp_path: Path) -> None:
    """A flag for each mode, and the names that its modules had."""
    for flag, pooling in (("cls_token", "cls"), ("mean_tokens", "mean"), ("lasttoken", "last")):
        folder = shutil.copytree(folders["BERT, cls"], tmp_path / flag)
        content = {"word_embedding_dimension": 24, f"pooling_mode_{flag}": True, "pooling_mode_max_tokens": False}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(content))
        kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
        modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
        (folder / "modules.json").write_text(json.dumps(modules))
        stated = read_folder(str(folder))
        assert (stated.pooling, stated.normalize, stated.kind) == (pooling, False, "sentence-transformers")


@pytest.mark.parametrize(
    ("file", "change", "text"),
    [
        (
            "1_Pooling/config.json",
            {"include_prompt": False},
            r"leaves the prompt's tokens out .*\(retriever\)",
        ),
        ("2_Dense/config.json", {"activation_function": "os.system"}, r"Dense module cannot be computed .*: system"),
        ("2_Dense/config.json", {"use_residual": True}, "with a residual"),
        ("2_Dense/config.json", {"bias": False}, "lacks its weights .*linear.bias, linear.weight"),
        (
            "modules.json",
            {"all": [{"type": f"m.{kind}", "path": kind} for kind in ("Transformer", "Pooling", "LSTM")]},
            "modules that cannot be computed here .*: Transformer, Pooling, LSTM, expected Transformer, Pooling, any",
        ),
        ("modules.json", {"all": [{"type": "m.StaticEmbedding", "path": ""}]}, "cannot be computed here"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    folders: dict[str, Path], tmp_path: Path, file: str, change: dict[str, Any], text: str
) -> None:
    other = modules(folders["T5, Dense"], tmp_path / "other", change, file)
    with pytest.raises(OpenBookError, match=text):
        load_encoder(str(other), None, None, 0.0)


def test_a_dense_module_without_safetensors(folders: dict[str, Path], tmp_path: Path) -> None:
    other = shutil.copytree(folders["T5, Dense"], tmp_path / "other")
    (other / "2_Dense" / "model.safetensors").rename(other / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(OpenBookError, match=r"with no model.safetensors.*pickled weights are not loaded"):
        load_encoder(str(other), None, None, 0.0)
    (other / "2_Dense" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(OpenBookError, match="damaged weights"):
        load_encoder(str(other), None, None, 0.0)


def test_lower_case_beside_the_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    """The T5 tokenizer keeps capitals."""
    change = {"do_lower_case": True}
    other = modules(folders["T5, Dense"], tmp_path / "other", change, "sentence_bert_config.json")
    kept, lower = (load_tokenizer(str(folder)) for folder in (folders["T5, Dense"], other))
    assert kept("ALPHA")["input_ids"] != kept("alpha")["input_ids"]
    assert lower("ALPHA")["input_ids"] == kept("alpha")["input_ids"]


# Dimensions


def test_the_first_numbers_of_an_embedding(small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path) -> None:
    """Matryoshka: cut, then of length 1 again; by the key, or as the folder states."""
    folder = str(folders["BERT, cls"])
    ids = torch.randint(5, 60, (3, 7))
    full = load_encoder(folder, None, None, 0.0).eval()
    cut = load_encoder(folder, None, None, 0.0, dim=9).eval()
    with torch.no_grad():
        torch.testing.assert_close(cut(ids, None), torch.nn.functional.normalize(full(ids, None)[:, :9], dim=-1))
    assert (cut.dim, full.dim) == (9, 24) and cut.fingerprint() != full.fingerprint()
    config = small_system.config(tmp_path / "run", *both(folders["BERT, cls"], "retriever.dim=9"))
    check(config)
    assert encoder_dim(config) == 9
    stated = modules(folders["BERT, cls"], tmp_path / "m", {"truncate_dim": 11}, "config_sentence_transformers.json")
    assert follow_folders(small_system.config(tmp_path / "run", *both(stated))).retriever.dim == 11
    with pytest.raises(
        OpenBookError, match=r"more numbers than an embedding has \(retriever.dim\): got 25, expected at most 24"
    ):
        check(small_system.config(tmp_path / "run", *both(folders["BERT, cls"], "retriever.dim=25")))


def test_encoders_of_different_dim_need_a_projection(
    small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path
) -> None:
    keys = [
        f"retriever.question_encoder={folders['BERT, cls']}",
        f"retriever.passage_encoder={folders['DPR, projection']}",
    ]
    with pytest.raises(OpenBookError, match=r"different dim .*got 14, expected 24. retriever.projection=14 trains"):
        check(small_system.config(tmp_path / "run", *keys))
    config = small_system.config(tmp_path / "run", *keys, "retriever.projection=14")
    assert encoder_dim(config) == 14
    retriever: Any = prepare(config).module().retriever
    assert [len(one.head) for one in (retriever.question_encoder, retriever.passage_encoder)] == [1, 2]
    for words, text in (
        (["retriever.dim=7"], r"a projection has the dim that it is made with \(retriever.dim\)"),
        (
            ["retriever.train_question_encoder=false", "retriever.train_passage_encoder=false"],
            r"a new projection that nothing trains \(retriever.projection\)",
        ),
    ):
        with pytest.raises(OpenBookError, match=text):
            small_system.config(tmp_path / "run", *keys, "retriever.projection=14", *words)


def test_a_new_projection_keeps_inner_products(encoder_folder: Path) -> None:
    """Both sides begin with the same one, and where it is not narrower, scores begin as they were."""
    ids = torch.randint(5, 60, (4, 7))
    plain = load_encoder(str(encoder_folder), "mean", False, 0.0).eval()
    wide = [load_encoder(str(encoder_folder), "mean", False, 0.0, projection=31, seed=5).eval() for _ in range(2)]
    with torch.no_grad():
        before = plain(ids, None) @ plain(ids, None).T
        torch.testing.assert_close(wide[0](ids, None) @ wide[1](ids, None).T, before, rtol=1e-4, atol=1e-4)
    narrow = load_encoder(str(encoder_folder), "mean", False, 0.0, projection=6, seed=5).head[0].weight
    assert isinstance(narrow, torch.nn.Parameter)
    torch.testing.assert_close(narrow @ narrow.T, torch.eye(6) * 24 / 6)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert wide[0](ids, None).dtype == torch.float32


# Runs of before, and of other settings


def test_a_run_from_before_reads_as_it_did(small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path) -> None:
    """Its config.yaml lacks the keys: no prompt, start title sep text end, and normalize may contradict the folder."""
    config = small_system.config(tmp_path / "run", *both(folders["BERT, cls"]))
    content = yaml.safe_load(to_yaml(config))
    new = "override_folder question_prefix passage_prefix passage_layout dim projection".split()
    content["retriever"] = {key: value for key, value in content["retriever"].items() if key not in new}
    content["retriever"] |= {"pooling": "cls", "normalize": False}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    then = load_resolved(tmp_path / "config.yaml")
    settings = follow_folders(then).retriever
    assert (settings.pooling, settings.normalize, settings.passage_layout) == ("cls", "false", "separated")
    assert (settings.question_prefix, settings.passage_prefix, settings.dim) == ("", "", 0)
    assert then.trainer.monitor == config.trainer.monitor  # a younger key it has: evaluate.checkpoint
    style = setup_data.parts(then).passage_format
    special = special_ids(load_tokenizer(str(folders["BERT, cls"])))
    assert (style.before, style.between, style.after) == ((special.start,), (special.sep,), (special.end,))


def test_weights_of_the_packaged_kind_are_read_as_before(small_system: SmallSystem, tmp_path: Path) -> None:
    config = follow_folders(small_system.config(tmp_path / "run", *both(Path("minilm"))))
    settings = config.retriever
    assert (settings.pooling, settings.normalize, settings.passage_layout) == ("mean", "true", "pair")
    assert settings.question_prefix == settings.passage_prefix == ""


def test_start_from_a_run_that_reads_otherwise(
    small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path
) -> None:
    config = small_system.config(tmp_path / "run", *both(folders["BERT, cls"], "retriever.passage_prefix=passage: "))
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "config.yaml").write_text(to_yaml(config))
    WholeCheckpoints().save_checkpoint({"global_step": 1}, tmp_path / "a" / "checkpoints" / "last.ckpt")
    words = both(folders["BERT, cls"], f"retriever.start_from={tmp_path / 'a'}")
    with pytest.raises(
        OpenBookError, match=r"read differently \(retriever.passage_prefix\): got '', expected 'passage: '"
    ):
        resolve_start(small_system.config(tmp_path / "run", *words))
    words.append("retriever.passage_prefix=passage: ")
    resolve_start(small_system.config(tmp_path / "run", *words))
    with pytest.raises(OpenBookError, match=r"\(retriever.passage_layout\): got 'pair', expected 'joined'"):
        resolve_start(small_system.config(tmp_path / "run", *words, "retriever.passage_layout=pair"))
    separated = small_system.config(tmp_path / "run", *words[:2], "retriever.passage_layout=separated")
    (tmp_path / "a" / "config.yaml").write_text(to_yaml(separated))
    same = [*words[:3], "retriever.passage_layout=pair"]  # to a tokenizer that drops the space between words
    resolve_start(small_system.config(tmp_path / "run", *same))


def test_prefixes_count_as_tokens(small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path) -> None:
    words = both(folders["BERT, cls"], "data.max_question_tokens=12")
    with pytest.raises(OpenBookError, match=r"longer than the limit .*retriever.question_prefix included"):
        prepare(small_system.config(tmp_path / "run", *words))
    prepare(small_system.config(tmp_path / "run", *words, "retriever.question_prefix="))


def test_passages_that_are_cut_are_counted_with_their_prefix(
    small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_system.config(tmp_path / "run", *both(folders["BERT, cls"]))
    longest = setup_data.parts(config).corpus.tokens("encoder").lengths.max() + 2
    for prefix, cut in (("", False), ("passage: ", True)):
        words = both(folders["BERT, cls"], f"data.max_passage_tokens={longest}", f"retriever.passage_prefix={prefix}")
        prepare(small_system.config(tmp_path / "run", *words))
        assert ("passages are cut for the passage encoder" in " ".join(capsys.readouterr().out.split())) == cut


def test_the_retriever_reads_what_was_settled(
    small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path
) -> None:
    config = small_system.config(tmp_path / "run", *both(folders["Qwen3"]))
    parts = setup_data.parts(config)
    retriever: Any = setup_models.retriever_of(config, parts)
    assert retriever.passages.style == parts.passage_format
    assert parts.passage_format.pads_left and parts.question_format.prefix == INSTRUCTION
    weights = load_file(folders["Qwen3"] / "model.safetensors")
    save_file(weights, tmp_path / "same.safetensors")  # what was loaded is what the folder holds
    assert torch.equal(
        retriever.passage_encoder.model.layers[0].mlp.up_proj.weight, weights["layers.0.mlp.up_proj.weight"]
    )


def test_a_name_on_the_hub_is_followed_by_the_same_code(
    small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hub would give of each file, without a hub."""

    def downloaded(name: str, file: str, **_: object) -> str | None:
        path = folders[name.removeprefix("somebody/")] / file
        return str(path) if path.is_file() else None

    monkeypatch.setattr("openbook.models.pretrained.cached_file", downloaded)
    for name in ("Qwen3", "T5, Dense", "DPR, projection"):
        assert read_folder(f"somebody/{name}") == read_folder(str(folders[name]))
    config = small_system.config(tmp_path / "run", *both(Path("somebody/Qwen3")))
    assert follow_folders(config).retriever.question_prefix == INSTRUCTION


def test_a_prefix_that_leaves_no_room(small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path) -> None:
    """What is cut would be the prefix alone, the same for every question or passage."""
    words = both(folders["BERT, cls"], "data.max_question_tokens=12", "data.long_questions=cut")
    with pytest.raises(OpenBookError, match=r"no room for a question \(retriever.question_prefix\): got \d+ tokens in"):
        prepare(small_system.config(tmp_path / "run", *words)).questions.setup()
    prepare(small_system.config(tmp_path / "run", *words, "retriever.question_prefix="))
    words = both(folders["BERT, cls"], "retriever.question_prefix=", "data.max_passage_tokens=14")
    config = small_system.config(tmp_path / "run", *words, f"retriever.passage_prefix={'passage : ' * 3}")
    with pytest.raises(OpenBookError, match=r"no room for a passage \(retriever.passage_prefix\)"):
        setup_models.retriever_of(config, setup_data.parts(config))


@pytest.mark.parametrize("file", ["config.json", "modules.json", "config_sentence_transformers.json"])
def test_a_damaged_file_is_named(
    file: str, small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["BERT, cls"], tmp_path / "copy")
    (folder / file).write_text("[{")
    with pytest.raises(OpenBookError, match=rf"damaged JSON \(.*/{file}\): got Expecting"):
        sides(small_system.config(tmp_path / "run", *both(folder)))


def test_the_width_of_a_distilbert(
    small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config.json calls it dim; where none says it, more numbers are refused once it is loaded."""
    folder = shutil.copytree(folders["BERT, cls"], tmp_path / "distil", ignore=shutil.ignore_patterns("*odule*"))
    sizes = {"dim": 24, "hidden_dim": 40, "n_layers": 1, "n_heads": 2, "vocab_size": 600}
    DistilBertModel(DistilBertConfig(**sizes)).save_pretrained(folder)
    config = small_system.config(tmp_path / "run", *both(folder))
    assert encoder_dim(config) == 24
    config = small_system.config(tmp_path / "run", *both(folder, "retriever.dim=25"))
    with pytest.raises(OpenBookError, match=r"more numbers than an embedding has .*got 25, expected at most 24"):
        sides(config)
    monkeypatch.setattr("openbook.models.encoder_folder._hidden", lambda facts: None)
    with pytest.raises(OpenBookError, match=r"more numbers than an embedding has .*got 25, expected at most 24"):
        setup_models.retriever_of(config, setup_data.parts(config))


def test_a_prompt_or_system_that_nothing_reads_is_shown(small_system: SmallSystem, tmp_path: Path) -> None:
    for word, shown in (("system=Be short.", "Be short."), ("prompt=plain", "plain")):
        config = small_system.config(tmp_path / "run", f"generator.{word}")
        with pytest.raises(OpenBookError, match=rf"\(generator.{word.partition('=')[0]}\): got '{shown}' with"):
            setup_data.prompt_for(config, None)


def test_a_run_from_before_leaves_out_what_was_not_read(
    small_system: SmallSystem, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Dense, truncate_dim and do_lower_case were not applied then; a run of today has them."""
    folder = modules(folders["T5, Dense"], tmp_path / "m", {"truncate_dim": 11}, "config_sentence_transformers.json")
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    config = small_system.config(tmp_path / "run", *both(folder, "data.max_passage_tokens=100"))
    content = yaml.safe_load(to_yaml(config))
    new = "override_folder question_prefix passage_prefix passage_layout dim projection".split()
    content["retriever"] = {key: value for key, value in content["retriever"].items() if key not in new}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    for one, dim, lower in ((load_resolved(tmp_path / "config.yaml"), 24, False), (config, 11, True)):
        followed = follow_folders(one)
        parts = setup_data.parts(followed)
        retriever: Any = setup_models.retriever_of(followed, parts)
        assert (retriever.passage_encoder.dim, len(retriever.passage_encoder.head)) == (dim, int(lower))
        for tokenizer in (parts.question_tokenizer, parts.passage_tokenizer):
            assert (tokenizer("ALPHA")["input_ids"] == tokenizer("alpha")["input_ids"]) == lower
    assert "as in older runs" in str(sides(load_resolved(tmp_path / "config.yaml"))[1])
