"""`ask` and `serve` as commands: an answer in a pipe and in colours, what is refused, and a swap by SIGHUP."""

from __future__ import annotations

import io
import os
import re
import signal
from pathlib import Path

import pytest
from rich.console import Console

from openbook.__main__ import main
from openbook.commands.parsers import parse
from openbook.commands.train import train
from openbook.commands.trained.ask import ask
from openbook.commands.trained.serve import settings_of
from openbook.errors import OpenBookError
from tests.small_system import SmallSystem


@pytest.fixture(scope="module")
def run(small_system: SmallSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ask")
    return Path(train(small_system.config(folder / "run", "evaluate.before_training=false", "trainer.max_steps=2")))


def asked(run: Path, *words: str, terminal: bool = False) -> str:
    written = io.StringIO()
    console = Console(file=written, width=100, force_terminal=terminal, highlight=False, color_system="truecolor")
    ask(str(run), words, console=console if terminal else Console(file=written, width=100, highlight=False))
    return written.getvalue()


QUESTION = ("what", "is the capital of alpha ?")


def test_an_answer_in_a_pipe(run: Path) -> None:
    said = asked(run, *QUESTION, "evaluate.n_docs=2")
    lines = said.splitlines()
    assert "\x1b" not in said and "\r" not in said
    assert lines[0].startswith(f"{run}, last.ckpt of step 2; 37 passages of ")
    assert lines[2] == "what is the capital of alpha ?" and lines[3].startswith("answer  ") and "gold" not in said
    assert len(re.findall(r"^\d .* \d\.\d\d .*→ \d\.\d\d ", said, re.MULTILINE)) == 2
    head, *rows = lines[lines.index(next(line for line in lines if line.startswith("token"))) :]
    assert head.split() == ["token", "1", "2"] and rows
    for row in rows:
        assert sum(float(share) for share in row.split()[-2:]) == pytest.approx(1, abs=0.011)


def test_a_terminal_has_a_heat_map_in_colours(run: Path) -> None:
    said = asked(run, *QUESTION, terminal=True)
    shares = re.findall(r"\x1b\[(?:1;)?38;2;235;240;245;48;2;(\d+);(\d+);(\d+)m *(\d\.\d\d)", said)
    assert len(shares) >= 2
    blues = sorted((float(share), int(blue)) for *_, blue, share in shares)
    assert [blue for _, blue in blues] == sorted(blue for _, blue in blues) and blues[0][1] < blues[-1][1]


def test_overrides_are_told_from_words(run: Path) -> None:
    said = asked(run, "is", "x = 3 ?", "objective=rag_sequence", "decode.rag_sequence=greedy")
    assert "\nis x = 3 ?\n" in said and "\ntoken " not in said
    with pytest.raises(OpenBookError, match="unknown key"):
        asked(run, "who ?", "evaluate.n_doc=2")


def test_what_cannot_be_asked(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbook.commands.trained.ask.run_server", lambda *_, **__: pytest.fail("it serves"))
    monkeypatch.setattr("openbook.commands.trained.serve.run_server", lambda *_, **__: pytest.fail("it serves"))
    for words, said in (
        (["ask", str(run), "who ?", "objective=dpr"], "this run has no generator to answer with"),
        (["ask", str(run), "who ?", "--corpus", "x.jsonl"], "corpora to choose from are for the page"),
        (["ask", "no_such_run", "who ?"], "not a run folder"),
        (["ask", str(run), "--corpus", "no such file.jsonl"], "no such file.jsonl"),
        (["ask", str(run), "serve.host=0.0.0.0"], "a token is needed"),
        (["serve", str(run), "objective=closed_book"], "this run retrieves nothing"),
        (["serve", str(run), "serve.max_topk=0"], "serve.max_topk"),
        (["serve", str(run), "serve.port=65536"], "a port, from 0 to 65,535"),
    ):
        if words[0] == "serve" or "who ?" not in words:
            pytest.importorskip("uvicorn")
        assert main(words) == 2
        assert said in capsys.readouterr().err


def test_the_page_is_for_this_machine_only(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn")
    monkeypatch.setenv("OPENBOOK_TOKEN", "a-token-of-some-length")
    with pytest.raises(OpenBookError, match=r"the page is for this machine only \(serve.host\): got 0.0.0.0"):
        ask(str(run), ["serve.host=0.0.0.0"])
    assert settings_of(str(run), ["serve.host=0.0.0.0"])[2] == "a-token-of-some-length"


def test_corpora_of_the_page_are_named_one_by_one() -> None:
    parsed = parse(["ask", "RUN", "--corpus", "a.jsonl", "--corpus", "b.jsonl"])
    assert (parsed.words, parsed.corpus) == (["RUN"], ["a.jsonl", "b.jsonl"])


def test_a_server_swaps_on_sighup_and_ends_on_sigterm(small_system: SmallSystem, run: Path) -> None:
    pytest.importorskip("uvicorn")
    import requests

    server = small_system.start("serve", str(run), "serve.port=0")
    assert server.stdout is not None
    try:
        url = next(found[1] for line in server.stdout if (found := re.search(r"POST (http://\S+)/retrieve", line)))
        first = requests.get(f"{url}/health", timeout=60).json()
        assert (first["generation"], first["step"], first["n_passages"]) == (0, 2, 37)
        body = {"queries": ["what is the capital of alpha ?"], "topk": 2}
        before = requests.post(f"{url}/retrieve", json=body, timeout=60).json()
        last = run / "checkpoints/last.ckpt"
        last.touch()
        os.kill(server.pid, signal.SIGHUP)
        assert any("generation 1: " in line for line in server.stdout)
        again = requests.post(f"{url}/retrieve", json=body, timeout=60)
        assert again.headers["X-OpenBook-Generation"] == "1" and again.json() == before
        moved = last.rename(last.with_suffix(".gone"))
        os.kill(server.pid, signal.SIGHUP)
        assert any("not swapped: no such checkpoint" in line for line in server.stdout)
        assert requests.post(f"{url}/retrieve", json=body, timeout=60).json() == before
        moved.rename(last)
        server.terminate()
        assert server.wait(60) == 128 + signal.SIGTERM
    finally:
        server.kill()
