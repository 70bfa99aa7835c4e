"""Where it listens and who needs a token, found before a model is loaded."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from openbook.config.evaluation import ServeConfig
from openbook.errors import OpenBookError
from openbook.serving.server import TOKEN, _in_thread, bound_socket, check_installed, run_server, token_of, url_of

LONG = "a-token-of-some-length"


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)


def test_this_machine_needs_no_token_and_may_have_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert token_of(ServeConfig()) == ""
    monkeypatch.setenv(TOKEN, f" {LONG}\n")
    assert token_of(ServeConfig()) == LONG
    (tmp_path / "token").write_text(f"{LONG}-of-the-file\nsecond line\n")
    assert token_of(ServeConfig(token_file=str(tmp_path / "token"))) == f"{LONG}-of-the-file"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "server.example", ""])
def test_any_other_address_needs_one(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OpenBookError, match=r"a token is needed \(serve.host: .*Set OPENBOOK_TOKEN in the e"):
        token_of(ServeConfig(host=host))
    monkeypatch.setenv(TOKEN, LONG)
    assert token_of(ServeConfig(host=host)) == LONG


def test_tokens_that_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for bad in ("short", "é" * 20, "a" * 20 + "\x01"):
        monkeypatch.setenv(TOKEN, bad)
        with pytest.raises(OpenBookError, match=r"could be guessed, or that no header can carry \(OPENBOOK_TOKEN"):
            token_of(ServeConfig())
    with pytest.raises(OpenBookError, match=r"cannot be read \(serve.token_file: .*No such file"):
        token_of(ServeConfig(token_file=str(tmp_path / "none")))
    (tmp_path / "empty").write_text("")
    with pytest.raises(OpenBookError, match=r"could be guessed.*\(serve.token_file: .*got 0 characters"):
        token_of(ServeConfig(token_file=str(tmp_path / "empty")))


def test_an_address_that_is_taken_or_is_none() -> None:
    with bound_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert url_of(bound) == f"http://127.0.0.1:{port}"
        bound.listen()
        with pytest.raises(OpenBookError, match=rf"cannot listen here \(serve.host=127.0.0.1 serve.port={port}\): got"):
            bound_socket("127.0.0.1", port)
    with pytest.raises(OpenBookError, match="cannot listen here"):
        bound_socket("no such host", 0)


def test_an_address_that_two_have_taken_is_the_firsts_to_listen() -> None:
    pytest.importorskip("uvicorn")
    with bound_socket("127.0.0.1", 0) as first, bound_socket("127.0.0.1", first.getsockname()[1]) as second:
        first.listen()
        with pytest.raises(OpenBookError, match="cannot listen here"):
            run_server(None, second, ServeConfig(), "", told="")


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(OpenBookError, match=r"needs FastAPI and uvicorn.*pip install 'openbook\[serve\]'"):
        check_installed()


def test_a_swap_by_signal_does_not_keep_the_process() -> None:
    found: list[bool] = []
    done = threading.Event()
    _in_thread(lambda: (found.append(threading.current_thread().daemon), done.set()))
    assert done.wait(20) and found == [True]
