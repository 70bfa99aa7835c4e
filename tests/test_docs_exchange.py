"""docs/exchange.md: its commands are the command line's, its tables and keys are true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from openbook.commands.parsers import COMMANDS, parse, subject_of
from openbook.config.load import load_experiment
from openbook.config.schema import keys_of
from openbook.exchange.rag import RagParts, why_no_rag
from openbook.models.encoders import load_encoder
from openbook.models.seq2seq import load_generator
from tests.small_system import SmallSystem

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/exchange.md").read_text(encoding="utf-8")


def test_the_commands() -> None:
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    lines = [line.split("#")[0] for line in blocks.splitlines() if line.startswith("openbook ")]
    assert {shlex.split(line)[1] for line in lines} == {"export", "import", "evaluate", "train"}
    for line in lines:
        parsed = parse(shlex.split(line)[1:])
        subject, rest = subject_of(parsed)
        assert subject and parsed.command in COMMANDS
        assert {one.partition("=")[0] for one in rest if "=" in one} <= set(keys_of())
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target, words in re.findall(r"# make (\w+) (.*)", PAGE):
        recipe = makefile.split(f"\n{target}: ")[1].split("\n\n")[0]
        assert all(f"$({word.partition('=')[0]})" in recipe for word in words.split())


def test_the_settings_of_a_rag_make_one(small_system: SmallSystem, tmp_path: Path) -> None:
    """The page's YAML, on tiny models of the same kinds."""
    text = next(one for one in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "decoded" in one)
    (tmp_path / "page.yaml").write_text(text, encoding="utf-8")
    generator = load_experiment(str(tmp_path / "page.yaml"), ["warmup.steps=0"]).generator
    assert generator.question == "decoded"
    parts = RagParts(
        question_encoder=load_encoder(str(small_system.encoder), "cls", False, 0.0),
        generator=load_generator(str(small_system.generator), 0.0, 0),
        question_tokenizer=None,
        generator_tokenizer=None,
        likelihood="rag_token",
        template=generator.prompt,
        question_prefix="",
        temperature=1.0,
        n_docs=3,
        max_context=80,
        max_answer=24,
    )
    assert why_no_rag(parts) == []


@pytest.mark.parametrize("name", re.findall(r"\(`(tests/[\w/]+\.py)`\)", PAGE))
def test_the_tests_that_it_names(name: str) -> None:
    assert (ROOT / name).is_file()
